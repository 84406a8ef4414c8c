"""A user's mistakes: exit code 2, one sentence that names the thing and the cure, and nothing written.

Most run the training functions in this process; five run the commands. Mistakes of formats and columns that need no
training are in data/test_sources.py, damaged model folders in model/test_pretrained.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ulmfit
from tests.tiers import LONG
from ulmfit import fit, train_classifier, train_language_model
from ulmfit.cli.options import parse
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig
from ulmfit.run.lock import DirectoryLock

ROOT = Path(ulmfit.__file__).parents[1]
SCRIPTS = {"lm": (LMConfig, train_language_model), "clf": (ClassifierConfig, train_classifier), "fit": (FitConfig, fit)}
ENGLISH = "One film after another, and number {} was the best of them"
TINY = "--preset tiny --max-steps 2 --batch-size 4 --bptt 10"


@pytest.fixture
def place(tmp_path, monkeypatch, reviews, runs):
    """The folder that a case runs in, with the things that cases name."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(reviews, "reviews.csv")
    Path("empty.csv").touch()
    table("one_class.csv", [(ENGLISH.format(number), "pos") for number in range(40)])
    table("unseen.csv", [("a film", "pos"), ("another", "meh")])
    table("blank.csv", [(" ", "pos"), ("", "neg")] * 10)
    table("short.csv", [("a film", "pos"), ("no film", "neg")])
    table("both.csv", [(ENGLISH.format(number), "pos") for number in range(40)], "text,part")
    lines("null.jsonl", [{"text": None if number % 10 == 0 else ENGLISH.format(number)} for number in range(40)])
    Path("nan.jsonl").write_text('{"text": NaN}\n' * 5 + '{"text": "a film"}\n' * 35)
    Path("cp1251.csv").write_bytes(b"text\n" + "\u0445\u043e\u0440\u043e\u0448\u043e\n".encode("cp1251") * 40)
    Path("not.json").write_text("{")
    Path("list.json").write_text('{"options": [1]}')
    Path("tokenizer.json").write_text('{"version": "1.0"}')
    Path("part").mkdir()
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    return SimpleNamespace(path=tmp_path, **vars(runs))


def table(path, rows, header="text,label"):
    Path(path).write_text(header + "\n" + "".join(f'"{text}",{label}\n' for text, label in rows))


