"""Encodings of texts, files that hold no text, and what of the way of reading is part of a fingerprint."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.data.files import whole, write
from tests.data.tables import TABLE, rows, source, written, zhang
from ulmfit.data.corpus import open_rows
from ulmfit.data.encoding import UNDECODABLE
from ulmfit.data.fingerprint import Access
from ulmfit.data.source import Source
from ulmfit.data.sources import find
from ulmfit.data.tables import ReadOtherwise
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone", "small_chunks")


# Encodings


GERMAN = [("1", "Schöne Grüße aus Köln, größer als je"), ("0", "überhaupt nicht gut"), ("1", "naïve café")] * 4
RUSSIAN = [("1", "хороший фильм"), ("0", "плохой фильм")] * 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_the_encoding_is_found(encoding):
    content = written(GERMAN).encode(encoding)
    found = source(content)
    assert found.columns == ["label", "text"] and rows(found) == GERMAN
    assert bool(found.notes) == ("utf-8" not in encoding)
    lines = [text for _, text in GERMAN]
    assert rows(source("\n".join(lines).encode(encoding), "a.txt")) == [(line,) for line in lines]
    objects = "".join(f'{{"text": "{text}"}}\n' for text in lines)
    assert rows(source(objects.encode(encoding), "a.jsonl")) == [(line,) for line in lines]
    for number, line in enumerate(lines):
        write(f"docs/{number:02}.txt", line.encode(encoding))
    assert rows(find("docs")["train"]) == [(line,) for line in lines]


def test_utf_16_of_other_alphabets():
    for encoding in ("utf-16-le", "utf-16-be"):
        assert rows(source(written(RUSSIAN).encode(encoding))) == RUSSIAN


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "utf-8", "iso8859-5"])
def test_the_encoding_is_given(encoding):
    content = written(RUSSIAN).encode(encoding)
    assert rows(source(content, encoding=encoding)) == RUSSIAN
    if encoding != "utf-8":  # other alphabets are not guessed
        with pytest.raises(UserError, match="undecodable 12.*; name their --encoding"):
            whole(open_rows("a.csv"))
    with pytest.raises(UserError, match="--encoding latin-one is no encoding of texts; give one such as utf-8"):
        source(content, encoding="latin-one")
    with pytest.raises(UserError, match="no encoding of texts"):
        source(content, encoding="base64")


def test_a_few_wrong_bytes_are_rows_at_fault():
    content = written(TABLE).encode() + "1,größer\r\n".encode() + b"0,wrong \xff\xfe\r\n"
    found = rows(source(content))
    assert found[:12] == TABLE and UNDECODABLE in found[-1][1]


# Files that hold no text


BINARY = {
    b"%PDF-1.7\n...": "a.txt is a PDF and no text; convert it to text",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99): "is an .xls workbook or a .doc document",
    b"PAR1....": 'is a Parquet file and no text; give its name the ending .parquet',
    b"<!DOCTYPE html>\n<html>": "is a web page",
    b"\x89PNG\r\n\x1a\n" + bytes(99): "is an image",
    bytes(range(256)) * 9: "is binary data and no text",
    b"SQLite format 3\0" + bytes(99): "is an SQLite database",
    b"\x1f\x8b\x08" + bytes(99): "is compressed by gzip and no text; give its name the ending .gz",
}  # fmt: skip


@pytest.mark.parametrize("content", BINARY, ids=BINARY.values())
def test_what_is_no_text_is_refused(content):
    for name in ("a.txt", "a.csv", "a.jsonl"):
        with pytest.raises(UserError, match=BINARY[content].replace("a.txt", name)):
            source(content, name)


def test_workbooks_are_refused_with_a_cure():
    for inside, sentence in {"xl/workbook.xml": "an .xlsx workbook", "word/document.xml": "a .docx document"}.items():
        with zipfile.ZipFile("a.csv", "w") as archive:
            archive.writestr("[Content_Types].xml", "<xml/>" * 10_000)
            archive.writestr(inside, "<xml/>")
        with pytest.raises(UserError, match=f"a.csv is {sentence} and no text; open it in a .* and save it"):
            find("a.csv")
        Path("a.csv").rename("a.xlsx")
        with pytest.raises(UserError, match=f"a.xlsx is {sentence} and no text; open it in a .* and save it"):
            find("a.xlsx")


# Identity


def test_the_way_of_reading_is_part_of_the_fingerprint():
    content = "label;text\n1;a,b\n0;c,d\n"
    prints = [source(content, **options).fingerprint for options in (
        {}, {"header": False}, {"encoding": "cp1252"}, {"separator": "none"})]  # fmt: skip
    assert len(set(prints)) == 4
    assert source(content, separator=";").fingerprint == prints[0]


def test_a_run_of_an_earlier_version_reads_as_it_did_or_is_refused():
    def source(content: str | bytes) -> Source:
        return find(write("a.csv", content), Access(scheme=2))["train"]

    assert rows(source(written(TABLE))) == TABLE
    for content in (written(TABLE, ";"), zhang(4), written(GERMAN).encode("cp1252")):
        with pytest.raises(ReadOtherwise, match="go on with the version that began this run"):
            source(content)
    with pytest.raises(ReadOtherwise):
        rows(source(written(TABLE) + 'pos,"stray\nneg,x\n'))
    with pytest.raises(ReadOtherwise):  # places in a stream were others
        find("a.csv", Access(scheme=2, streaming=True))
