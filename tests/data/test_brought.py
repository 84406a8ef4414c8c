"""Files and folders as users bring them: what must not be read as texts is refused, and messages name the right cure."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.data.files import whole, write
from ulmfit.data.corpus import open_corpus, open_rows
from ulmfit.data.fingerprint import Access
from ulmfit.data.sources import find
from ulmfit.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")

ROWS = [(["neg", "pos"][number % 2], f"a film about number {number}") for number in range(20)]
TABLE = "label,text\n" + "".join(f"{label},{text}\n" for label, text in ROWS)


def refusal(data: str, task: str = "clf", **options) -> str:
    with pytest.raises(UserError) as caught:
        corpus = open_corpus(data, task=task, **options)
        for split in corpus.splits.values():
            whole(split)
    return str(caught.value)


def documents(*folders: str, number: int = 4) -> None:
    for folder in folders:
        for place in range(number):
            write(f"{folder}/{place}.txt", f"{folder} text {place}")


PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj <</Type /Catalog>> endobj"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@pytest.mark.parametrize("content", (PDF, PNG), ids=("pdf", "png"))
def test_binaries_whose_bytes_fit_cp1252_are_no_documents(content):
    documents("c/neg", "c/pos")
    write("c/pos/x.txt", content)
    rows = list(open_rows("c").every_row())
    assert rows[0].reasons == [""] * 8 + ["undecodable"] and rows[0].texts[-1] == ""


def test_documents_in_wide_encodings_are_read():
    documents("c/neg", "c/pos")
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"):
        write(f"c/pos/{name}.txt", "A café in the evening".encode(name))
    (batch,) = open_rows("c").every_row()
    assert batch.texts[-5:] == ["A café in the evening"] * 5


@pytest.mark.parametrize("top", (",\n", ",,\n\n , \n", "\n;\n\t\n"))
def test_empty_records_above_the_names_are_blank_lines(top):
    write("a.csv", top + TABLE)
    assert find("a.csv", Access())["train"].columns == ["label", "text"]
    (batch,) = open_rows("a.csv").every_row()
    assert batch.first == 0 and batch.texts == [text for _, text in ROWS]


def test_empty_records_above_rows_without_names_are_rows():
    write("a.csv", ",\n" + TABLE.partition("\n")[2])
    (batch,) = open_rows("a.csv", "1", access=Access(header=False)).every_row()
    assert batch.texts == ["", *(text for _, text in ROWS)] and batch.reasons[0] == "empty"


@pytest.mark.parametrize("title", ("Export of 2024\n", "# made by a program\n# on Monday\n\n"))
@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("task", ("lm", "clf"))
def test_lines_above_a_table_are_refused_and_its_records_are_no_texts(title, separator, task):
    write("a.csv", title + TABLE.replace(",", separator))
    assert "delete them, or add --separator none" in refusal("a.csv", task)
    found = find("a.csv", Access(separator="none"))["train"]
    assert len(found.columns) == 1


def test_texts_with_a_comma_each_are_one_column():
    write("a.csv", "text\n" + "".join(f"well, {text}\n" for _, text in ROWS))
    (batch,) = open_rows("a.csv").every_row()
    assert batch.texts == [f"well, {text}" for _, text in ROWS]


@pytest.mark.parametrize("end", ("\n", " \n\ufeff\n", ""))
def test_what_follows_an_array_is_not_lost(end):
    one = json.dumps([{"text": text} for _, text in ROWS])
    write("a.json", one + end)
    assert len(whole(open_rows("a.json"))[0]) == 20
    write("a.json", one + end + one)
    assert "is no whole JSON array (it goes on after its ])" in refusal("a.json", "lm")


@pytest.mark.parametrize("missing", ("NA", "nan", "NULL"))
def test_words_for_missing_values_are_no_classes_unless_said(missing):
    write(
        "a.csv",
        "label,text\n" + "".join(f"{missing if n % 3 else label},{text}\n" for n, (label, text) in enumerate(ROWS)),
    )
    assert f"add --unlabelled {missing} if it marks rows without a label" in refusal("a.csv")
    assert open_corpus("a.csv", task="clf", unlabelled=missing).label_names == ["neg", "pos"]
    assert open_corpus("a.csv", task="clf", unlabelled="none").label_names == sorted([missing, "neg", "pos"])


def test_the_value_of_unlabelled_is_a_label_as_those_of_the_data():
    write("a.csv", "label,text\n" + "".join(f"{n % 3}.0,{text}\n" for n, (_, text) in enumerate(ROWS)))
    for said in ("0", "0.0", " 0 "):
        assert open_corpus("a.csv", task="clf", unlabelled=said).label_names == ["1", "2"]
    corpus = open_corpus("a.csv", task="clf", unlabelled="7")
    assert corpus.label_names == ["0", "1", "2"]
    assert "no row of a.csv has the label 7 that --unlabelled names" in "\n".join(corpus.notes)


def test_a_text_column_that_appears_late_is_found(monkeypatch):
    monkeypatch.setattr("ulmfit.data.readers._FIRST_ROWS", 1)
    lines = [{"id": 1}] + [{"text": text, "id": 2, "held": number < 5} for number, (_, text) in enumerate(ROWS)]
    write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("ulmfit.data.json_files.names", _first_only(lines[0]))
    assert open_corpus("a.jsonl", task="lm").text_columns == ["text"]
    corpus = open_corpus("a.jsonl", task="lm", valid="held")
    assert len(whole(corpus.splits["valid"])[0]) == 5


def _first_only(first):
    """`json_files.names` of a head that ends before the other rows."""
    from ulmfit.data.json_files import names

    return lambda rows: names([first] if len(rows) > 1 else rows)


def test_files_of_labels_are_no_texts():
    folder = SimpleNamespace(text="".join(f"{text}\n" for _, text in ROWS), labels="0\n1\n" * 10)
    for name in ("train", "val", "test"):
        write(f"t/{name}_text.txt", folder.text)
        write(f"t/{name}_labels.txt", folder.labels)
    assert "t/train_labels.txt" in refusal("t/train*.txt", "lm") and "_labels.txt, which" in refusal("t", "lm")
    write("t/mapping.txt", "0 neg\n")
    assert "t/mapping.txt beside" in refusal("t", "lm")


def test_a_corpus_in_the_only_folder_of_a_folder_has_its_splits():
    documents("w/corpus/train/neg", "w/corpus/train/pos", "w/corpus/test/neg", "w/corpus/test/pos", number=10)
    write("w/corpus.zip.md5", "0")
    corpus = open_corpus("w", task="lm")
    assert sum(len(whole(corpus.splits[name])[0]) for name in ("train", "valid")) == 20 and "test" in corpus.splits
    assert "w: read from its only folder corpus" in corpus.notes[0]
    write("x/data/train.csv", TABLE)
    assert open_corpus("x", task="clf").label_names == ["neg", "pos"]
    documents("y/neg/2023", "y/neg/2024")  # a class, and not a corpus with the classes 2023 and 2024
    assert "y have the label neg; a classifier needs two classes or more (give y/neg if" in refusal("y")


def test_messages_about_labels_that_are_not_there_name_a_cure():
    documents("f/train", "f/test")
    assert "rename them if they are classes" in refusal("f")
    documents("g/train/neg", "g/train/pos", "g/test")
    assert "g/test has no column label; label its rows, or move it away" in refusal("g")
    write("h.txt", "".join(f"{label}\t{text}\n" for label, text in ROWS))
    assert refusal("h.txt").endswith("if it is a table, add --separator tab)")
    write("i.csv", "text\nA film\n")
    assert "its only column is text; give data with labels" in refusal("i.csv")
    write("j.train", "__label__pos a film\n")
    assert "rename it to .txt if each line is a text" in refusal("j.train")


@pytest.mark.parametrize("options", ({"text_column": "label"}, {"text_column": "text,label"}, {"label_column": "text"}))
def test_a_classifier_does_not_read_its_labels(options):
    write("a.csv", TABLE)
    assert "holds the labels and cannot be the text" in refusal("a.csv", **options)


@pytest.mark.parametrize("encoding", ("utf-16", "utf-32"))
def test_a_wrong_encoding_is_named_and_not_the_file_blamed(encoding):
    write("a.csv", TABLE)
    write("a.txt", TABLE)
    documents("c/neg", "c/pos")
    for path in ("a.csv", "a.txt"):
        assert f"{path} is not written in {encoding}" in refusal(path, "lm", access=Access(encoding=encoding))
    write("c/neg/wide.txt", "A film about nothing".encode("utf-16-be"))
    (batch,) = open_rows("c", access=Access(encoding="utf-16")).every_row()
    assert set(batch.reasons[:4] + batch.reasons[5:]) == {"undecodable"} and batch.texts[4] == "A film about nothing"


def test_rows_without_a_label_cell_are_torn_and_not_of_another_encoding():
    write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for label, text in ROWS * 2) + "(40 rows affected)\n")
    corpus = open_corpus("a.csv", task="clf")
    for split in corpus.splits.values():
        whole(split)
    assert sum((split.skipped for split in corpus.splits.values()), start=type(corpus.splits["train"].skipped)()) == {
        "torn": 1
    }


def test_two_byte_order_marks_are_no_part_of_a_name():
    write("a.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + TABLE.encode())
    assert find("a.csv", Access())["train"].columns == ["label", "text"]


@pytest.mark.parametrize("encoding, words", (("cp1251", "наш фильм хороший"), ("shift_jis", "この映画はとても良い"),
                                             ("iso8859_7", "αυτή η ταινία")))  # fmt: skip
def test_words_of_another_alphabet_among_english_ask_for_the_encoding(encoding, words):
    content = "label,text\n" + "".join(f"{label},{text} was good and long {words}\n" for label, text in ROWS)
    write("a.csv", content.encode(encoding))
    assert refusal("a.csv").endswith("name their --encoding, or clean them")
    (batch,) = open_rows("a.csv", access=Access(encoding=encoding)).every_row()
    assert batch.texts[0].endswith(words)


def test_western_words_with_many_accents_are_read():
    words = "elle a été créée à Paris, où la naïveté était déjà là; die Größe über alles, señor, ein CRÉÉE"
    write("b.txt", words.encode("cp1252"))
    (batch,) = open_rows("b.txt").every_row()
    assert batch.texts == [words]
