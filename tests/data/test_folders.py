"""Folders as users have them: leftovers, links, pipes, binaries, and folders that may be classes or splits."""

from __future__ import annotations

import os
import random
import shutil
import socket
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.data.files import MODES, whole, write, write_acl
from ulmfit.data import folders
from ulmfit.data.corpus import Corpus, open_corpus, open_rows
from ulmfit.errors import UserError, one_line

pytestmark = pytest.mark.usefixtures("alone")


def documents(folder: str, number: int = 12, kind: str = ".txt") -> None:
    """Texts that name their folder."""
    for place in range(number):
        write(f"{folder}/{place:02}{kind}", f"text {place} of {folder.replace('/', ' ')}")


def texts_of(data: str, task: str = "clf", **options) -> list[str]:
    options = {"streaming": True} | options
    return sorted(text for split in open_corpus(data, task=task, **options).splits.values() for text in whole(split)[0])


def notes_of(data: str, task: str = "clf") -> str:
    return " | ".join(open_corpus(data, task=task, streaming=True).notes)


# What is left out


LEFTOVERS = ["._00.txt", ".#00.txt", "#00.txt#", "00.txt~", ".DS_Store", "Thumbs.db", "desktop.ini", "~$00.txt", ".x.txt",
             ".ipynb_checkpoints/00-checkpoint.txt", "__MACOSX/00.txt", ".git/x.txt", "00.txt.swp", "@eaDir/00.txt",
             "Icon\r", "$RECYCLE.BIN/1.txt", "lost+found/1.txt", "__pycache__/a.txt"]  # fmt: skip


@MODES
@pytest.mark.parametrize("kind", ["classes", "splits", "documents", "tables"])
def test_leftovers_are_left_out_and_counted(kind, streaming):
    task = "lm" if kind == "documents" else "clf"
    places = {"classes": ["d", "d/neg"], "splits": ["d", "d/train/pos", "d/test"], "documents": ["d"], "tables": ["d"]}
    if kind == "tables":
        write("d/a.csv", "text,label\n" + "".join(f"film {n},{n % 2}\n" for n in range(30)))
    for place in {"classes": ("neg", "pos"), "splits": ("train/neg", "train/pos", "test/neg", "test/pos")}.get(
        kind, ()
    ):
        documents(f"d/{place}")
    if kind == "documents":
        documents("d")
    clean = open_corpus("d", task=task, streaming=streaming)
    expected = texts_of("d", task, streaming=streaming)
    for place in places[kind]:
        for name in LEFTOVERS:
            write(f"{place}/{name}", b"\x00\x05\x16\x07 Mac OS X \xff")
    corpus = open_corpus("d", task=task, streaming=streaming)
    assert texts_of("d", task, streaming=streaming) == expected and corpus.fingerprint == clean.fingerprint
    assert not clean.notes and len(corpus.notes) == 1
    hidden = sum(name.startswith(".") for name in LEFTOVERS)
    count = len(places[kind])
    assert f"hidden files {count * hidden:,} (" in corpus.notes[0]
    assert f"leftovers of editors and systems {count * (len(LEFTOVERS) - hidden):,} (" in corpus.notes[0]


def test_a_glob_leaves_out_the_same():
    documents("d")
    write("d/~$00.txt", "left")
    os.symlink("nowhere", "d/dangling.txt")
    os.mkfifo("d/pipe.txt")
    corpus = open_corpus("d/*.txt", task="lm")
    assert len(texts_of("d/*.txt", "lm")) == 12
    assert corpus.notes == ["d/*.txt: left out: leftovers of editors and systems 1 (d/~$00.txt), dangling links, pipes, "
                            "sockets and devices 2 (d/dangling.txt, d/pipe.txt)"]  # fmt: skip


