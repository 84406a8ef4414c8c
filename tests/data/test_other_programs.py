"""Files as other programs write them: pandas, polars, Arrow, Excel, Google Sheets, R, MySQL, PostgreSQL, SQLite, fastText."""

from __future__ import annotations

import csv
import io
import json
import sqlite3

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest

from tests.data.files import whole, write
from tests.data.tables import rows, source
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.encoding import TORN

pytestmark = pytest.mark.usefixtures("alone")

TEXTS = [
    'He said "hello", then left', "A; text, with | signs\tand a tab", "Two\nlines, one text", "Plain", "It's 5\" long",
    "back\\slash \\n in it", "Ünïcödé – “quotes” …", "ends with a mark\"", '"begins with one', "NA", "comma, and, more, commas",
    "A rather long sentence, which ends here; it has nothing special in it.",
]  # fmt: skip
LABELS = ["pos", "neg"] * 6
TABLE = list(zip(LABELS, TEXTS, strict=True))
FRAME = pd.DataFrame({"label": LABELS, "text": TEXTS})
LINES = [(label, text.replace("\n", " ").replace("\t", " ")) for label, text in TABLE]  # for formats without either
WITH_CRLF = [(label, text.replace("\n", "\r\n")) for label, text in TABLE]


@pytest.mark.parametrize("options", [
    {}, {"sep": ";"}, {"sep": "\t"}, {"sep": "|"}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC},
    {"encoding": "utf-16"}, {"encoding": "utf-8-sig"}, {"lineterminator": "\r\n"}, {"sep": "\t", "encoding": "utf-16"},
    {"sep": ";", "encoding": "cp1252", "errors": "replace"}, {"quotechar": '"', "doublequote": False, "escapechar": "\\"},
], ids=str)  # fmt: skip
def test_pandas(options):
    FRAME.to_csv("a.csv", index=False, **options)
    found = source(open("a.csv", "rb").read())
    assert rows(found, "label", "text") == TABLE
    FRAME.to_csv("a.csv", **options)  # with its index
    assert rows(source(open("a.csv", "rb").read()), "label", "text") == TABLE


@pytest.mark.parametrize("orient", ["records", "columns", "split", "index", "values"])
def test_pandas_json(orient):
    FRAME.to_json("a.json", orient=orient)
    if orient == "values":  # rows without names
        assert rows(source(open("a.json", "rb").read(), "a.json"), "0", "1") == TABLE
        return
    assert rows(source(open("a.json", "rb").read(), "a.json"), "label", "text") == TABLE
    FRAME.to_json("a.jsonl", orient="records", lines=True)
    assert rows(source(open("a.jsonl", "rb").read(), "a.jsonl"), "label", "text") == TABLE


def test_pandas_without_names():
    FRAME["label"] = [1, 2] * 6
    FRAME.to_csv("a.csv", index=False, header=False)
    FRAME["label"] = LABELS
    found = source(open("a.csv", "rb").read())
    assert found.columns == ["0", "1"] and [text for (text,) in rows(found, "1")] == TEXTS


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("style", ["necessary", "always", "non_numeric"])
def test_polars(separator, style):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"label": LABELS, "text": TEXTS})
    frame.write_csv("a.csv", separator=separator, quote_style=style)
    assert rows(source(open("a.csv", "rb").read())) == TABLE


def test_arrow():
    pyarrow.csv.write_csv(pa.table({"label": LABELS, "text": TEXTS}), "a.csv")
    assert rows(source(open("a.csv", "rb").read())) == TABLE


@pytest.mark.parametrize("separator, encoding", [(",", "utf-8-sig"), (";", "utf-8-sig"), (";", "cp1252"), ("\t", "utf-16"),
                                                 (",", "cp1252")])  # fmt: skip
