"""Splits, labels, rows at fault and fingerprints of a corpus; formats and mistakes are in test_sources.py."""

from __future__ import annotations

import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import CSV, MODES, NUM_ROWS, TEXTS, jsonl, whole, write, write_acl
from ulmfit.data import corpus as corpora
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.errors import UserError

DATA = os.environ.get("ULMFIT_DATA") and os.path.abspath(os.environ["ULMFIT_DATA"])  # tests change the folder

pytestmark = pytest.mark.usefixtures("alone")


# Splits


def test_fraction_of_a_stream_depends_on_text_and_seed_alone():
    write("a.csv", CSV)
    lines = CSV.splitlines()
    write("b.csv", "\n".join([lines[0], *reversed(lines[1:])]) + "\n1,one more\n0,and another\n")
    sides = {}
    for name, seed in (("a.csv", 0), ("b.csv", 0), ("a.csv", 1)):
        corpus = open_corpus(name, task="lm", valid=0.3, seed=seed, streaming=True)
        sides[name, seed] = set(whole(corpus.splits["valid"])[0]) & set(TEXTS)
        assert sides[name, seed].isdisjoint(whole(corpus.splits["train"])[0])
    assert sides["a.csv", 0] == sides["b.csv", 0] != sides["a.csv", 1]
    assert 8 <= len(sides["a.csv", 0]) <= 28


@pytest.mark.parametrize("true, false", [("True", "False"), ("1", "0"), ("yes", "")])
def test_boolean_column(true, false):
    write("a.csv", "label,text,is_valid,held\n" + "".join(
        f"{n % 2},film {n},{false if n % 5 else true},{true if n < 4 else false}\n" for n in range(40)))  # fmt: skip
    assert whole(open_corpus("a.csv", task="clf").splits["valid"])[2] == list(range(0, 40, 5))
    corpus = open_corpus("a.csv", task="clf", valid="held")
    assert whole(corpus.splits["valid"])[2] == [0, 1, 2, 3] and len(whole(corpus.splits["train"])[2]) == 36


def test_named_split_and_path():
    for name in ("train", "test", "dev"):
        write(f"d/{name}.csv", CSV.replace("a film", f"a {name} film"))
    first = {name: whole(split)[0][0].split()[1] for name, split in open_corpus("d", task="clf").splits.items()}
    assert first == {"train": "train", "valid": "dev", "test": "test"}
    corpus = open_corpus("d", task="clf", valid="test")
    assert set(corpus.splits) == {"train", "valid"} and whole(corpus.splits["valid"])[0][0].startswith("a test")
    for path in ("d/test.csv", "./d/../d/test.csv"):  # it is the test split by another name
        corpus = open_corpus("d", task="clf", valid=path)
        assert set(corpus.splits) == {"train", "valid"} and corpus.valid_split == "test"
    corpus = open_corpus("d/train.csv", task="clf", valid="d/test.csv")
    assert whole(corpus.splits["valid"])[0][0].startswith("a test") and len(whole(corpus.splits["train"])[0]) == 60


def test_embedded_sample():
    corpus = open_corpus(None, task="clf")
    assert corpus.label_names == ["neg", "pos"]
    assert {name: len(whole(split, 500)[0]) for name, split in corpus.splits.items()} == {
        "train": 2000, "valid": 400, "test": 600}  # fmt: skip
    assert len(whole(open_corpus(None, task="lm").splits["train"], 500)[0]) == 5000


# Labels


@pytest.mark.parametrize("written, names", [
    (["10", "9", "2"], ["2", "9", "10"]), (["1.0", "0.0"], ["0", "1"]), (["b", "a ", "B"], ["B", "a", "b"]),
    (["True", "False"], ["False", "True"])])  # fmt: skip
def test_class_names_are_sorted(written, names):
    write("a.csv", "label,text\n" + "".join(f"{written[n % len(written)]},film {n}\n" for n in range(60)))
    corpus = open_corpus("a.csv", task="clf", valid=0.2)
    assert corpus.label_names == names
    _, labels, rows = whole(corpus.splits["train"])
    assert [names[label] for label in labels] == [
        written[row % len(written)].strip().removesuffix(".0") for row in rows]  # fmt: skip