@pytest.mark.parametrize("where", ["d", "d/neg", "d/neg/deep"])
def test_what_is_no_file_is_left_out_and_counted(where):
    for name in ("neg", "pos", "neg/deep"):
        documents(f"d/{name}")
    os.mkfifo(f"{where}/pipe.txt")
    os.symlink("/dev/zero", f"{where}/zero.txt")
    os.symlink("nowhere", f"{where}/dangling.txt")
    os.symlink("loop.txt", f"{where}/loop.txt")
    os.symlink("..", f"{where}/up") if where != "d" else os.symlink(".", f"{where}/up")
    os.symlink(os.path.abspath("d/pos"), f"{where}/twice")
    write(f"{where}/folder.txt/x.txt", "in a folder named like a file")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"{where}/socket.txt")
    (note,) = open_corpus("d", task="clf").notes
    assert "pipes, sockets and devices 3" in note and "dangling links 2" in note
    assert "links back into the folder 2" in note and "folders named like files 1" in note
    assert len(texts_of("d")) == 36


def test_links_to_other_places_are_followed():
    documents("elsewhere/neg")
    documents("elsewhere/pos")
    write("one.txt", "a linked file")
    os.makedirs("d")
    for name in ("neg", "pos"):
        os.symlink(os.path.abspath(f"elsewhere/{name}"), f"d/{name}")
    os.symlink(os.path.abspath("one.txt"), "elsewhere/neg/one.txt")
    os.makedirs("d/.versions/2")
    Path("d/.versions/2/x.txt").write_text("a version")
    os.symlink(".versions/2", "d/new")
    assert len(texts_of("d", "lm")) == 26
    os.symlink("d", "linked")
    assert len(texts_of("linked", "lm")) == 26


def test_files_beside_class_folders_are_named_and_not_read():
    write_acl("acl")
    write("acl/imdb.vocab", "the")
    (note,) = open_corpus("acl", task="clf").notes
    assert "files beside the class folders 2 (test/urls_pos.txt, train/urls_pos.txt)" in note
    assert "files beside the splits 2 (README, imdb.vocab)" in note
    documents("d/neg")
    documents("d/pos")
    write("d/readme.txt", "no document")
    assert notes_of("d") == "d: left out: files beside the class folders 1 (readme.txt)"
    assert len(texts_of("d", "lm")) == 24


@MODES
def test_documents_below_a_class_are_of_the_class(streaming):
    documents("d/neg/2020/january")
    documents("d/neg")
    documents("d/pos/2021")
    corpus = open_corpus("d", task="clf", streaming=streaming)
    assert corpus.label_names == ["neg", "pos"]
    for split in corpus.splits.values():
        texts, labels, _ = whole(split)
        assert all(text.split()[4] == corpus.label_names[label] for text, label in zip(texts, labels, strict=True))
    assert len(texts_of("d", streaming=streaming)) == 36


def archive() -> bytes:
    with zipfile.ZipFile("x.zip", "w") as file:
        file.writestr("word/document.xml", "<w:t>words</w:t>")
    return Path("x.zip").read_bytes()


@MODES
def test_what_is_no_text_is_refused_by_its_content(streaming):
    contents = [b"%PDF-1.4\nonly ASCII in here\n%%EOF", archive(), b"{\\rtf1 words}", b"\x00\x01" * 400,
                b"\x00\x05\x16\x07\x00\x02" + bytes(60)]  # fmt: skip
    documents("d/neg", 100)
    documents("d/pos", 100)
    for place, content in enumerate(contents):
        write(f"d/neg/x{place}.txt", content)
    split = open_rows("d", streaming=streaming)
    assert len(whole(split)[0]) == 200 and split.skipped == {"undecodable": len(contents)}
    write("d/neg/one_null.txt", "a text with\x00 one stray null")
    assert len(whole(open_rows("d", streaming=streaming))[0]) == 201


def test_a_pipe_is_refused():
    os.mkfifo("a.csv")
    with pytest.raises(UserError, match="a.csv is a pipe, socket or device and cannot be read twice; give a file"):
        open_corpus("a.csv", task="lm")
    with pytest.raises(UserError, match="/dev/zero is a pipe"):
        open_rows("/dev/zero")


def test_a_folder_without_texts_says_what_it_holds():
    documents("d/neg", 5, ".pdf")
    with pytest.raises(UserError, match=r"folder d holds no .csv.* but 5 of .pdf; convert them or give another folder"):
        open_corpus("d", task="clf")


