"""What the console says: of the data, of stages, at the end, and never a private text."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

import ulmfit
from ulmfit import cli
from ulmfit.console import say, warnings_above_bars
from ulmfit.training.lr_finder import RangeTest

TINY = ["--preset", "tiny", "--recipe", "none", "--lr", "1e-3", "--max-steps", "2", "--batch-size", "8", "--bptt", "10"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main([str(word) for word in words]) == code
        run.out, run.err = capsys.readouterr()
        return run.out

    return run


def table(path, rows, header="text,label"):
    Path(path).write_text(header + "\n" + "".join(f"{text},{label}\n" for text, label in rows))


# The data


def test_the_data_are_described_in_two_lines(run):
    table("train.csv", [(f"one film {n}", "np"[n % 4 == 0]) for n in range(40)] + [("film", "")] * 60 + [("", "n")] * 2)
    table("valid.csv", [("one film", "n"), ("film", "n")])
    out = run("train-clf", "--data", "train.csv", "--valid", "valid.csv", "--output-dir", "clf", *TINY)
    assert (
        "data: train 40 rows (n 75%, p 25%), valid 2 rows (n 100%, p 0%); columns text, label\n"
        "texts: median 4 and longest 4 tokens; left out: train unlabelled 60, empty 2\n"
        "warning: no validation document of the class p; the scores do not tell how it is predicted\n"
    ) in out
    assert out.endswith(
        "the model is in clf/model; next: ulmfit predict --model clf --data new.csv --output labels.csv\n"
    )
    out = run("train-lm", "--data", "train.csv", "--valid", "valid.csv", "--output-dir", "lm", *TINY)
    assert "data: train 100 rows, valid 2 rows; column text\n" in out and "left out: train empty 2\n" in out
    assert out.endswith("next: ulmfit train-clf --encoder lm --data labelled.csv\n")
    run("train-lm", "--data", "train.csv", "--backwards", "--output-dir", "back", *TINY)
    out = run("train-lm", "--output-dir", "back")
    assert out.endswith("next: ulmfit train-clf --encoder back --data labelled.csv --backwards\n")


def test_a_class_with_few_documents_is_told(run):
    table("train.csv", [(f"one film {n}", ("rare" if n < 3 else "np"[n % 2])) for n in range(60)])
    shutil.copy("train.csv", "valid.csv")
    out = run("train-clf", "--data", "train.csv", "--valid", "valid.csv", "--output-dir", "clf", *TINY)
    assert "warning: fewer than 10 training documents of the class rare (3); it is hardly learnt\n" in out
    assert "no validation document" not in out


# Stages and the end


def test_stages_have_their_names_and_init_tells_what_carries_over(run, runs, reviews):
    more = ["--max-steps", "4", "--batch-size", "8", "--bptt", "20", "--log-every", "1"]
    out = run("train-clf", "--data", reviews, "--encoder", runs.lm, "--output-dir", "clf", *more)
    assert re.findall(r"^stage .*", out, re.MULTILINE) == [
        "stage 1 of 2, head: 1 steps, trains 1 of 4 layer groups, lr 1.0e-02",
        "stage 2 of 2, all groups: 3 steps, trains 4 of 4 layer groups, lr 5.0e-03",
    ]
    assert "stage head  loss" in out and "stage all groups  loss" in out and "stage 0" not in out
    lines = [json.loads(line) for line in Path("clf/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["event"] == "train"] == [0, 1, 1, 1]
    out = run("train-lm", "--data", reviews, "--init", runs.lm, "--output-dir", "lm", *more)
    words = len(ulmfit.Tokenizer.from_file(runs.lm / "tokenizer.json"))
    assert f"{words:,} of the {words:,} words of the vocabulary carry over their weights from the {words:,} " in out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_clears_the_bar_first():
    terminal = Terminal()
    with tqdm(total=3, file=terminal, mininterval=0) as bar:
        bar.update(1)
        say("a line", terminal)
        with warnings_above_bars():
            warnings.showwarning("a warning", UserWarning, "file.py", 3, terminal)
        bar.update(1)
    shown = terminal.getvalue()
    assert "\ra line\n" in shown and re.search(r"\r[^\r]*UserWarning: a warning\n", shown)


def test_the_rate_finder_speaks_of_lr():
    plain, staged = RangeTest(100), RangeTest(100, stage="head", last_stage=0.05)
    last = RangeTest(100, stage="last 3 groups")
    for test in (plain, staged, last):
        while test.record(3 / (1 + test.next_rate * 100) + test.next_rate):
            pass
    assert staged.suggestions == {rule: pytest.approx(rate / 20) for rule, rate in plain.suggestions.items()}
    assert staged.report().splitlines()[1:3] == [
        "  it trained the head, from the weights at the start",
        "  --lr is the rate of the last stage, 0.05 times the rate here, so these are values of --lr:",
    ]
    assert last.report().splitlines()[1] == "  it trained the last 3 groups of layers, from the weights at the start"
    assert staged.report().splitlines()[-1] == f"try --lr {plain.suggestions['valley'] / 20:.1e}"
    assert "stage" not in plain.report() + last.report() and "trained" not in plain.report()


# evaluate


@pytest.mark.slow
def test_evaluate_scores_the_splits_of_the_run(run, runs, reviews):
    for model in (runs.lm, runs.clf):
        scores = json.loads(run("evaluate", "--model", model))
        events = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
        trained = [line for line in events if line["event"] == "eval"][-1]
        assert scores["split"] == trained["split"] == "valid"
        assert scores["loss"] == pytest.approx(trained["loss"], rel=1e-5)
        assert json.loads(run("evaluate", "--model", model, "--split", "all"))["documents"] == 120
    run("evaluate", "--model", runs.clf, "--split", "test", code=2)
    assert "have no split test, only train, valid" in run.err
    shutil.copytree(runs.clf / "model", "alone")
    assert json.loads(run("evaluate", "--model", "alone"))["documents"] == 600  # the embedded sample's test split


def test_rows_with_an_unseen_label_can_be_left_out(run, runs):
    table("new.csv", [("good", "pos"), ("bad", "neg"), ("so so", "neutral"), ("none", "")])
    run("evaluate", "--model", runs.clf, "--data", "new.csv", code=2)
    assert "'neutral'" in run.err
    assert json.loads(run("evaluate", "--model", runs.clf, "--data", "new.csv", "--skip-unseen"))["documents"] == 2
    assert run.err == "skipped rows: 1 unlabelled, 1 unseen label\n"


# The command line


def test_version_and_names_that_are_nearly_right(run):
    assert run("--version") == f"ulmfit {ulmfit.__version__}\n"
    assert run().startswith("usage: ulmfit COMMAND")
    for name in ("train_clf", "Train-Clf", "trainclf", "train-cfl"):
        run(name, code=2)
        assert "did you mean train-clf?" in run.err
    run("train-clf", "--out-dir", "x", code=2)
    assert "there is no option --out-dir; did you mean --output-dir?" in run.err


def test_outside_the_environment_a_sentence_says_so():
    script = Path(ulmfit.__file__).parents[1] / "train_lm.py"
    # -S: without the folder of installed packages
    done = subprocess.run([sys.executable, "-S", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and "has no package" in done.stderr and done.stderr.count("\n") == 1, done.stderr


# Private texts

SECRET = "zzmarkerzz"
TEXT = f"{SECRET}0 the patient has said that {SECRET} is the name"


def private_files():
    texts = [f"{SECRET}{n} one film was said to be number {n} of {SECRET * 9}{n}" for n in range(40)]
    table("good.csv", [(text, "np"[n % 2]) for n, text in enumerate(texts)])
    table("headless.csv", [(text, text) for text in texts[1:]], header=f"{texts[0]},{texts[0]} again")
    table("unseen.csv", [(text, "np"[n % 2]) for n, text in enumerate(texts)] + [("x", f"{SECRET} label")])
    Path("broken.jsonl").write_text("".join(f'{{"text": "{text}", "label": "n"\n' for text in texts))
    Path("nested.jsonl").write_text("".join(json.dumps({"text": [text], "label": {text: 1}}) + "\n" for text in texts))
    Path("columns.jsonl").write_text(json.dumps({text: text for text in texts}) + "\n")
    table("truth.csv", [(text, text) for text in texts], header="text,is_valid")
    table("two.csv", [(text, texts[0]) for text in texts])
    Path("latin.csv").write_bytes(("text,label\n" + f"caf\xe9 {SECRET},n\n" * 30).encode("latin-1"))


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_private")
def test_no_output_holds_a_private_text(tmp_path, monkeypatch):
    """With --no-samples, of the trainings; of all other commands, texts are shown only where that is their purpose."""
    monkeypatch.chdir(tmp_path)
    private_files()
    codes = []
    for words in (
        "train-clf --data good.csv --valid 0.5",
        "train-clf --data good.csv --label-column text",
        "train-clf --data good.csv --valid unseen.csv",
        "train-lm --data good.csv --text-column body",
        "train-lm --data good.csv --valid text",
        "train-clf --data headless.csv",
        "train-lm --data headless.csv",
        "train-clf --data broken.jsonl",
        "train-lm --data nested.jsonl",
        "train-clf --data nested.jsonl",
        "train-lm --data columns.jsonl",
        "train-lm --data truth.csv --valid is_valid",
        "train-clf --data two.csv",
        "train-clf --data latin.csv",
    ):
        codes.append(cli.main([*words.split(), "--no-samples", "--output-dir", "run", *TINY]))
        for path in Path("run").rglob("*"):  # the vocabulary is of words and no log
            assert path.is_dir() or "tokenizer" in path.name or SECRET.encode() not in path.read_bytes(), (words, path)
        shutil.rmtree("run", ignore_errors=True)
    assert codes[0] == 0 and set(codes) == {0, 2} and codes.count(2) > 8


@pytest.fixture
def nothing_private(capsys):
    yield
    out, err = capsys.readouterr()
    assert SECRET not in out + err


@pytest.mark.usefixtures("nothing_private")
def test_a_failure_shows_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private_files()

    def fail(*_):
        raise ValueError(TEXT)

    monkeypatch.setattr("ulmfit.training.loop.Loop._step", fail)
    argv = ["train-lm", "--data", "good.csv", "--no-samples", "--output-dir", "run", *TINY]
    assert cli.main(argv) == 1
    assert SECRET not in Path("run/status.json").read_text()


def test_other_commands_cut_what_they_quote(run, runs):
    long = TEXT * 5
    table("long.csv", [(long, long)] * 4)
    table("head.csv", [(long, long)], header=f"{long},{long} again")
    for words in (
        ["evaluate", "--data", "long.csv"],
        ["evaluate", "--data", "head.csv"],
        ["predict", "--data", "head.csv"],
    ):
        run(*words, "--model", runs.clf, code=2)
        assert "patient has said that zz" not in run.err and len(run.err) < 500
    run("tokenizer", "--data", "head.csv", code=2)
    assert len(run.err) < 500