def test_integers_and_their_texts_are_one_class():
    write("a.jsonl", "".join(f'{{"text": "film {n}", "label": {label}}}\n' for n in range(20)
                             for label in ("1", '"1"', "1.0", "0", "false")))  # fmt: skip
    assert open_corpus("a.jsonl", task="clf", valid=0.2).label_names == ["0", "1", "False"]


def test_labels_are_checked_as_texts_are():
    """Half of a surrogate pair is a fault; line breaks and escapes are a name."""
    rows = [
        "".join(f'{{"text": "film {n}", "label": "{label}"}}\n' for n in range(40))
        for label in ("a", "b\\n\\u001b[31m")
    ]
    write("a.jsonl", "".join(rows).encode() + b'{"text": "x", "label": "\\ud800"}\n')
    corpus = open_corpus("a.jsonl", task="clf", valid=write("v.jsonl", rows[0]))
    assert corpus.label_names == ["a", "b\n\x1b[31m"]
    assert len(whole(corpus.splits["train"])[0]) == 80 and corpus.splits["train"].skipped == {"undecodable": 1}
    write("v.jsonl", rows[1])
    write("c.jsonl", rows[0] + rows[0].replace('"a"', '"c"').replace("film", "show"))
    with pytest.raises(UserError) as caught:
        open_corpus("c.jsonl", task="clf", valid="v.jsonl")
    assert str(caught.value).isprintable()


def test_label_names_of_a_saved_model():
    write("a.csv", CSV)
    assert open_corpus("a.csv", task="clf", label_names=["2", "1", "0"]).label_names == ["2", "1", "0"]
    with pytest.raises(UserError, match="'0'.*not seen in training, which has neg, pos"):
        open_corpus("a.csv", task="clf", label_names=["neg", "pos"])
    with pytest.raises(UserError, match="'1'.*not seen in training, which has 0, 2"):
        whole(open_rows("a.csv", label_names=["0", "2"]))


def test_rows_for_prediction_keep_unlabelled_rows():
    write("a.csv", "label,text\n0,a\n-1,b\n,c\n1,d\n")
    assert [batch[:3] for batch in open_rows("a.csv", label_names=["0", "1"]).batches()] == [
        (["a", "b", "c", "d"], [0, -1, -1, 1], [0, 1, 2, 3])]  # fmt: skip
    write_acl("acl", 5)
    texts, labels, rows = whole(open_rows("acl", label_names=["neg", "pos"]), 100)
    assert labels == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5 + [-1] * 5 and rows == list(range(25))
    assert whole(open_rows("acl", split="test"))[0] == texts[10:20]


# Rows at fault


@MODES
def test_faults_are_skipped_and_counted(streaming):
    bad = '{"text": "a lone \\ud800 surrogate", "label": 1}\n{"text": null, "label": 1}\n{"text": " ", "label": 0}\n'
    bad += '{"text": 3, "label": 0}\n{"text": "unlabelled", "label": -1}\n{"label": 1}\n{broken\n'
    write("a.jsonl", (jsonl() * 5 + bad).encode() + b'{"text": "bad \xff", "label": 0}\n')
    corpus = open_corpus("a.jsonl", task="clf", valid=write("v.csv", CSV), streaming=streaming, unlabelled="-1")
    split = corpus.splits["train"]
    for _ in range(2):  # counted anew in every pass
        texts, _, rows = whole(split)
        assert texts == TEXTS * 5 and rows == list(range(300))
        assert split.skipped == {"undecodable": 2, "torn": 1, "no text": 3, "empty": 1, "unlabelled": 1}
        assert split.num_rows == 308


def test_undecodable_rows_of_every_reader():
    write("a.csv", CSV.encode() + b"1,bad \xff\xfe byte\n")
    write("a.txt", "\n".join(TEXTS).encode() + b"\nbad \xff\n")
    raw = pa.array([*(text.encode() for text in TEXTS), b"bad \xff"], pa.binary())
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])}), "a.parquet")
    for number, text in enumerate(TEXTS):
        write(f"docs/{number:02}.txt", text)
    write("docs/99.txt", b"bad \xff")
    for data in ("a.csv", "a.txt", "a.parquet", "docs"):
        split = open_rows(data)
        assert whole(split)[0] == TEXTS and split.skipped == {"undecodable": 1}, data


