"""What README and the other pages say is there: commands that parse, scripts, options, files and links; Python that runs."""

from __future__ import annotations

import inspect
import re
import shlex
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import ulmfit
from tests.hub_stand_in import hub_stand_in
from tests.learner_stand_in import Recorded, trains_nothing
from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]  # fmt: skip
LAUNCHERS = {"train_lm.py": "train-lm", "train_clf.py": "train-clf"}


def blocks(page: str, language: str) -> list[str]:
    """The contents of the page's blocks of code in a language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def command_lines(page: str) -> list[list[str]]:
    """Words of each command in the page's shell blocks and of each inline `command`."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    lines += [code for code in inline if re.match(r"(ulmfit [a-z-]+ |(bash|python|source|sbatch|accelerate) )", code)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of ulmfit in a shell command and its options; None if it starts none."""
    for at, word in enumerate(words):
        if word == "ulmfit" and (at == 0 or words[at - 1] == "-m"):
            return words[at + 1], words[at + 2 :]
        if word in LAUNCHERS:
            return LAUNCHERS[word], words[at + 1 :]
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_typed(page):
    seen = 0
    for words in command_lines(page):
        for word in words:  # what a script is given is its own affair, but the script is there
            if re.match(r"(launch|benchmarks|tests|examples|\.ci)/[\w./-]+$", word):
                assert (ROOT / word).exists(), words
        if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            source = (ROOT / words[1]).read_text()
            for option in (word for word in words if word.startswith("--")):
                assert option in source or option[2:].replace("-", "_") in source, words
        if words[:2] == ["python", "-m"] and words[2].startswith("tests."):
            assert (ROOT / (words[2].replace(".", "/") + ".py")).exists(), words
        # launch/slurm_chain.sh takes several, each behind a --; %a is the number of a task there and for slurm.sbatch.
        chain = words[:1] == ["launch/slurm_chain.sh"]
        for stage in " ".join(words).replace("%a", "1").split(" -- ") if chain or "%a" in words else []:
            if found := ours(stage.split()):
                parse(COMMANDS[found[0]].options, found[1])
                seen += 1
        if chain or "%a" in words:
            continue
        if (found := ours(words)) and found[1] != ["--help"] and found[0] != "COMMAND":
            parse(COMMANDS[found[0]].options, found[1])  # UserError: an option that is not there, or does not take this
            seen += 1
    assert seen or page not in ("README.md", "docs/clusters.md")


def test_the_test_finds_what_is_wrong():
    with pytest.raises(ulmfit.UserError, match="no option --epohcs"):
        name, words = ours(shlex.split("accelerate launch -m ulmfit fit --epohcs 3"))
        parse(COMMANDS[name].options, words)
    assert ours(["torchrun", "train_clf.py", "--data", "x"]) == ("train-clf", ["--data", "x"])
    assert ours(["bash", "launch/quickstart.sh"]) is None


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_options_are_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
    known = {f.name for command in COMMANDS.values() for f in fields(command.options)} | {"help", "version"}
    known |= {"num_processes", "nproc_per_node", "max_restarts", "documents", "inference", "options"}  # of others
    known |= {"mixed_precision", "gradient_accumulation_steps"}
    for option in re.findall(r"`--([a-z][\w-]*)", text):
        assert option.replace("-", "_").removeprefix("no_") in known, option


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_architecture_names_files_that_are_there():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+(?:\.py|/))`", text):
        assert (ROOT / "ulmfit" / name).exists() or (ROOT / name).exists() or name.rstrip("/") in RUN_FOLDERS, name
    for room in (path for path in (ROOT / "ulmfit").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"{room.name}/" in text, f"ARCHITECTURE.md does not name the room {room.name}"


RUN_FOLDERS = {"checkpoints", "model", "tensorboard"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_of_a_page_runs(page, runs, tmp_path, monkeypatch):
    """All but the trainings themselves, whose options are checked against their signatures and dataclasses."""
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    for name, run in (
        ("lm", runs.lm),
        ("clf", runs.clf),
        ("reviews/lm", runs.lm),
        ("reviews/model", runs.clf / "model"),
    ):
        (tmp_path / "runs" / name).symlink_to(run)
    monkeypatch.chdir(tmp_path)

    def training(name, run, kind):
        signature = inspect.signature(getattr(ulmfit, name))

        def stand_in(*args, **options):
            signature.bind(*args, **options)
            return Recorded(run, lambda: kind.from_pretrained(run))

        monkeypatch.setattr(ulmfit, name, stand_in)

    training("fit", runs.clf, ulmfit.TextClassifier)
    training("train_language_model", runs.lm, ulmfit.LanguageModel)
    training("train_classifier", runs.clf, ulmfit.TextClassifier)
    if "UlmfitClassifier" in "".join(blocks(page, "python")):
        estimator = pytest.importorskip("ulmfit.estimator")
        files = {file.name: file.read_bytes() for file in (runs.clf / "model").iterdir()}
        files["config.json"] = files["config.json"].replace(b'"neg"', b'"0"').replace(b'"pos"', b'"1"')
        signature = inspect.signature(ulmfit.UlmfitClassifier.fit)

        def fit(self, *args, **options):
            signature.bind(self, *args, **options)
            self.classes_, self.class_prior_ = np.unique(args[1]), np.array([0.5, 0.5])
            self.model_ = estimator.StoredModel(files)
            return self

        monkeypatch.setattr(ulmfit.UlmfitClassifier, "fit", fit)

    trains_nothing(monkeypatch, runs, lambda link, task, lr_find: Recorded(link, None))
    texts = ["a wonderful film", "a dull film", "I liked it"]
    hub = (
        hub_stand_in(monkeypatch, tmp_path / "hub")
        if "push_to_hub" in "".join(blocks(page, "python"))
        else nullcontext()
    )
    with hub:
        run_blocks(page, texts)


def run_blocks(page, texts):
    for code in blocks(page, "python"):
        if "raise UserError" in code:  # an excerpt
            continue
        exec(compile(code, page, "exec"), {"frame": {"text": texts}, "texts": texts, "labels": ["pos", "neg", "pos"]})