def test_excel(separator, encoding):
    """CSV UTF-8, CSV of a German or French Excel, and Unicode Text. Line ends inside a cell are LF alone."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([("label", "text"), *TABLE])
    assert rows(source(file.getvalue().encode(encoding))) == TABLE


def test_excel_with_empty_columns_and_rows():
    lines = [
        "label,text,,",
        *(f'{label},"{text}",,' for label, text in [("pos", "good, really"), ("neg", "bad, really")] * 9),
    ]
    found = source("\r\n".join(lines) + "\r\n,,,\r\n,,,\r\n")
    assert rows(found, "label", "text")[:2] == [("pos", "good, really"), ("neg", "bad, really")]
    assert rows(found, "label", "text")[18:] == [("", ""), ("", "")]


def test_excel_that_drops_empty_cells_at_the_end_of_a_line():
    """It does so in blocks of 16 rows without a value in the last column."""
    lines = ["text,label", *(f"good film {n},pos" for n in range(20)), *(f"film {n}" for n in range(32))]
    split = open_rows(write("a.csv", "\r\n".join(lines)), label_names=["pos"])
    texts, labels, _ = whole(split)
    assert len(texts) == 52 and labels == [0] * 20 + [-1] * 32


def test_google_sheets():
    """Its .tsv has neither quotation marks nor tabs nor line ends in cells."""
    assert rows(source("\r\n".join("\t".join(row) for row in [("label", "text"), *LINES]), "a.tsv")) == LINES


def test_google_forms():
    names = ["Timestamp", "How did you like the course?", "What was good, and what was not?"]
    table = [(f"2024/05/{day:02} 10:11:12 AM GMT+2", str(day % 5), TEXTS[day % 12]) for day in range(1, 25)]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([names, *table])
    assert rows(source(file.getvalue())) == table


def quoted_by_r(text: str, *, double: bool) -> str:
    return '"' + text.replace('"', '""' if double else '\\"') + '"'


@pytest.mark.parametrize("double", [True, False], ids=["qmethod double", "qmethod escape"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("names", ["row names", "named row names", "no row names"])
def test_r(names, separator, double):
    """write.table, write.csv, write.csv2."""
    table = [row for row in TABLE if double or "\\" not in row[1]]  # "escape" leaves backslashes as they are
    header = [quoted_by_r(name, double=double) for name in ("label", "text")]
    if names == "named row names":
        header = ['""', *header]
    lines = [separator.join(header)]
    for number, row in enumerate(table, 1):
        cells = [quoted_by_r(cell, double=double) for cell in row]
        lines.append(separator.join(cells if names == "no row names" else [f'"{number}"', *cells]))
    assert rows(source("\n".join(lines) + "\n"), "label", "text") == table


def test_mysql_batch():
    """mysql --batch: tabs, NULL as a word; and SELECT INTO OUTFILE, with \\N for NULL."""
    assert rows(source("\n".join("\t".join(row) for row in [("label", "text"), *LINES]), "a.tsv")) == LINES
    lines = [("label", "text"), ("pos", "good film"), ("\\N", "no label"), ("neg", "\\N"), ("neg", "bad film")]
    found = rows(source("\n".join("\t".join(row) for row in lines), "a.tsv"))
    assert found == [("pos", "good film"), (None, "no label"), ("neg", None), ("neg", "bad film")]


def test_mysql_with_enclosed_fields():
    r"""FIELDS TERMINATED BY ',' ENCLOSED BY '"' ESCAPED BY '\\'."""
    table = [(label, text.replace("\n", " ")) for label, text in TABLE]
    lines = ['"label","text"']
    for row in table:
        lines.append(",".join('"' + cell.replace("\\", "\\\\").replace('"', '\\"') + '"' for cell in row))
    assert rows(source("\n".join(lines) + "\n")) == table


def test_postgres_copy_csv_and_sqlite():
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([("label", "text"), *TABLE])
    assert rows(source(file.getvalue())) == TABLE
    database = sqlite3.connect("b.csv")
    database.execute("create table a (text)")
    database.commit()
    with pytest.raises(Exception, match="b.csv is an SQLite database and no text; export a table of it as .csv"):
        open_rows("b.csv")


def test_sentiment_files_of_uci():
    """Text, a tab, 0 or 1; no header, and unpaired quotation marks."""
    table = [(text, str(number % 2)) for number, (_, text) in enumerate(LINES * 3)]
    content = "".join("\t".join(row) + "\n" for row in table)
    assert rows(source(content, "a.tsv")) == table
    assert "--separator tab" in source(content, "a.txt").notes[0]
    assert rows(source(content, "a.txt", separator="tab")) == table


def test_glue():
    """SST-2 and CoLA: a tab, no quoting; CoLA has no header and an empty column."""
    lines = ["sentence\tlabel", *(f"{text}\t{number % 2}" for number, (_, text) in enumerate(LINES))]
    assert rows(source("\n".join(lines), "a.tsv")) == [
        (text, str(number % 2)) for number, (_, text) in enumerate(LINES)
    ]
    cola = [("gj04", str(number % 2), "", text) for number, (_, text) in enumerate(LINES * 2)]
    assert rows(source("".join("\t".join(row) + "\n" for row in cola), "b.tsv")) == cola


def test_kaggle():
    """Sentiment140: all fields quoted, Latin-1, no header. Quora: an id of digits and letters. Toxic: several lines a text."""
    table = [
        (str(4 * (n % 2)), str(n), "Mon Apr 06", "NO_QUERY", f"user{n}", f"tweet number {n}, é!") for n in range(40)
    ]
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(table)
    found = source(file.getvalue().encode("latin-1"))
    assert rows(found) == table and found.columns == list("012345")
    corpus = open_corpus("a.csv", task="clf", label_column="0", text_column="5")
    assert corpus.label_names == ["0", "4"]
    toxic = [(f"{n:016x}", f'"\n\nline one, {n}\n\nline two"', str(n % 2), "0") for n in range(30)]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([("id", "comment_text", "toxic", "obscene"), *toxic])
    assert rows(source(file.getvalue())) == toxic


def test_joined_files():
    """cat a.csv b.csv: the header stands in the middle."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("label", "text"), *TABLE] * 2)
    assert rows(source(file.getvalue())) == [*TABLE, (TORN, TORN), *TABLE]


def test_windows_text_mode():
    r"""csv.writer to a file that was opened without newline="": lines end with \r\r\n."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("label", "text"), *LINES])
    assert rows(source(file.getvalue().replace("\n", "\r\n"))) == LINES


def test_exports_of_annotation_tools():
    """Prodigy, doccano and Label Studio."""
    prodigy = [{"text": text, "label": label, "answer": "accept", "meta": {"score": 0.5}} for label, text in TABLE]
    assert rows(source("".join(json.dumps(row) + "\n" for row in prodigy), "a.jsonl"), "label", "text") == TABLE
    doccano = [{"id": n, "data": text, "label": [label]} for n, (label, text) in enumerate(TABLE)]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in doccano))
    assert open_corpus("a.jsonl", task="lm", text_column="data").text_columns == ["data"]
    studio = [{"id": n, "data": {"text": text}, "sentiment": label} for n, (label, text) in enumerate(TABLE)]
    assert rows(source(json.dumps(studio, indent=1), "a.json"), "sentiment", "data.text") == TABLE
