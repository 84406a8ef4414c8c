"""Tables as other programs write them: separators, quotation marks, torn rows, names of columns."""

from __future__ import annotations

import csv
from itertools import product

import pytest

from tests.data.files import whole, write
from tests.data.tables import TABLE, TEXTS, rows, source, written, zhang
from ulmfit.data import records
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.encoding import TORN
from ulmfit.data.sources import find
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone", "small_chunks")


# Separators


@pytest.mark.parametrize("separator, suffix, end, quoting", [*product(",;\t|", ("csv", "tsv"), ("\n", "\r\n", "\r"),
                                                                     (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))])  # fmt: skip
def test_the_separator_is_found(separator, suffix, end, quoting):
    found = source(written(TABLE, separator, end, quoting=quoting), f"a.{suffix}")
    assert found.columns == ["label", "text"] and rows(found) == TABLE
    names = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
    told = [f"a.{suffix}: separated by {names[separator]}"]
    assert found.notes[:1] == ([] if separator == {"csv": ",", "tsv": "\t"}[suffix] else told)


@pytest.mark.parametrize("separator", ";\t|")
def test_texts_full_of_commas_do_not_mislead(separator):
    """Unquoted, as many programs write; each text has one comma more or less."""
    texts = [", ".join(["word"] * (1 + number % 4)) for number in range(40)]
    table = [(f"{number % 2}", text) for number, text in enumerate(texts)]
    content = "".join(f"{label}{separator}{text}\n" for label, text in [("label", "text"), *table])
    assert rows(source(content)) == table
    same = [(text, label) for label, text in table]
    content = "".join(f"{text}{separator}{label}\n" for text, label in [("text", "label"), *same])
    assert rows(source(content)) == same


def test_one_column():
    lines = ["a film, a book", "another; one", "tabs\tand | bars", '"quoted"', 'he said "no"']
    found = source("text\n" + "\n".join(lines) + "\n")
    assert found.columns == ["text"] and rows(found) == [
        (line.strip('"') if line[0] == '"' else line,) for line in lines
    ]
    # A blank line is an empty cell, as Excel writes it.
    assert rows(source("text\na\n\nb\n\n")) == [("a",), ("",), ("b",), ("",)]
    assert rows(source("text\r\n\r\na\r\n")) == [("",), ("a",)]
    # As in a text file it is no fault.
    write("one.csv", "text\n" + "".join(f"line {n}\n" for n in range(10)) + "\n")
    assert sum(len(whole(split)[0]) for split in open_corpus("one.csv", task="lm").splits.values()) == 10
    multi = written([("one\ntwo",), ("three",), ("",), ("a, b",)], header=("text",))
    assert rows(source(multi)) == [("one\ntwo",), ("three",), ("",), ("a, b",)]


def test_a_first_line_that_may_be_a_text_is_told():
    lines = ["I liked this film a lot", "not at all", "the light in it was good", "no"]
    content = "\n".join(lines) + "\n"
    [note] = source(content).notes
    assert note == "a.csv: the first line is taken for the name of the column (--no-header reads it as a text)"
    assert rows(source(content, header=False)) == [(line,) for line in lines] and not source("text\nno\n").notes


def test_a_separator_is_given():
    content = "label:text\npos:good: really\nneg:bad\n"
    assert source(content).columns == ["label:text"]
    assert rows(source(content, separator=":")) == [(TORN, TORN), ("neg", "bad")]
    assert rows(source("label;text\n1;a,b\n", separator="semicolon")) == [("1", "a,b")]
    assert source("a,b\n1,2\n", separator="none").columns == ["a,b"]
    assert rows(source("label\ttext\n1\ta\n", "a.txt", separator="tab")) == [("1", "a")]
    assert "add --separator tab" in source("1\ta\n" * 5, "a.txt").notes[0]
    for wrong in ("ab", "", '"'):
        with pytest.raises(UserError, match="is no separator; give one character, or one of comma, semicolon"):
            source(content, separator=wrong)


