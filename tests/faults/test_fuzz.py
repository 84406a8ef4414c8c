"""Damaged files: what reads them says so in one sentence, or gives what it gave before.

A fixed number of changes; ULMFIT_FUZZ=20000 for the long run. A failure names the seed and the change.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.batches.conftest import fakes  # noqa: F401  (a fixture)
from tests.faults.drill import Drill
from tests.faults.mutations import mutate
from tests.training.runs import metrics
from ulmfit.batches.cache import build_or_open
from ulmfit.cli import DONE, USER_ERROR
from ulmfit.data.fingerprint import Access, fingerprint
from ulmfit.errors import UserError
from ulmfit.model.fastai_format import load_fastai
from ulmfit.model.pretrained import load_model
from ulmfit.model.vocabulary_file import read_vocabulary
from ulmfit.run import checkpoint
from ulmfit.run.directory import read_stored
from ulmfit.run.metrics_file import cut_metrics
from ulmfit.run.status import read_status
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.result import read_metrics

LONG = int(os.environ.get("ULMFIT_FUZZ", "0"))
MANY, FEW = LONG // 10 or 40, LONG // 100 or 4


def damaged(pristine: Path, scratch: Path, number: int, names: str = "*"):
    """Yield (a copy with one file changed, what was changed) `number` times."""
    for seed in range(number):
        rng = random.Random(seed)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(pristine, scratch)
        file = rng.choice(sorted(path for path in scratch.rglob(names) if path.is_file()))
        yield scratch, f"seed {seed}, {mutate(file, rng)}"


def refused(action, what):
    """The result of an action, or None if it was refused in one sentence."""
    try:
        return action()
    except UserError as error:
        text = str(error)
        one = "\n" not in text and "; " in text and len(text) < 600
        assert one, f"{what}: {text[:600]}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error


def test_models(runs, tmp_path):
    counts = [0, 0]
    for pristine in (runs.lm / "model", runs.clf / "model"):
        for folder, what in damaged(pristine, tmp_path / "model", MANY):
            loaded = refused(lambda folder=folder: load_model(folder), what)
            counts[loaded is None] += 1
            if loaded is not None:
                net, tokenizer, _ = loaded
                assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values()), what
                assert refused(lambda used=tokenizer: used.encode("a film"), what) is not None, what
    assert min(counts) > 0


def test_checkpoints(tmp_path):
    states = {step: {"step": step, "model": {"a": torch.arange(20.0) + step}, "x": [None, 1.5]} for step in (2, 4)}
    for step, state in states.items():
        checkpoint.write(tmp_path / "whole", step, checkpoint.snapshot(state), keep=2)
    counts = {2: 0, 4: 0}
    for folder, what in damaged(tmp_path / "whole", tmp_path / "run", MANY * 2):
        newest = checkpoint.latest(folder, warn=lambda _: None)
        assert newest is not None, what
        state = refused(lambda newest=newest: checkpoint.load(newest), what)
        expected = states[state["step"]]
        assert torch.equal(state["model"]["a"], expected["model"]["a"]) and state["x"] == expected["x"], what
        counts[state["step"]] += 1
    assert min(counts.values()) > 0


@pytest.mark.slow
def test_token_caches(tmp_path, fakes):  # noqa: F811
    make_tokenizer, make_split, make_documents = fakes
    split = make_split(make_documents(40), labels=[n % 3 for n in range(40)])
    build_or_open(split, make_tokenizer(), tmp_path / "whole", with_labels=True)

    def read(folder):
        store = build_or_open(split, make_tokenizer(), folder, with_labels=True)
        assert store.labels.tolist() == split.labels and store.skipped == {}
        return [store.document(n).tolist() for n in range(40)], store.rows.tolist()

    for folder, what in damaged(tmp_path / "whole", tmp_path / "cache", MANY * 2, "*.*"):
        found = refused(lambda folder=folder: read(folder), what)
        if found is None and "rows.bin" not in what:
            found = read(folder)  # built anew
        assert found is None or found == (split.documents, list(range(0, 80, 2))), what


def test_hashes_of_files_and_vocabularies(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("one\ntwo\n")
    os.utime(corpus / "a.txt", (1e9, 1e9))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "itos.json").write_text(json.dumps([f"w{n}" for n in range(50)]))

    def read(folder):
        return fingerprint("text", [str(corpus / "a.txt")], None, Access(cache_dir=folder))

    expected = read(tmp_path / "whole")
    for folder, what in damaged(tmp_path / "whole", tmp_path / "cache", MANY, "*.json"):
        assert read(folder) == expected, what
        words = refused(lambda folder=folder: read_vocabulary(folder / "itos.json"), what)
        assert words is None or all(isinstance(word, str) for word in words), what


def test_files_of_fastai(tmp_path):
    (tmp_path / "whole").mkdir()
    words = [f"w{n}" for n in range(30)]
    sizes = {"0.encoder.weight": (30, 4), "0.encoder_dp.emb.weight": (30, 4), "1.decoder.weight": (30, 4)}
    sizes |= {"1.decoder.bias": (30,)}
    for layer, (hidden, given) in enumerate([(6, 4), (4, 6)]):
        sizes |= {
            f"0.rnns.{layer}.weight_hh_l0_raw": (4 * hidden, hidden),
            f"0.rnns.{layer}.module.weight_ih_l0": (4 * hidden, given),
            f"0.rnns.{layer}.module.bias_ih_l0": (4 * hidden,),
            f"0.rnns.{layer}.module.bias_hh_l0": (4 * hidden,),
        }
    state = {name: torch.ones(size) for name, size in sizes.items()}
    torch.save(state, tmp_path / "whole" / "model.pth")
    (tmp_path / "whole" / "itos.pkl").write_bytes(pickle.dumps(words))
    counts = [0, 0]
    for folder, what in damaged(tmp_path / "whole", tmp_path / "some", MANY):
        model = refused(lambda folder=folder: load_fastai(folder / "model.pth", folder / "itos.pkl"), what)
        counts[model is None] += 1
        assert model is None or all(torch.isfinite(tensor).all() for tensor in model.state.values()), what
    assert min(counts) > 0


def test_tokenizers(runs, tmp_path):
    (tmp_path / "whole").mkdir()
    shutil.copy(runs.lm / "tokenizer.json", tmp_path / "whole")
    for folder, what in damaged(tmp_path / "whole", tmp_path / "some", MANY):
        tokenizer = refused(lambda folder=folder: Tokenizer.from_file(folder / "tokenizer.json"), what)
        if tokenizer is not None:
            refused(lambda used=tokenizer: used.decode(used.encode("A film, <br /> 42")[0]), what)


def test_logs_and_settings_of_a_run(runs, tmp_path):
    (tmp_path / "whole").mkdir()
    for name in ("metrics.jsonl", "status.json", "config.json"):
        shutil.copy(runs.lm / name, tmp_path / "whole")
    for folder, what in damaged(tmp_path / "whole", tmp_path / "run", MANY * 2):
        status = refused(lambda folder=folder: (read_status(folder),), what)
        assert status is not None and (status[0] is None or isinstance(status[0], dict)), what
        assert refused(lambda folder=folder: read_metrics(folder), what) is not None, what
        assert refused(lambda folder=folder: cut_metrics(folder / "metrics.jsonl", 4), what) is not None, what
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["step"] <= 4, what
        refused(lambda folder=folder: read_stored(folder), what)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits_or_is_refused(reviews, tmp_path):
    """The whole command, on a directory with a checkpoint and on its caches."""
    drill = Drill(tmp_path, "lm", reviews)
    whole = tmp_path / "whole"
    assert drill.stopped(whole)
    outcomes = set()
    for folder, what in damaged(whole, tmp_path / "lm" / "place", FEW, "*.*"):
        code, errors = drill.run(folder / "run")
        assert code in (DONE, USER_ERROR) and "Traceback" not in errors, f"{what}\n{errors}"
        outcomes.add(code)
        if code == DONE:
            drill.check_equal(folder / "run", what)
        else:
            assert checkpoint.latest(folder / "run" / "checkpoints", warn=lambda _: None), what
            assert "; " in errors.splitlines()[-1], f"{what}\n{errors}"
    assert DONE in outcomes and metrics(drill.reference)
