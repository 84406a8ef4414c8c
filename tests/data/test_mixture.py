"""Several sources with weights as --data: how they are named, their columns and splits, and mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ulmfit.data.corpus import open_corpus
from ulmfit.data.fingerprint import Access
from ulmfit.data.mixed_corpus import open_any_corpus
from ulmfit.data.mixture_options import Ingredient, ingredients, is_mixture
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


def write_sources():
    Path("a").mkdir()
    Path("a/wiki.jsonl").write_text("".join(json.dumps({"text": f"article {n}"}) + "\n" for n in range(60)))
    Path("a/notes.csv").write_text("body;kind\n" + "".join(f"note {n};x\n" for n in range(40)))


def texts(split):
    return [text for batch in split.batches() for text in batch.texts]


@pytest.mark.parametrize(("data", "found"), [
    ("wiki=0.7:a/*.txt,notes=0.3:b.csv", [("wiki", "a/*.txt", 0.7), ("notes", "b.csv", 0.3)]),
    ("a=2:s3://bucket/x,y=1/z.csv,b=1e-2:owner/name:config", [("a", "s3://bucket/x,y=1/z.csv", 2.0),
                                                             ("b", "owner/name:config", 0.01)]),
    ("one=1:C:/x.csv", [("one", "C:/x.csv", 1.0)]),
    ("a=1:x, y.csv, b=2:z.csv", [("a", "x, y.csv", 1.0), ("b", "z.csv", 2.0)]),
    ("a=1:https://host/x.csv?key=1&b=2,b=1:z", [("a", "https://host/x.csv?key=1&b=2", 1.0), ("b", "z", 1.0)]),
])  # fmt: skip
def test_sources_on_the_command_line(data, found):
    assert is_mixture(data)
    assert ingredients(data) == [Ingredient(name, path, weight) for name, path, weight in found]


@pytest.mark.parametrize("data", [
    "a.csv", "owner/name:config", "s3://bucket/day=1/x.csv", "s3://b/day=1:2/x.csv", "year=2026/a:b.csv", "x.toml", None,
    "C:\\a=1:b.csv", ["a=1:b"]])  # fmt: skip
def test_other_data_are_no_mixture(data):
    assert not is_mixture(data)


def test_a_file_of_this_name_is_a_file():
    Path("a=1:b.csv").write_text("text\none\n")
    assert not is_mixture("a=1:b.csv") and is_mixture("a=1:c.csv")


def test_a_file_of_sources_gives_each_its_columns_and_is_read_from_anywhere():
    write_sources()
    Path("a/mixture.toml").write_text(
        '[wiki]\ndata = "wiki.jsonl"\nweight = 3\n\n[notes]\ndata = "notes.csv"\nweight = 1\ntext_column = "body"\n'
        'separator = ";"\nvalid = 0.5\n'
    )
    corpus = open_any_corpus("a/mixture.toml", task="lm", valid=0.1)
    train, valid = corpus.splits["train"], corpus.splits["valid"]
    assert [(part.name, part.weight) for part in train.members] == [("wiki", 0.75), ("notes", 0.25)]
    assert [len(texts(part.split)) for part in train.members] == [54, 20]
    assert [len(texts(part.split)) for part in valid.members] == [6, 20]
    assert corpus.text_columns == [] and corpus.fraction is None and corpus.valid == "wiki: 0.1; notes: 0.5"
    assert sorted(texts(train) + texts(valid)) == sorted([*(f"article {n}" for n in range(60)),
                                                          *(f"note {n}" for n in range(40))])  # fmt: skip


def test_the_first_texts_are_of_all_sources_in_their_proportion():
    Path("a.txt").write_text("a\n" * 3000)
    Path("b.txt").write_text("b\n" * 3000)
    Path("c.txt").write_text("c\n" * 30)
    corpus = open_any_corpus("a=0.8:a.txt,b=0.2:b.txt", task="lm", streaming=True, valid="c.txt")
    first = texts(corpus.splits["train"])[:1000]
    assert 150 <= first.count("b") <= 250
    assert corpus.splits["train"].members[1].split.num_rows == 3000


def test_what_makes_two_mixtures_the_same():
    write_sources()

    def found(data, **options):
        return open_any_corpus(data, task="lm", text_column=None, **options).fingerprint

    wiki, notes = "a/wiki.jsonl", "notes.txt"
    Path(notes).write_text("".join(f"note {n}\n" for n in range(40)))
    whole = found(f"a=0.75:{wiki},b=0.25:{notes}")
    assert found(f"x=3:{wiki},y=1:{notes}") == whole
    assert found(f"a=0.7:{wiki},b=0.3:{notes}") != whole
    assert found(f"b=0.25:{notes},a=0.75:{wiki}") != whole
    Path(notes).write_text("".join(f"note {n}!\n" for n in range(40)))
    assert found(f"a=0.75:{wiki},b=0.25:{notes}") != whole


def test_sources_of_an_object_store():
    fsspec = pytest.importorskip("fsspec")
    write_sources()
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe_file("/mix/wiki.jsonl", Path("a/wiki.jsonl").read_bytes())
        memory.pipe_file("/mix/valid.txt", b"one\ntwo\n")
        memory.pipe_file(
            "/mix/m.toml", b'[wiki]\ndata = "memory://mix/wiki.jsonl"\n[held]\ndata = "memory://mix/valid.txt"\n'
        )
        data = "a=1:memory://mix/wiki.jsonl,b=1:a/wiki.jsonl"
        remote, local = open_any_corpus(data, task="lm").splits["train"].members
        assert texts(remote.split) == texts(local.split) and remote.split.fingerprint == local.split.fingerprint
        mixture = open_any_corpus("memory://mix/m.toml", task="lm").splits["train"]
        assert [part.weight for part in mixture.members] == [None, None]
        corpus = open_corpus("a/wiki.jsonl", task="lm", valid="memory://mix/valid.txt", streaming=True)
        assert texts(corpus.splits["valid"]) == ["one", "two"]
    finally:
        memory.rm("/mix", recursive=True)


@pytest.mark.parametrize(("data", "said"), [
    ("a=0.5:a/wiki.jsonl,a=0.5:b", "names the source a twice"),
    ("a=0.5:a/wiki.jsonl,A=0.5:b", "names the source A|a twice"),
    ("a=x:a/wiki.jsonl", "a has the weight 'x'; give a number above 0, as in a=0.5:PATH"),
    ("a=0:a/wiki.jsonl", "a has the weight '0';"), ("a=-1:b", "weight '-1'"), ("a=nan:b", "weight 'nan'"), ("a=inf:b", "weight 'inf'"),
    ("a=1e308:b,b=1e308:c", "too large or too far apart"), ("a=1e-320:b,b=1e9:c", "too large or too far apart"),
    ("a=1:b=1:a/wiki.jsonl", "the source a of a=1:b=1:a/wiki.jsonl is a mixture itself"), ("a=:b", "a has the weight"), ("a=1:", "a has no data; give a path after its weight"),
    ("a=1:a/wiki.jsonl,b=1:no.csv", r"no file or folder no.csv"),
    ("a=1:a/wiki.jsonl,b=1:a/notes.csv", r"notes.csv has no column text; choose one of"),
])  # fmt: skip
def test_mistakes_on_the_command_line(data, said):
    write_sources()
    with pytest.raises(UserError, match=said):
        open_any_corpus(data, task="lm")


@pytest.mark.parametrize(("content", "said"), [
    ("a = " + "[" * 5000 + "]" * 5000, "it is nested too deeply"), ('[a]\ndata = "m.toml"', "the source a of m.toml is a mixture itself"),
    ("", "names no source; write a table"), ("x = 1", "has 'x' outside of a table"), ("[a", "cannot be read"),
    ("[a]\nweight = 1", "names no data in .a.; write"), ('[a]\ndata = "x"\nwight = 1', r"has 'wight' in \[a\]; the keys are"),
    ('[a]\ndata = "x"\nweight = "1"', "a has the weight"), ('[a]\ndata = "x"\nweight = true', "a has the weight"),
    ('[a]\ndata = "x"\nheader = "no"', "header = 'no' in .a.; write true or false"), ('[a]\ndata = 3', "names no data"),
    ('["a b"]\ndata = "x"', "has a source 'a b'; name it by"), ('[a]\ndata = ""', "a has no data"),
    ('[a]\ndata = "x"\nvalid = true', "valid = True in .a.; write a text or a number"),
    ('[a]\ndata = "a/wiki.jsonl"\nweight = 1\n[b]\ndata = "y"', "gives b no weight and others one"),
    ('[a]\ndata = "x"\nweight = 1' + "0" * 400, "a has the weight 1000"), ('[a]\ndata = "x"\nweight = 1' + "0" * 5000, "cannot be read"),
    ('[a]\ndata = "x"\nweight = 0x1' + "0" * 5000, r"a has the weight \(a very large int\)"),
    ('[a]\ndata = "a/wiki.jsonl"\nvalid = 1' + "0" * 400, "no file or folder"), ("#" * 2**20 + "##", "is larger than 1,048,576 bytes"),
])  # fmt: skip
def test_mistakes_in_a_file(content, said):
    Path("m.toml").write_text(content)
    with pytest.raises(UserError, match=said):
        open_any_corpus("m.toml", task="lm")


def test_what_mixtures_are_not_for():
    write_sources()
    for task in ("clf", "lm"):
        with pytest.raises(UserError, match="only the training of a language model mixes; give one of them"):
            open_corpus("a=1:a/wiki.jsonl", task=task)
    with pytest.raises(UserError, match="only the training of a language model mixes"):
        open_any_corpus("a=1:a/wiki.jsonl", task="clf")
    Path("m.toml").write_text('[a]\ndata = "a/wiki.jsonl"\n')
    with pytest.raises(UserError, match="gives no weights, and the sizes of streamed sources are not known"):
        open_any_corpus("m.toml", task="lm", streaming=True)


def test_the_revisions_of_hub_sets_are_by_source(monkeypatch):
    from ulmfit.data import mixed_corpus

    asked = {}

    def opened(data, *, task, access, **options):
        asked[data] = access.revision
        corpus = open_corpus("a/wiki.jsonl", task=task, access=access, **options)
        corpus.revision = None if data == "x.csv" else f"commit of {data}"
        return corpus

    write_sources()
    monkeypatch.setattr(mixed_corpus, "open_corpus", opened)
    data = "a=1:owner/a,b=1:x.csv,c=1:owner/c"
    first = open_any_corpus(data, task="lm")
    assert first.revision == {"a": "commit of owner/a", "c": "commit of owner/c"} and set(asked.values()) == {None}
    open_any_corpus(data, task="lm", access=Access(revision=first.revision))
    assert asked == {"owner/a": "commit of owner/a", "x.csv": None, "owner/c": "commit of owner/c"}