def test_a_sep_line_is_obeyed():
    for line in ("sep=;", '"sep=;"', "SEP=;"):
        assert rows(source(f"{line}\r\nlabel;text\r\npos;a, b\r\n")) == [("pos", "a, b")]
    assert rows(source("\ufeffsep=|\nlabel|text\npos|a;b\n")) == [("pos", "a;b")]


# Quotation marks


STRAY = {"opens": '"{}', "closes": '{}"', "inside": 'he said "{} to me', "both sides": '"{}" he said', "inch": '5" {}'}


@pytest.mark.parametrize("separator, order, kind", [*product("\t,;", ("label first", "text first"), STRAY)])
def test_a_stray_mark_swallows_no_row(separator, order, kind):
    texts = [f"film number {number} of them" for number in range(60)]
    for place in (3, 17, 18, 40):
        texts[place] = STRAY[kind].format(texts[place])
    table = [(f"{number % 2}", text) for number, text in enumerate(texts)]
    names = ("label", "text")
    if order == "text first":
        table, names = [row[::-1] for row in table], names[::-1]
    content = "".join(separator.join(row) + "\n" for row in [names, *table])
    assert rows(source(content)) == table


@pytest.mark.parametrize("separator, text_first", [*product("\t,", (False, True))])
def test_two_stray_marks_that_seem_to_pair_swallow_no_row(separator, text_first):
    """The field between them is a valid one of several lines, and the record has the right number of fields."""
    texts = [f"film number {number}" for number in range(60)]
    texts[20], texts[24], texts[50] = '"' + texts[20], texts[24] + '"', '"' + texts[50]
    table = [("pn"[number % 2], text) for number, text in enumerate(texts)]
    names = ("label", "text")
    if text_first:
        table, names = [row[::-1] for row in table], names[::-1]
    assert rows(source("".join(separator.join(row) + "\n" for row in [names, *table]))) == table


def test_texts_of_several_lines_stay_whole():
    texts = [f'First line {number}, of two\nSecond, "{number}"\n\nand third, too' for number in range(30)]
    texts.append("\n".join(f"poem, line {number}" for number in range(200)))
    table = [(f"{number % 2}", text) for number, text in enumerate(texts)]
    for separator in ",;\t":
        assert rows(source(written(table, separator))) == table
    table = [(text, label) for label, text in table]
    assert rows(source(written(table, header=("text", "label")))) == table


@pytest.mark.parametrize("every", [2, 25])
@pytest.mark.parametrize("separator, quoting", [*product(",;\t", (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))])
@pytest.mark.parametrize("columns", [("text", "label"), ("text", "title", "label"), ("title", "text", "label")])
def test_a_line_break_in_a_first_column_cuts_no_record(columns, separator, quoting, every):
    """The rest of such a field and the columns behind it are a line with as many fields as a record has."""
    fields = {
        "text": [f"film {n} of many" + "\nand the rest" * (n % every == 1) for n in range(100)],
        "title": [f"title {n}" + "\nin two lines" * (n % every == 0) for n in range(100)],
        "label": ["np"[n % 2] for n in range(100)],
    }
    table = list(zip(*(fields[name] for name in columns), strict=True))
    found = source(written(table, separator, quoting=quoting, header=columns))
    assert found.columns == list(columns) and rows(found) == table


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_second_line_that_begins_like_a_label_cuts_no_record(quoting):
    """Both lines look like records then; but where fields with separators are quoted, marks are not stray ones."""
    texts = [f"Drove it, number {n}, to the coast." for n in range(100)]
    for place in range(0, 100, 10):
        texts[place] = "Drove it to the coast and back.\n5,000 miles later it broke"
    table = [(f"{number % 5 + 1}", text) for number, text in enumerate(texts)]
    found = source(written(table, quoting=quoting, header=("stars", "review")))
    assert found.columns == ["stars", "review"] and rows(found) == table