def test_files_without_suffix_are_documents_where_there_are_no_others():
    for name in ("alt.atheism", "sci.med"):
        for place in range(12):
            write(f"news/{name}/{51119 + place}", f"From: {place}@{name}")
        write(f"news/{name}/README", "no document")
    corpus = open_corpus("news", task="clf")
    assert corpus.label_names == ["alt.atheism", "sci.med"] and len(texts_of("news")) == 24
    write("news/sci.med/x.py", "print()")
    with pytest.raises(UserError, match="folder news holds no .csv"):
        open_corpus("news", task="clf")


def test_a_class_folder_whose_name_is_no_utf_8_is_refused():
    documents("d/neg")
    os.makedirs(b"d/caf\xe9")
    Path(os.fsdecode(b"d/caf\xe9/1.txt")).write_text("a text")
    with pytest.raises(UserError, match=r"class folder d/caf\\udce9 is not UTF-8; rename it"):
        open_corpus("d", task="clf")


# Classes or splits


@pytest.mark.parametrize("name", ["Training", "train", "dev", "test", "Test", "validation", "VAL"])
def test_a_class_named_like_a_split_loses_nothing(name):
    for folder in ("HR", "Sales", name):
        documents(f"d/{folder}", 30)
    for task in ("lm", "clf"):
        try:
            corpus = open_corpus("d", task=task)
        except UserError as error:
            assert all(word in str(error) for word in (name, "HR", "Sales", "rename it")) and name.lower() != "training"
        else:
            assert (
                len(texts_of("d", task)) == 90 and f"the folder {name} is read as a class beside HR" in corpus.notes[0]
            )
            assert task == "lm" or corpus.label_names == ["HR", "Sales", name]


LAYOUTS = [  # folders with documents -> splits by name and classes; None where a sentence asks
    ("train/neg train/pos test/neg test/pos", {"train": 2, "test": 2}, ["neg", "pos"]),
    ("train/neg train/pos dev/neg dev/pos extra", {"train": 2, "valid": 2}, ["neg", "pos"]),
    ("neg pos test/neg test/pos", {"train": 2, "test": 2}, ["neg", "pos"]),
    ("neg pos valid/neg", {"train": 2, "valid": 1}, ["neg", "pos"]),
    ("neg pos unsup", {"train": 2}, ["neg", "pos"]),
    ("train/neg train/pos train/unsup test/neg", {"train": 2, "test": 1}, ["neg", "pos"]),
    ("Training/2020 HR/2020 Sales/2020", {"train": 3}, ["HR", "Sales", "Training"]),
    ("train/neg train/pos extra", None, ["extra", "train"]),
    ("train test extra", None, ["extra", "train", "test"]),
    ("neg test", None, ["neg", "test"]),
    ("train extra", None, ["extra", "train"]),
    ("neg pos test/other test/neg", None, ["neg", "pos", "test"]),
    ("train/neg train/test train/pos", None, ["neg", "pos", "test"]),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "splits", "classes"), LAYOUTS)
def test_layouts(tree, splits, classes):
    for folder in tree.split():
        documents(f"d/{folder}")
    if splits is None:
        with pytest.raises(UserError) as caught:
            open_corpus("d", task="clf")
        assert all(name in str(caught.value) for name in classes)
        return
    corpus = open_corpus("d", task="clf", streaming=True, valid=None if "valid" in splits else 0.5)
    found = {name: len(whole(split)[0]) for name, split in corpus.splits.items()}
    if "valid" not in splits:
        found["train"] += found.pop("valid")
    assert corpus.label_names == classes and found == {name: 12 * number for name, number in splits.items()}


def test_unlabelled_texts_beside_classes_and_a_test_split_are_read():
    for folder in ("neg", "pos", "unsup", "test/neg", "test/pos"):
        documents(f"d/{folder}")
    assert sum("unsup" in text for text in texts_of("d", "lm")) == 12
    assert set(open_corpus("d", task="clf").splits) == {"train", "valid", "test"}


def test_folders_beside_tables_and_splits_are_told():
    documents("d/notes")
    write("d/a.csv", "text,label\n" + "".join(f"film {n},{n % 2}\n" for n in range(30)))
    assert notes_of("d") == "d: left out: folders beside the tables 1 (notes)"
    for folder in ("train/neg", "train/pos", "test/neg", "images"):
        documents(f"e/{folder}")
    assert "folders beside the splits 1 (images)" in notes_of("e")


