"""The commands of README and docs/ run as they are typed, in order, on small data: trainings take a few steps of a tiny model.

tests/test_docs.py shows in every change that each can be typed.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.hub_stand_in import hub_stand_in
from tests.test_docs import LAUNCHERS, PAGES, ROOT, blocks
from tests.tiers import long_tier
from tests.training.runs import write_reviews
from ulmfit import LanguageModel, TextClassifier, cli
from ulmfit.data import sample

# What is not run here, by how it begins: the file that runs it, or its kind.
ELSEWHERE = {
    "bash launch/quickstart.sh": "launch/quickstart.sh",  # by hand, in a fresh clone
    "bash launch/setup.sh": ".ci/run",
    "bash benchmarks/gpu.sh": "tests/one_gpu/test_rehearsal.py",
    "source .venv": "launch/setup.sh",
    "pip install": "launch/setup.sh",
    "accelerate launch --config_file launch/multi_gpu.yaml": "tests/distributed/test_launch.py",
    "accelerate launch --config_file launch/zero2.yaml": "tests/distributed/test_engines.py",
    "accelerate launch --config_file launch/fsdp2.yaml": "tests/distributed/test_engines.py",
    "sbatch": "tests/slurm/test_slurm.py",
    "launch/slurm_chain.sh": "tests/slurm/test_slurm.py",
    "launch/two_nodes.sh": "tests/slurm/test_slurm.py",
    'ulmfit train-lm --data "wiki=0.7': "tests/data/test_mixture.py",  # of an object store
}
TINY = "--preset tiny --init none"
SHORT = {
    "fit": "--lm.max-steps 4 --clf.max-steps 5",
    "train-lm": "--max-steps 2",
    "train-clf": "--max-steps 2",
    "sweep": f"{TINY} --lm.max-steps 2 --clf.max-steps 2 --most-epochs 1 --trials 1",
}


def commands(page: str) -> list[str]:
    """The lines of the page's blocks of shell commands, without their remarks."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [" ".join(line.split("  #")[0].split()) for line in text.splitlines()]
    return [line for line in lines if line]


def elsewhere(line: str) -> str | None:
    return next((file for begin, file in ELSEWHERE.items() if line.startswith(begin)), None)


def shortened(line: str) -> str:
    """The command with few steps of a small model."""
    words = line.split()
    name = LAUNCHERS.get(next((word for word in words if word in LAUNCHERS), ""), words[1])
    options = SHORT.get(name, "")
    if name == "sweep":
        line = line.split(" --trials")[0]
    elif name in ("fit", "train-lm") and "--init" not in line:
        options += f" {TINY}"
    return f"{line} {options}".strip()


def test_what_is_not_run_here_is_run_elsewhere():
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 50
    for begin, file in ELSEWHERE.items():
        assert (ROOT / file).exists()
        assert any(line.startswith(begin) for line in lines), f"no page has {begin} any more"


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A folder with the data that the pages speak of, and the runs that earlier pages have made."""
    folder = tmp_path_factory.mktemp("job")
    write_reviews(folder / "reviews.csv", 60)
    write_reviews(folder / "labelled.csv", 20, first=60)
    write_reviews(folder / "unlabelled.csv", 20, first=80)
    write_reviews(folder / "new.csv", 20, first=100)
    with gzip.open(folder / "reviews.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "a wonderful film"}\n{"text": "a dull film"}\n')
    for number, row in enumerate(islice(sample.generate("train"), 120)):
        label = sample.LABELS[row["label"]]
        for name in (f"aclImdb/{'train' if number < 80 else 'test'}/{label}", f"corpus/{label}"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{number}_7.txt").write_text(row["text"], encoding="utf-8")
    with open(folder / "questions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(40):
            writer.writerow([f"where is the town number {number} of it ?", "LOC"])
            writer.writerow([f"how many towns are there near {number} ?", "NUM"])
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in ("ulmfit fit --data reviews.csv --output-dir runs/reviews",
                     "ulmfit fit --data questions.csv --output-dir runs/questions",
                     "ulmfit fit --data reviews.csv --output-dir runs/backwards --backwards"):  # fmt: skip
            assert cli.main([*shortened(line).split()[1:], "--no-baseline"]) == 0
        shutil.copytree("runs/reviews/lm", "runs/lm")
        shutil.copytree("runs/reviews/clf", "runs/clf")
        for task in ("lm", "clf"):
            assert cli.main(f"export --model runs/{task} --to fastai --output fastai-{task}".split()) == 0
    finally:
        os.chdir(before)
    for task, weights, vocabulary in (("lm", "wt103.pth", "itos_wt103.pkl"), ("clf", "clf.pth", "vocab.pkl")):
        shutil.copy(next((folder / f"fastai-{task}").rglob("*.pth")), folder / weights)
        shutil.copy(next((folder / f"fastai-{task}").rglob("*.pkl")), folder / vocabulary)
    return folder


@long_tier("that they can be typed (tests/test_docs.py), and each command in its own tests")
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page, job, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    shutil.copytree(job, folder, symlinks=True)
    for name in ("launch", "train_lm.py", "train_clf.py"):  # the clone that the user stands in
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in (("ulmfit", "ulmfit"), ("accelerate", "accelerate.commands.accelerate_cli"),
                         ("torchrun", "torch.distributed.run")):  # fmt: skip
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with hub_stand_in(monkeypatch, tmp_path / "hub"):
        TextClassifier.from_pretrained("runs/reviews").push_to_hub("me/reviews")
        LanguageModel.from_pretrained("runs/reviews/lm").push_to_hub("me/language-model")
        for line in commands(page):
            if elsewhere(line):
                continue
            words = line.split()
            if "--output-dir" in words:  # made by the fixture for pages that come later
                shutil.rmtree(words[words.index("--output-dir") + 1], ignore_errors=True)
            elif "train_clf.py" in words:  # its default
                shutil.rmtree("runs/clf", ignore_errors=True)
            asks_for_more = " sweep " in line and importlib.util.find_spec("optuna") is None
            wanted = 2 if asks_for_more else 0
            if words[0] == "ulmfit":  # in this process, which has torch
                code = cli.main(shlex.split(shortened(line))[1:])
                out, err = capsys.readouterr()
            else:
                done = subprocess.run(["bash", "-c", shortened(line)], env=os.environ | path, capture_output=True,
                                      text=True, timeout=900)  # fmt: skip
                code, out, err = done.returncode, done.stdout, done.stderr
            assert code == wanted, f"{line}\n{out}\n{err}"
            assert "optuna" in err if asks_for_more else out or "--output" in words, f"{line} prints nothing"
            for option in ("--output", "--html", "--output-dir"):
                if option in words and not asks_for_more:
                    assert Path(words[words.index(option) + 1]).exists(), line