def test_a_lone_mark_in_a_table_with_quoted_fields_costs_no_row():
    table = [(f"{n % 2}", f"a text, number {n}") for n in range(200)]
    lines = written(table).splitlines(keepends=True)
    for place in (50, 51, 120):
        lines[place] = f'1,"stray number {place}\n'
    found = rows(source("".join(lines)))
    assert len(found) == 200 and found[48] == table[48] and found[51] == table[51] and found[150] == table[150]


def test_escaped_marks():
    table = [("1", 'he said "hi" to me'), ("0", "a\\b"), ("1", 'all "good", really'), ("0", "plain")] * 3
    content = "label,text\n" + "".join(
        f'{label},"{text}"\n' for label, text in ((a, b.replace("\\", "\\\\").replace('"', '\\"')) for a, b in table)
    )
    assert rows(source(content)) == table


def test_a_mark_that_never_closes_costs_no_row():
    content = "label,text\n" + "".join(f"{number % 2},text {number}\n" for number in range(50)) + '1,"and the last\n'
    found = rows(source(content))
    assert len(found) == 51 and found[-1] == ("1", '"and the last')


def test_blanks_after_separators():
    content = 'label, text\npos, "good, really"\nneg, bad\npos, "fine, too"\n'
    assert rows(source(content)) == [("pos", "good, really"), ("neg", "bad"), ("pos", "fine, too")]


# Torn rows


def test_torn_rows_keep_their_place():
    content = "label,text\npos,good\npos,a, b\nneg\nneg,bad,,\n\npos,fine, \nlabel,text\nneg,x\n"
    assert rows(source(content)) == [
        ("pos", "good"), (TORN, TORN), ("neg", TORN), ("neg", "bad"), ("pos", "fine"), (TORN, TORN), ("neg", "x"),
    ]  # fmt: skip
    # A missing label is none, and the text is kept.
    assert rows(source("text,label\ngood,pos\nno label\n")) == [("good", "pos"), ("no label", TORN)]


def test_torn_rows_are_skipped_and_counted():
    content = written([(label, f"{text} {number}") for number in range(5) for label, text in TABLE]) + "pos,a,b\nneg\n"
    split = open_rows(write("a.csv", content))
    assert len(whole(split)[0]) == 60 and split.skipped == {"torn": 2} and whole(split)[2] == list(range(60))
    write("b.csv", "label,text\n" + "0,a,b\n1,c\n" * 20)
    with pytest.raises(
        UserError,
        match=r"b.csv has 20 rows at fault .*torn 20.*; quote texts that contain the separator or name it by --separator",
    ):
        whole(open_rows("b.csv"))


def test_a_column_that_chooses_rows_may_be_torn():
    write("a.csv", "text,label,is_valid\n" + "".join(f"film {n},{n % 2},{n % 3 == 0}\n" for n in range(60)) + "short\n")
    corpus = open_corpus("a.csv", task="clf")
    assert len(whole(corpus.splits["train"])[0]) == 40 and len(whole(corpus.splits["valid"])[0]) == 20


# Names of columns


@pytest.mark.parametrize(
    "header", ["label, text", ' "label" ,"text"', "\ufefflabel,text", "\n\n  \nlabel,text", '"label","text"']
)
def test_names_are_cleaned(header):
    assert rows(source(f"{header}\n1,a\n"), "text") == [("a",)]


def test_a_missing_header_is_recognised():
    """As in the files of Zhang et al. 2015: class number, title, text."""
    for classes in (2, 4, 14):
        found = source(zhang(classes))
        assert found.columns == ["0", "1", "2"] and len(rows(found)) == 60 and "no line of names" in found.notes[0]
    corpus = open_corpus("a.csv", task="clf")
    assert corpus.text_columns == ["1", "2"] and corpus.label_column == "0" and len(corpus.label_names or []) == 14
    texts, _, _ = whole(corpus.splits["train"])
    assert texts[0].startswith("xxfld 1 Title ") and " xxfld 2 Text number" in texts[0]
    for content in ("".join(f"{n % 2}\ta film of the year {n}\n" for n in range(20)),
                    "".join(f"a film of the year {n},{'pos' if n % 2 else 'neg'}\n" for n in range(20))):  # fmt: skip
        assert len(rows(source(content))) == 20


