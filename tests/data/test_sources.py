"""Corpora of every format and layout, and what a user's mistake in naming or dividing them gets."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections import Counter
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import CSV, LABELS, MODES, NUM_ROWS, TEXTS, Hub, jsonl, whole, write, write_acl
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import unread_beside
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


# Formats


TSV = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in zip(LABELS, TEXTS, strict=True))
FORMATS = {
    "a.csv": CSV.encode(), "bom.csv": b"\xef\xbb\xbf" + CSV.encode(), "crlf.csv": CSV.replace("\n", "\r\n").encode(),
    "odd[1] name.csv": CSV.encode(), "a.tsv": TSV.encode(), "a.csv.gz": gzip.compress(CSV.encode()),
    "a.csv.xz": lzma.compress(CSV.encode()), "a.csv.bz2": bz2.compress(CSV.encode()),
    "a.jsonl": jsonl().encode(), "a.jsonl.gz": gzip.compress(jsonl().encode()),
}  # fmt: skip


@MODES
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, streaming):
    write(name, FORMATS[name])
    corpus = open_corpus(name, task="clf", streaming=streaming)
    assert corpus.label_names == ["0", "1"] and corpus.text_columns == ["text"] and corpus.label_column == "label"
    read = {}
    for split in ("train", "valid"):
        found, labels, rows = whole(corpus.splits[split])
        assert rows == sorted(rows) and labels == [LABELS[row] for row in rows]
        assert found == [TEXTS[row] for row in rows]
        read[split] = set(rows)
    assert read["train"] | read["valid"] == set(range(NUM_ROWS)) and not read["train"] & read["valid"]
    assert 0 < len(read["valid"]) < 20


@MODES
def test_zstandard(streaming):
    zstandard = pytest.importorskip("zstandard")
    write("a.csv.zst", zstandard.compress(CSV.encode()))
    assert whole(open_rows("a.csv.zst", streaming=streaming))[0] == TEXTS


@MODES
def test_parquet_keeps_declared_class_names_and_their_order(streaming):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = {"text": TEXTS, "label": [-1, *LABELS[1:]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("a.parquet")
    corpus = open_corpus("a.parquet", task="clf", valid=0.3, streaming=streaming)
    assert corpus.label_names == ["pos", "neg"]
    texts, labels, numbers = whole(corpus.splits["train"])
    assert labels == [LABELS[number] for number in numbers] and texts == [TEXTS[number] for number in numbers]
    assert sum((split.skipped for split in corpus.splits.values() if split.num_rows), Counter()) <= Counter(
        {"unlabelled": 1})  # fmt: skip


@MODES
def test_lines_of_a_text_file_are_documents(streaming):
    lines = [f"line {number}" for number in range(50)]
    write("a.txt", "\n\n".join(lines) + "\n   \n")
    corpus = open_corpus("a.txt", task="lm", streaming=streaming)
    texts = whole(corpus.splits["train"])[0] + whole(corpus.splits["valid"])[0]
    assert sorted(texts) == sorted(lines)
    assert not corpus.splits["train"].skipped and corpus.label_names is None


@MODES
def test_files_of_a_folder_of_texts_are_documents(streaming):
    for number in range(40):
        write(f"docs/{number:02}.txt", f"document {number}\nand its second line")
    texts, labels, rows = whole(open_rows("docs", streaming=streaming))
    assert texts == [f"document {number}\nand its second line" for number in range(40)]
    assert labels is None and rows == list(range(40))


@MODES
def test_acl_imdb_layout(streaming):
    write_acl("acl")
    corpus = open_corpus("acl", task="clf", streaming=streaming)
    assert corpus.label_names == ["neg", "pos"] and set(corpus.splits) == {"train", "valid", "test"}
    for split in corpus.splits.values():
        texts, labels, _ = whole(split)
        assert all(text.split()[1] == corpus.label_names[label] for text, label in zip(texts, labels, strict=True))
        assert all(text.endswith("<br />\nsecond line") for text in texts)
    assert len(whole(corpus.splits["test"])[0]) == 60
    assert len(whole(corpus.splits["train"])[0]) + len(whole(corpus.splits["valid"])[0]) == 60

    lm = open_corpus("acl", task="lm", streaming=streaming)
    texts = whole(lm.splits["train"])[0] + whole(lm.splits["valid"])[0]
    assert Counter(text.split()[0] for text in texts) == {"train": 60, "unsup": 30}
    assert whole(lm.splits["train"])[1] is None

    blog = open_corpus("acl", task="lm", include_test=True, streaming=streaming)
    assert set(blog.splits) == {"train", "valid"}
    texts = whole(blog.splits["train"])[0] + whole(blog.splits["valid"])[0]
    assert Counter(text.split()[0] for text in texts) == {"train": 60, "unsup": 30, "test": 60}


def test_unsup_beside_train():
    write_acl("acl")
    Path("acl/train/unsup").rename("acl/unsup")
    texts = whole(open_corpus("acl", task="lm", valid="test").splits["train"])[0]
    assert Counter(text.split()[0] for text in texts) == {"train": 60, "unsup": 30}


def test_folders_and_globs_of_files_named_by_splits():
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"):
        write(f"wiki/{name}", f"{name} one\n{name} two\n")
    for data in ("wiki", "wiki/*.tokens"):
        corpus = open_corpus(data, task="lm")
        assert {name: whole(split)[0][0] for name, split in corpus.splits.items()} == {
            name: f"wiki.{name}.tokens one" for name in ("train", "valid", "test")}  # fmt: skip
    for part in range(3):
        write(f"parts/part-{part}.csv", CSV)
    assert whole(open_rows("parts/*.csv"))[0] == TEXTS * 3 == whole(open_rows("parts"))[0]
    assert whole(open_rows("parts"))[2] == list(range(3 * NUM_ROWS))
    assert len(whole(open_rows("parts/part-[01].csv"))[0]) == 2 * NUM_ROWS


@pytest.mark.parametrize("name", ["{}Data.csv", "{}set.csv", "my_{}_set.csv", "Kaggle{}Set.csv", "{}data-1.csv"])
def test_names_of_splits_in_one_word(name):
    """The rows of testData.csv were trained on."""
    for split in ("train", "test"):
        write(
            "d/" + name.format(split.title() if name.startswith("Kaggle") else split),
            CSV.replace("a film", f"a {split} film"),
        )
    found = {split: whole(part)[0][0].split()[1] for split, part in open_corpus("d", task="clf").splits.items()}
    assert found == {"train": "train", "valid": "train", "test": "test"}
    for other in ("dataset.csv", "data.csv", "latest.csv", "contrain.csv"):
        write(f"one/{other}", CSV)
    assert set(open_corpus("one", task="clf").splits) == {"train", "valid"}


def test_a_table_without_names_in_several_files():
    """A file of one line is no line of names."""
    write("n/a.csv", "".join(f"a film about number {n},{n % 2}\n" for n in range(40)))
    write("n/b.csv", "another film,1\n")
    assert len(whole(open_rows("n"))[0]) == 41
    assert len(whole(open_rows("n", file_by_file=True))[0]) == 41


def test_a_glob_may_name_the_validation_rows():
    write("t.csv", CSV)
    for number in range(2):
        write(f"held/{number}.csv", CSV.replace("a film", f"held {number}"))
    corpus = open_corpus("t.csv", task="clf", valid="held/*.csv")
    assert len(whole(corpus.splits["valid"])[0]) == 2 * NUM_ROWS and len(whole(corpus.splits["train"])[0]) == NUM_ROWS


def test_files_of_other_splits_beside_a_file_are_told():
    """Who names train.csv may think that test.csv beside it is read too."""
    Path("d").mkdir()
    for name in ("train.csv", "test.csv", "unsup.csv", "dev.csv.gz", "notes.md", "other.csv"):
        Path("d", name).write_text("text\na\n")
    [note] = unread_beside("d/train.csv", None)
    assert (
        note == "not read: dev.csv.gz, test.csv, unsup.csv beside d/train.csv; to use them, give the folder as --data"
    )
    [note] = unread_beside("d/train.csv", "d/../d/test.csv")
    assert "dev.csv.gz, unsup.csv beside" in note
    for data in ("d", "d/other.csv", "d/test.csv", "d/*.csv", "hub/train", None):
        assert unread_beside(data, None) == []


def test_several_columns():
    write("a.csv", "label,title,body\n" + "".join(f"{n % 2},title {n},body {n}\n" for n in range(40)) + "1,,last\n")
    texts, _, _ = whole(open_rows("a.csv", "title,body"))
    assert texts[0] == "xxfld 1 title 0 xxfld 2 body 0" and texts[-1] == "xxfld 1 xxfld 2 last"
    with pytest.raises(UserError, match="no column text; choose one of label, title, body by --text-column"):
        open_corpus("a.csv", task="clf")


def test_the_only_column_of_texts_is_found():
    write("a.csv", "id,stars,review,class\n" + "".join(f"{n},{n}.5,film {n},{'ab'[n % 2]}\n" for n in range(40)))
    corpus = open_corpus("a.csv", task="clf", label_column="class", valid=0.3)
    assert corpus.text_columns == ["review"] and corpus.label_names == ["a", "b"]


def test_nothing_is_guessed_of_csv_values():
    write("a.csv", 'label,text\n007,NA\n7,None\n007,null\n7,"two\nlines"\n')
    split = open_rows("a.csv", label_names=["007", "7"])
    assert whole(split)[:2] == (["NA", "None", "null", "two\nlines"], [0, 1, 0, 1])


# Mistakes


CASES = [
    ("missing.csv", {}, r"no file or folder missing.csv \(the nearest is missin.csv\)"),
    ("nodir/a.csv", {}, r"no file or folder nodir/a.csv \(the folder nodir does not exist\)"),
    ("*.zzz", {}, "no file matches"),
    ("empty.csv", {}, "empty.csv is empty"),
    ("header.csv", {}, "header.csv holds no rows, only column names"),
    ("blank.jsonl", {}, "blank.jsonl does not hold one JSON object a line"),
    ("array.jsonl", {}, "array.jsonl is no whole JSON array .it ends after row 1 without ].; write it again"),
    ("value.jsonl", {}, "value.jsonl holds neither an array of objects nor one object a line; write it as"),
    ("twice.csv", {}, "twice.csv names a column twice"),
    ("fields.csv", {}, "fields.csv has 3 fields in a line and 2 column names in its first"),
    ("ragged.csv", {}, "ragged.csv has 4 rows at fault among the 64 .*torn 4"),
    ("junk.parquet", {}, "junk.parquet cannot be read"),
    ("junk.csv.gz", {}, "junk.csv.gz cannot be read"),
    ("a.docx", {}, "a.docx is none of .csv"),
    ("nothing", {}, "folder nothing holds no"),
    ("mixed", {}, "mixed holds files of the kinds csv and jsonl"),
    ("odd", {}, "odd holds odd/b.csv beside files named by splits; rename it"),
    ("a.csv", {"text_column": "txt"}, "a.csv has no column txt; its columns are label, text"),
    ("a.csv", {"label_column": "y"}, "a.csv has no column y; its columns are label, text"),
    ("lines.txt", {}, "lines.txt has no column label; give a table with a column of labels, or lines of fastText"),
    ("numbers.parquet", {}, "column text of numbers.parquet holds int64, no text"),
    ("one_class.csv", {}, "all training rows of one_class.csv have the label 1; a classifier needs two"),
    ("svm.csv", {}, "column label of svm.csv has the labels -1, 1; add --unlabelled -1 if"),
    ("svm.csv", {"unlabelled": "-1"}, r"all training rows of svm.csv have the label 1 \(-1 means unlabelled\)"),
    ("unlabelled.csv", {}, "labels none of the training rows"),
    ("unseen.csv", {}, "label '3' in the valid rows of unseen.csv was not seen in training, which has 0, 1"),
    ("maybe.csv", {}, "column is_valid .* holds 'perhaps'; write true or false"),
    ("all.csv", {}, "the train split; the column is_valid is false in no row: write it in those to train with"),
    ("a.csv", {"valid": "1.5"}, "--valid 1.5 is no fraction between 0 and 1"),
    ("a.csv", {"valid": "held"}, "--valid held is no fraction, no path, none of the columns label, text and none of"),
    ("a.csv", {"valid": "train"}, "--valid train is the training split itself"),
    ("a.csv", {"valid": "a.csv"}, "--valid a.csv is among the training files"),
    ("a.csv", {"valid": "text"}, "--valid text is a path and a column; write ./text for the path"),
]


def write_mistakes() -> None:
    files = {
        "a.csv": CSV, "missin.csv": CSV, "empty.csv": "", "header.csv": "label,text\n", "blank.jsonl": "\n\n",
        "array.jsonl": '[\n{"text": "a"}', "value.jsonl": '{"a": 1,\n"b": {}}', "twice.csv": "text,text\na,b\n", "fields.csv": "label,text\n1,a,b\n",
        "ragged.csv": CSV + "1,a,b,c\n" * 4, "junk.parquet": "junk", "junk.csv.gz": b"\x1f\x8bjunk", "a.docx": "a",
        "mixed/a.csv": CSV, "mixed/b.jsonl": jsonl(), "odd/train.csv": CSV, "odd/b.csv": CSV, "lines.txt": "a\nb\n",
        "one_class.csv": "label,text\n1,a\n1,b\n", "unlabelled.csv": "label,text\n,a\n,b\n",
        "svm.csv": "label,text\n" + "".join(f"{n % 2 * 2 - 1},film {n}\n" for n in range(60)),
        "unseen.csv": "label,text,is_valid\n0,a,0\n1,b,0\n3,c,1\n", "text": "a path of this name",
        "all.csv": "label,text,is_valid\n0,a,true\n1,b,true\n",
        "maybe.csv": "label,text,is_valid\n0,a,perhaps\n1,b,no\n",
    }  # fmt: skip
    for name, content in files.items():
        write(name, content)
    Path("nothing").mkdir()
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), "numbers.parquet")


@pytest.mark.parametrize("data, options, message", CASES)
def test_mistakes(data, options, message):
    write_mistakes()
    for streaming in (False, True):
        with pytest.raises(UserError, match=message) as caught:
            for split in open_corpus(data, task="clf", streaming=streaming, **options).splits.values():
                whole(split)
        assert "\n" not in str(caught.value)


def test_hub_name_offline():
    with pytest.raises(UserError, match="stanfordnlp/imdb is no file or folder.*hub cannot be reached.*go on line"):
        open_corpus("stanfordnlp/imdb", task="clf")


def test_hub_splits_are_mapped(monkeypatch):
    """The hub's answer is stood in for by local data: names of splits, class names and the missing labels of unsup."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def load(revision, streaming):
        parts = {"train": LABELS, "test": LABELS, "unsupervised": [-1] * NUM_ROWS}
        return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": TEXTS, "label": labels}, features)
                                     for split, labels in parts.items()})  # fmt: skip

    hub = Hub(monkeypatch, load)
    corpus = open_corpus("owner/name:plain", task="clf", valid="test")
    assert corpus.label_names == ["neg", "pos"] and whole(corpus.splits["train"])[1] == LABELS
    assert len(whole(open_corpus("owner/name:plain", task="lm", valid="test").splits["train"])[0]) == 2 * NUM_ROWS
    assert set(hub.loaded) == {("owner/name", "plain", hub.newest)}