# Trees of every kind


NAMES = {"classes": ["neg", "pos", "é 1", "-1", "a\nb", "x" * 200], "splits": ["train", "test", "dev", "unsup"],
         "either": ["neg", "pos", "Training", "test", "unsup", "extra"], "years": ["2020", "2021"], "none": []}  # fmt: skip
GOOD, ODD = b"a good text of some words", [b"", b" ", b"%PDF-1.4", b"\xff\xfeb\x00", b"\x00" * 99, b"bad \xff byte"]


def grow(draw: random.Random, folder: Path, root: Path, depth: int = 0, odd: float = 0.0) -> None:
    """A random tree of what is found in folders. `odd` is the share of what is no plain document."""
    folder.mkdir()
    odd = odd if depth else draw.choice([0.0, 0.02, 0.3])
    for place in range(draw.choice([0, 0, 1, 12]) if depth == 0 else draw.choice([0, 6, 12])):
        path = folder / f"{place}.txt"
        if draw.random() >= odd:
            path.write_bytes(GOOD + b" %d" % draw.getrandbits(40))
            continue
        name = draw.choice(["{}", "._{}", "#{}#", "{}~", "c d{}", "é{}", "e\x1b[31m{}", "train{}", "{}_test"]).format(
            place
        )
        path = folder / (name + draw.choice([".txt", ".txt", "", ".pdf", ".csv", ".TXT", ".jsonl", ".txt.gz"]))
        kind = draw.randint(0, 9)
        if kind < 7:
            path.write_bytes(draw.choice([GOOD, b"a,b\n1,2\n", *ODD]))
        elif kind == 7:
            os.mkfifo(path)
        else:
            path.symlink_to(draw.choice(["nowhere", ".", "..", "/dev/zero", path.name, str(root), "/etc",
                                         str(draw.choice(list(root.rglob("*")) or [root]))]))  # fmt: skip
    names = NAMES["none" if depth == 3 else draw.choice(list(NAMES))]
    for name in draw.sample(names, draw.randint(min(len(names), 2 if depth == 0 else 0), min(len(names), 3))):
        grow(draw, folder / name, root, depth + 1, odd)
    if draw.random() < odd:
        grow(draw, folder / draw.choice([".git", "__MACOSX", "y.txt", "empty", "_tmp"]), root, 3, odd)


@pytest.mark.parametrize("part", range(4))
def test_any_tree_is_read_or_refused_in_a_sentence(part, tmp_path, monkeypatch):
    """No traceback, no hang, and every document is read, at fault, or in the line about what was left out."""
    monkeypatch.setattr(folders, "_SHOWN", 10**6)  # all that is left out is named
    number = int(os.environ.get("ULMFIT_FUZZ_TREES", "80")) // 4
    outcomes: Counter[str] = Counter()
    for seed in range(part * number, (part + 1) * number):
        root = tmp_path / "d"
        grow(random.Random(seed), root, root)
        for task in ("lm", "clf"):
            try:
                corpus = open_corpus(str(root), task=task, streaming=True)
                read = [text for split in corpus.splits.values() for batch in split.batches() for text in batch.texts]
            except UserError as error:
                outcomes["refused"] += 1
                outcomes[str(error)[-60:]] += 1
                assert len(str(error).splitlines()) == 1 and str(error).isprintable(), (seed, error)
                continue
            outcomes["read"] += 1
            assert not any("Mac OS X" in text for text in read), seed
            assert all(note.isprintable() for note in corpus.notes), (seed, corpus.notes)
            if task == "lm":
                _check_nothing_lost(seed, root, corpus)
        shutil.rmtree(root)
    assert outcomes["read"] > number / 8 and outcomes["refused"] > number / 8, outcomes


def _check_nothing_lost(seed: int, root: Path, corpus: Corpus) -> None:
    used = {os.path.realpath(path) for split in corpus.splits.values() for part in split.parts for path in part.files}
    told = " ".join(corpus.notes)
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and os.path.realpath(path) not in used:
            inside = path.relative_to(root)
            names = [one_line(str(name)) for name in (inside, *inside.parents[:-1])]
            assert any(name in told for name in names), (seed, path, told)