@pytest.mark.parametrize("header", ["label,text", "0,text", "class,1", "sentiment,review of the film", "id,2019"])
def test_a_header_is_no_row(header):
    content = f"{header}\n" + "".join(f"{n % 2},a film of the year {n}\n" for n in range(20))
    assert len(rows(source(content))) == 20 and source(content).columns == header.split(",")


def test_no_header_is_an_option():
    content = "good film\nbad film\nfine\n"
    assert rows(source(content, header=False)) == [("good film",), ("bad film",), ("fine",)]
    assert rows(source("a,b\nc,d\n", header=False)) == [("a", "b"), ("c", "d")]
    assert source("1,a film of the year\n0,another film\n1,a third one here\n", header=True).columns == [
        "1",
        "a film of the year",
    ]
    with pytest.raises(UserError, match="has no column text.*--no-header"):
        open_corpus(write("a.csv", "good film,x\nbad film,y\nfine,z\n"), task="lm")
    with pytest.raises(UserError, match="names a column twice.*--no-header"):
        source("a,a\nb,c\nd,e\n")


def test_row_names_of_r():
    quoted = '"label","text"\n' + "".join(f'"{n}","{label}","{text}"\n' for n, (label, text) in enumerate(TABLE, 1))
    found = source(quoted)
    assert found.columns == ["Unnamed: 0", "label", "text"] and rows(found, "label", "text") == TABLE
    one = '"text"\n' + "".join(f'"{n}","{text}"\n' for n, text in enumerate(TEXTS, 1))
    assert rows(source(one), "text") == [(text,) for text in TEXTS]
    named = '"","label","text"\n' + quoted.partition("\n")[2]  # write.csv
    assert rows(source(named), "label", "text") == TABLE


def test_files_with_columns_in_another_order():
    write("many/1.csv", "label,text\n1,a\n")
    write("many/2.csv", "text,label\nb,0\n")
    assert rows(find("many")["train"]) == [("1", "a"), ("0", "b")]
    write("many/3.csv", "body,label\nb,0\n")
    with pytest.raises(UserError, match="many/3.csv has no column text; its columns are body, label"):
        rows(find("many")["train"])


# Searches for the end of a field


@pytest.mark.slow
@pytest.mark.parametrize("line", ['"', '"a', 'a","b', '""', '"""', 'a,"b', '"a"b', '\\"', '"a","b', ',"', '"\\"'])
def test_any_file_takes_linear_time(line, monkeypatch):
    """Counted in lines that the parser is given; a file of 20 MB is no different."""
    given, pulled = records.Records.__next__, [0]

    def counting(self):
        pulled[0] += 1
        return given(self)

    monkeypatch.setattr(records.Records, "__next__", counting)
    for lines in (
        [line] * 3000,
        [line, *['""'] * 50] * 60,
        [line, *["a,b"] * 50] * 60,
        [*[line] * 500, *["x,y"] * 2500],
    ):
        for header in ("text", "label,text", "a,b,c"):
            pulled[0] = 0
            try:
                found = source("\n".join([header, *lines]))
            except UserError:  # there is nothing but quotation marks
                continue
            assert sum(len(batch[found.columns[0]]) for batch in found.read(found.columns)) <= len(lines)
            assert pulled[0] < 2 * (records.MANY + 4) * len(lines)


def test_the_search_for_the_end_of_a_field_is_bounded(monkeypatch):
    monkeypatch.setattr(records, "LONGEST_RECORD", 500)
    content = 'text\n"first\n' + "another line\n" * 100
    assert rows(source(content))[:2] == [('"first',), ("another line",)]