def test_too_many_faults():
    write("a.csv", CSV + "1,\n" * 3)
    split = open_rows("a.csv")
    assert len(whole(split)[0]) == NUM_ROWS and split.skipped == {"empty": 3}  # 3 of 63: 4.8 %
    write("b.csv", CSV + "1,\n" * 4)
    split = open_rows("b.csv")
    with pytest.raises(UserError, match=r"b.csv has 4 rows at fault among the 64 .*\(empty 4\), more than 5%"):
        whole(split)
    write("c.csv", "text,title\n" + '" ",x\n' * 3)
    with pytest.raises(UserError, match="3 rows at fault among the 3"):
        whole(open_rows("c.csv"))


def test_a_very_long_document_is_read():
    text = "word " * 400_000 + "end"
    write("a.csv", f"label,text\n1,{text}\n0,short\n1,film\n0,other\n")
    assert whole(open_rows("a.csv"))[0][0] == text


# Fingerprints and the cache of `datasets`


def test_a_changed_file_is_read_again():
    write("a.csv", CSV)
    before = open_corpus("a.csv", task="lm").splits["train"]
    write("a.csv", CSV.replace("a film", "a show"))
    os.utime("a.csv", (1_000_000_000, 1_000_000_000))
    after = open_corpus("a.csv", task="lm").splits["train"]
    assert before.fingerprint != after.fingerprint
    assert all(text.startswith("a show") for text in whole(after)[0])


def test_fingerprint_follows_what_is_read():
    write("a.csv", CSV)
    write("copy/a.csv", CSV)
    os.utime("copy/a.csv", (1_000_000_000, 1_000_000_000))

    def fingerprint(data="a.csv", task="clf", split="train", **options):
        return open_corpus(data, task=task, **options).splits[split].fingerprint

    first = fingerprint()
    assert first == fingerprint("copy/../a.csv") == fingerprint("copy/a.csv") != fingerprint(streaming=True)
    write("v.csv", CSV.replace("a film", "a show"))
    assert fingerprint(valid="v.csv") == fingerprint(valid="v.csv", streaming=True)
    others = [fingerprint(split="valid"), fingerprint(seed=1), fingerprint(valid=0.2), fingerprint(task="lm"),
              fingerprint(label_names=["1", "0"]), fingerprint(task="lm", text_column="label")]  # fmt: skip
    assert len({first, *others}) == len(others) + 1


def test_batches_are_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr("ulmfit.data.shards.CHUNK", 200)
    write("a.csv", CSV)
    batches = list(corpora.open_rows("a.csv").batches(1000))
    assert len(batches) > 5 and [text for batch in batches for text in batch.texts] == TEXTS


# Real data


@pytest.mark.skipif(not DATA, reason="ULMFIT_DATA is not set")
def test_imdb_sample():
    corpus = open_corpus(f"{DATA}/imdb_sample/texts.csv.xz", task="clf")
    assert corpus.label_names == ["negative", "positive"]
    assert {name: len(whole(split, 1000)[0]) for name, split in corpus.splits.items()} == {"train": 800, "valid": 200}


@pytest.mark.skipif(not DATA, reason="ULMFIT_DATA is not set")
def test_wikitext_2():
    corpus = open_corpus(f"{DATA}/wikitext-2", task="lm", streaming=True)
    assert {name: len(whole(split, 5000)[0]) for name, split in corpus.splits.items()} == {
        "train": 23_767, "valid": 2_461, "test": 2_891}  # fmt: skip


@pytest.mark.skipif(not DATA, reason="ULMFIT_DATA is not set")
def test_imdb():
    corpus = open_corpus(f"{DATA}/imdb", task="clf", valid="test", streaming=True)
    assert corpus.label_names == ["0", "1"]
    _, labels, rows = whole(corpus.splits["train"], 5000)
    assert Counter(labels) == {0: 12_500, 1: 12_500} and rows == list(range(25_000))