def lines(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def contents(folder):
    """Every file below a folder with its content, every folder with None."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


def attempt(words, place):
    """Parse and train: `words` begins with the script's name; {lm} and {clf} are the finished runs."""
    script, *argv = words.format(**vars(place)).split()
    kind, train = SCRIPTS[script]
    return train(parse(kind, argv))


# What must stand in the sentence: the thing, and the cure.
CASES = {
    # The corpus
    "missing path": ("lm --data revews.csv", r"no file or folder revews\.csv .*nearest is reviews\.csv"),
    "missing folder": ("lm --data there/reviews.csv", r"no file .*there does not exist"),
    "empty file": ("lm --data empty.csv", r"empty\.csv is empty"),
    "wrong text column": ("lm --data reviews.csv --text-column body", r"no column body.* text, label"),
    "wrong label column": ("clf --data reviews.csv --label-column class", r"no column class.* text, label"),
    "no label column": ("clf --data null.jsonl", r"no column label.*--label-column"),
    "one class": ("clf --data one_class.csv", r"one_class\.csv .*label pos.*two classes"),
    "null texts": ("lm --data null.jsonl --valid 0.5", r"null\.jsonl has \d+ rows at fault .*no text \d+.*5%.*clean"),
    "NaN texts": ("lm --data nan.jsonl --valid short.csv", r"nan\.jsonl has 5 rows at fault .*no text 5.*clean"),
    "NaN texts in a stream": ("lm --data nan.jsonl --valid short.csv --streaming --max-steps 4", r"5 rows at fault"),
    "invalid UTF-8": ("lm --data cp1251.csv --valid reviews.csv", r"cp1251\.csv .*undecodable 40.*--encoding"),
    "all empty": ("lm --data blank.csv --valid reviews.csv", r"blank\.csv has 20 rows at fault .*empty 20"),
    "label unseen in training": ("clf --data reviews.csv --valid unseen.csv", r"'meh' in the valid rows of unseen"),
    "hub name offline": ("lm --data someone/something", r"someone/something is no file.*hub cannot be reached.*check"),
    "valid is two things": ("lm --data both.csv --valid part", r"--valid part is a path and a column.*\./part"),
    "valid is nothing": ("lm --data reviews.csv --valid nowhere", r"--valid nowhere is no fraction, no path"),
    "valid out of range": ("lm --data reviews.csv --valid 1.5", r"--valid 1\.5 is no fraction between 0 and 1"),
    "valid among train": ("lm --data reviews.csv --valid reviews.csv", r"reviews\.csv is among the training files"),
    "too little text": ("lm --data short.csv --valid reviews.csv --batch-size 64", r"64 rows.*lower --batch-size"),
    # Where it is to be written
    "output below a file": ("lm --output-dir reviews.csv/out", r"reviews\.csv/out cannot be written.*another"),
    "output that cannot be made": ("lm --data reviews.csv --preset tiny --output-dir /proc/ulmfit",
                                   r"/proc/ulmfit cannot be written.*name a directory"),
    "output is a file": ("lm --output-dir reviews.csv", r"--output-dir reviews\.csv is a file.*directory"),
    "output holds other files": ("lm --output-dir full", r"--output-dir full holds files.*new directory"),
    "output of another run": (f"lm --data reviews.csv {TINY} --seed 7 --output-dir copy_lm",
                              r"copy_lm holds another run .*seed: 0 -> 7.*--resume never"),
    "output of the other script": (f"clf --data reviews.csv {TINY} --output-dir copy_lm", r"copy_lm holds another run"),
    "output's config damaged": (f"lm --data reviews.csv {TINY} --output-dir damaged_run",
                                r"damaged_run holds another run .*--resume never"),  # as its checkpoint knows
    # Options
    "unknown option": ("lm --batchsize 4", r"no option --batchsize.*mean --batch-size"),
    "option of the other script": ("clf --init x", r"no option --init"),
    "a number that is none": ("lm --batch-size many", r"--batch-size many.*whole number"),
    "a preset that is none": ("lm --preset huge", r"--preset huge.*one of tiny, small, base, blog, wide"),
    "an option without value": ("lm --lr --seed 1", r"--lr needs a value"),
    "a path without option": ("lm reviews.csv", r"reviews\.csv belongs to no option.*--data reviews\.csv"),
    "negative batch size": ("lm --batch-size -4", r"--batch-size is -4.*at least 1"),
    "negative dropout": ("lm --drop-mult -0.1", r"--drop-mult is -0\.1.*0 or more"),
    "too much dropout": ("lm --data reviews.csv --preset tiny --drop-mult 5", r"--drop-mult 5 makes a dropout probability of 1\.25; give less than 4"),
    "no room for pieces": ("lm --data reviews.csv --preset tiny --init none --subword unigram --vocab-size 15",
                           r"--vocab-size 15 has no room for the characters of the texts; give a larger one"),
    "other rules than those of the start": ("lm --data reviews.csv --init {lm} --rules fastai2",
                                            r"brings the text rules fastai1 and --rules names fastai2; leave out --rules"),
    "endless decay": ("lm --weight-decay inf", r"--weight-decay is inf; give at most"),
    "no learning rate": ("lm --lr 0", r"--lr is 0; give a number above 0"),
    "no number as rate": ("clf --lr nan", r"--lr is nan.*above 0"),
    "a huge seed": ("clf --seed 99999999999999999999", r"--seed is 1\.0+e\+20; give at most"),
    "no steps": ("clf --max-steps 0", r"--max-steps is 0.*at least 1"),
    "label smoothing of 1": ("clf --label-smoothing 1", r"--label-smoothing is 1; .*below 1"),
    "epochs and steps": ("lm --epochs 2 --max-steps 9", r"--epochs and --max-steps.*one of them"),
    "stream without end": ("lm --data reviews.csv --streaming", r"--streaming .*--max-steps"),
    "stream with jitter": ("lm --streaming --max-steps 9 --bptt-jitter", r"--bptt-jitter needs the token cache"),
    "a tokenizer that is trained and to be trained": (
        "lm --data reviews.csv --tokenizer {lm}/tokenizer.json --min-freq 1", r"--min-freq is for training .*one of them"),
    "the same at its default, as it was typed": (
        "lm --data reviews.csv --tokenizer {lm}/tokenizer.json --min-freq 2", r"--min-freq is for training .*one of them"),
    "the folder that the command runs in": ("lm --data reviews.csv --output-dir . --resume never", r"runs in, .*go to the folder above"),
    "the folder above it, for a job": ("fit --data reviews.csv --output-dir .. --resume never", r"runs in, .*go to the folder above"),
    "init and tokenizer": ("lm --init {lm} --tokenizer {lm}/tokenizer.json", r"--init .*--tokenizer.*one of them"),
    "too few sampled words": ("lm --sampled-softmax 10", r"--sampled-softmax is 10.*at least 64"),
    "more sampled words than there are": ("lm --sampled-softmax 50000",
                                          r"--sampled-softmax 50000.*vocabulary of \d+ words; give --sampled-softmax 0"),
    "subword and tokenizer": ("lm --subword bpe --tokenizer {lm}/tokenizer.json", r"--subword.*--tokenizer.*one"),
    "encoder and subword": ("clf --encoder {lm} --subword bpe", r"--encoder brings.*leave out --subword"),
    "another preset": ("clf --data reviews.csv --encoder {lm} --preset small",
                       r"--preset small is 200/512/2 .*64/128/2.*leave out --preset"),
    "encoder the other way": ("clf --data reviews.csv --encoder {lm} --backwards", r"reads forwards.*leave out --back"),
    "init the other way": ("lm --data reviews.csv --init {lm} --backwards", r"reads forwards.*leave out --backwards"),
    "recipe none": ("lm --recipe none --epochs 1", r"--recipe none.*give --lr"),
    "rows that cannot be dealt": ("lm --data reviews.csv --batch-size 6 --micro-batches 4",
                                  r"--batch-size 6 .*1 processes x 4 micro-batches.*multiple of 4"),
    "config missing": ("lm --config nowhere.json", r"--config nowhere\.json cannot be read.*config\.json"),
    "config that is no JSON": ("lm --config not.json", r"--config not\.json is not the config\.json of a run"),
    "config without options": ("lm --config list.json", r"--config list\.json is not the config\.json of a run"),
    "config of a model": ("lm --config {lm}/model", r"--config .*model/config\.json is not the config\.json of a run"),
    "config of the other script": ("clf --config {lm}/config.json", r"init.*does not know.*script that wrote it"),
    "config without a name": ("lm --config", r"--config needs a value.*config\.json"),
    # Models and tokenizers
    "no model": ("clf --data reviews.csv --encoder nowhere", r"nowhere does not exist; give the output directory of a finished training"),
    "model not finished": ("clf --data reviews.csv --encoder unfinished", r"unfinished holds no model\.safetensors"),
    "classifier as encoder": ("clf --data reviews.csv --encoder {clf}", r"is a classifier.*language model"),
    "classifier to start from": ("lm --data reviews.csv --init {clf}", r"is a classifier.*language model"),
    "broken tokenizer": ("lm --data reviews.csv --tokenizer tokenizer.json", r"tokenizer\.json: .*no tokenizer\.json"),
    "broken tokenizer in a model": ("clf --data reviews.csv --encoder bad_tokenizer", r"bad_tokenizer/tokenizer\.json"),
    "vocabulary of another model": ("clf --data reviews.csv --encoder other_words",
                                    r"other_words/tokenizer\.json has other words.*put .* back"),
    "smaller vocabulary": ("clf --data reviews.csv --encoder fewer_words",
                           r"fewer_words/tokenizer\.json has \d+ words but the model \d+.*put .* back"),
    "broken weights": ("clf --data reviews.csv --encoder bad_weights", r"bad_weights/model\.safetensors cannot be"),
    "weights without vocabulary": ("lm --data reviews.csv --init alone.pth", r"alone\.pth needs its vocabulary"),
}  # fmt: skip
if not torch.cuda.is_available():
    CASES["fp16 without GPU"] = ("lm --data reviews.csv --precision fp16", r"--precision fp16 needs a GPU.*fp32")


def prepare(words, place):
    """Make the run and model folders that a case names."""
    copies = {"copy_lm": place.lm, "damaged_run": place.lm, "unfinished": place.lm} | dict.fromkeys(
        ("bad_tokenizer", "other_words", "fewer_words", "bad_weights"), place.lm / "model"
    )
    for name, source in copies.items():
        if name in words:
            shutil.copytree(source, name)
    with suppress(FileNotFoundError):
        os.truncate("bad_weights/model.safetensors", 1000)
    if "damaged_run" in words:
        Path("damaged_run/config.json").write_text("{")
    if "unfinished" in words:
        shutil.rmtree("unfinished/model")
    if "alone.pth" in words:
        Path("alone.pth").write_bytes(b"weights")
    if "bad_tokenizer" in words:
        Path("bad_tokenizer/tokenizer.json").write_text("{}")
    size = len(ulmfit.Tokenizer.from_file(place.lm / "tokenizer.json"))
    if "other_words" in words:
        ulmfit.Tokenizer.train([" ".join(f"word{n}" for n in range(size))] * 2, vocab_size=size).save(
            "other_words/tokenizer.json"
        )
    if "fewer_words" in words:
        ulmfit.Tokenizer.train(["a few words"] * 2).save("fewer_words/tokenizer.json")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_and_nothing_is_written(place, offline, name):
    words, sentence = CASES[name]
    if "/proc" in words and not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc")
    prepare(words, place)
    before, finished = contents("."), contents(place.lm) | contents(place.clf)
    with pytest.raises(UserError) as caught:
        attempt(words, place)
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert "\n" not in message
    assert contents(".") == before and contents(place.lm) | contents(place.clf) == finished


def test_a_run_that_another_process_writes(place):
    shutil.copytree(place.lm, "copy")
    again = json.loads(Path("copy/config.json").read_text())["options"]
    words = f"lm --config copy/config.json --output-dir copy --data {again['data']}"
    before = contents(".")
    held = DirectoryLock(Path("copy"))
    with pytest.raises(UserError, match=rf"copy is being written by process {os.getpid()} .*another --output-dir"):
        attempt(words, place)
    held.close()
    assert contents(".") == before
    assert attempt(words, place).state == "done"


def test_a_start_that_was_killed_is_no_foreign_directory(place):
    """What a kill before config.json leaves behind does not stand in the way of the next start."""
    Path("out").mkdir()
    Path("out/run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime("out/run.lock", (0, 0))
    for name in ("config.json.tmp", ".config.json.tmp-123-123"):  # of an earlier version, of this one
        Path("out", name).write_text("{")
    assert attempt(f"lm --data reviews.csv --output-dir out {TINY}", place).state == "done"


@pytest.mark.parametrize("script", ("lm", "clf"))
def test_a_few_rows_at_fault_are_skipped_counted_and_told(place, capsys, script):
    rows = [{"text": ENGLISH.format(number), "label": "np"[number % 2]} for number in range(100)]
    rows[3]["text"], rows[40]["text"], rows[41]["text"] = "", None, float("nan")
    lines("rows.jsonl", rows)
    lines("valid.jsonl", rows[50:60])
    result = attempt(f"{script} --data rows.jsonl --valid valid.jsonl --output-dir out {TINY}", place)
    assert result.state == "done"
    assert "left out: train no text 2, empty 1\n" in capsys.readouterr().out


def test_unlabelled_rows_are_skipped_by_the_classifier_alone(place, capsys):
    rows = [(ENGLISH.format(number), "np"[number % 2]) for number in range(100)]
    rows[3] = (rows[3][0], "")
    table("rows.csv", rows)
    assert attempt(f"clf --data rows.csv --valid 0.5 --output-dir clf {TINY}", place).state == "done"
    assert "unlabelled 1" in capsys.readouterr().out
    assert attempt(f"lm --data rows.csv --valid 0.5 --output-dir lm {TINY}", place).state == "done"
    assert "no row left out\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_document_of_two_million_characters_is_trained_on(place):
    long = " ".join("interminably" * 20 + "abcdefg"[number % 7] for number in range(8_300))  # no word repeated
    assert len(long) > 2_000_000
    table("long.csv", [(ENGLISH.format(number), "np"[number % 2]) for number in range(20)] + [(long, "n")])
    table("valid.csv", [(ENGLISH.format(number), "np"[number % 2]) for number in range(20)])
    assert attempt(f"lm --data long.csv --valid valid.csv --output-dir out {TINY}", place).state == "done"
    assert any(json.loads(line)["event"] == "train" for line in Path("out/metrics.jsonl").read_text().splitlines())
    tokens = ulmfit.Tokenizer.from_file("out/tokenizer.json").encode([long])[0]
    assert len(tokens) > 8_300  # all of it is read
    words = "--data long.csv --valid valid.csv --batch-size 30 --max-steps 1 --encoder out --bptt 40 --max-len 80"
    assert attempt(f"clf {words} --output-dir clf", place).state == "done"


# The commands themselves. Each mistake is also made in this process, above.

COMMANDS = {
    "missing path": ("train_lm.py", "--data revews.csv", r"no file or folder revews\.csv"),
    "unknown option": ("train_clf.py", "--batchsize 4", r"did you mean --batch-size\?"),
    "output of another run": ("train_lm.py", f"--data reviews.csv {TINY} --seed 7 --output-dir copy_lm",
                              r"seed: 0 -> 7"),
    "one class": ("train_clf.py", "--data one_class.csv", r"two classes"),
    "broken weights": ("train_clf.py", "--data reviews.csv --encoder bad_weights", r"model\.safetensors cannot be"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS if LONG else ["missing path", "unknown option", "broken weights"])
def test_the_commands_end_with_2_and_one_sentence(place, name):
    script, words, sentence = COMMANDS[name]
    prepare(words, place)
    before = contents(".")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words.split()], capture_output=True, text=True, timeout=200
    )
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("error: ") and re.search(sentence, last), last
    assert "Traceback" not in done.stderr + done.stdout
    assert contents(".") == before


def test_a_full_cache_is_the_users_to_cure(place, monkeypatch):
    """Also where the vocabulary, the first thing that goes there, does not fit."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="token cache cannot be written to .* [(]No space left on device[)]; free"):
            attempt(f"lm --data reviews.csv --output-dir crowded --cache-dir small {TINY}", place)
    assert not Path("crowded").exists()
    assert not [file for file in Path("small/tokenizers").iterdir()]