def test_a_data_set_of_the_hub_stays_at_its_revision(monkeypatch):
    """What is read is what the fingerprint names, also after the hub has gone on, and while it cannot be asked."""
    hub = Hub(monkeypatch, from_the_hub)
    first = open_corpus("owner/name", task="lm", valid="test")
    assert first.revision == hub.newest == "a" * 40
    hub.newest = "b" * 40
    newer = open_corpus("owner/name", task="lm", valid="test")
    assert newer.revision == "b" * 40 and newer.fingerprint != first.fingerprint
    for down in (False, True):
        hub.down = down
        again = open_corpus("owner/name", task="lm", valid="test", access=Access(revision="a" * 40))
        assert (again.revision, again.fingerprint) == (first.revision, first.fingerprint)
        assert whole(again.splits["train"])[0] == [f"{text} of a" for text in TEXTS]
        stream = open_corpus("owner/name", task="lm", valid="test", streaming=True, access=Access(revision="a" * 40))
        assert stream.fingerprint == first.fingerprint
        assert whole(stream.splits["train"])[0] == [f"{text} of a" for text in TEXTS]
    assert open_corpus("owner/name", task="lm", valid="test").revision == "b" * 40  # the newest in the cache
    with pytest.raises(UserError, match=f"local cache does not hold the revision {'c' * 40} of owner/name.*go on line"):
        open_corpus("owner/name", task="lm", access=Access(revision="c" * 40))


def from_the_hub(revision: str, streaming: bool):
    """Splits that say their revision, kept in the Arrow cache as `datasets` keeps those of the hub."""
    datasets = pytest.importorskip("datasets")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "owner___name", "default", "0.0.0", revision)
    if not folder.exists():
        for split in ("train", "test"):
            write(f"{revision}/{split}.csv", "text\n" + "".join(f'"{text} of {revision[0]}"\n' for text in TEXTS))
        files = {split: f"{revision}/{split}.csv" for split in ("train", "test")}
        Csv = import_module("datasets.packaged_modules.csv.csv").Csv
        builder = Csv(dataset_name="name", data_files=files, cache_dir=revision, hash=revision)
        builder.download_and_prepare()
        Path(builder.cache_dir).rename(folder.parent.mkdir(parents=True, exist_ok=True) or folder)
    module = "datasets.packaged_modules.cache.cache"
    kept = import_module(module).Cache(dataset_name="name", repo_id="owner/name", config_name="default",
                                       version="0.0.0", hash=revision)  # fmt: skip
    return kept.as_streaming_dataset() if streaming else kept.as_dataset()


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_packed_file_that_is_cut_short_is_refused(suffix, streaming):
    """Not read as a shorter corpus."""
    text = "".join(f'{{"text": "the film of number {number}"}}\n' for number in range(5000)).encode()
    zstandard = pytest.importorskip("zstandard")
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}[suffix]
    packed = pack(text)
    write(f"whole.jsonl{suffix}", packed + pack(b'{"text": "and one more"}\n'))
    assert len(whole(open_rows(f"whole.jsonl{suffix}", streaming=streaming))[0]) == 5001
    write(f"cut.jsonl{suffix}", packed[: len(packed) // 2])
    with pytest.raises(UserError, match=rf"cut.jsonl{suffix} cannot be read"):
        whole(open_rows(f"cut.jsonl{suffix}", streaming=streaming))
