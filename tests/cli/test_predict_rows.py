"""predict: one row out for each row in, in every format and from every kind of file; nothing is overwritten."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit import cli


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys, runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ulmfit.cli.predict.CHUNK", 3)

    def run(*words, code=0):
        assert cli.main(["predict", "--model", str(runs.clf), *map(str, words)]) == code
        run.err = capsys.readouterr()
        return run.err.out.splitlines()

    return run


def table(path):
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ","))


TEXTS = ["good film", "", "a bad one", "  ", "bad \udcff byte", "last"]
REASONS = ["", "empty", "", "empty", "undecodable", ""]


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode("utf-8", "surrogateescape"))


def inputs():
    """A file of each kind with the rows TEXTS."""
    write("a.txt", "\n".join(TEXTS))
    rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(TEXTS))
    write("a.csv", "id,text\n" + rows)
    write("a.tsv", "id\ttext\n" + rows.replace(",", "\t"))
    write("a.jsonl", "".join(f'{{"id": {number}, "text": "{text}"}}\n' for number, text in enumerate(TEXTS)))
    raw = pa.array([text.encode("utf-8", "surrogateescape") for text in TEXTS], pa.binary())
    texts = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    pq.write_table(pa.table({"id": pa.array(range(6), pa.int32()), "text": texts}), "a.parquet")
    return ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet"]


@pytest.mark.slow
def test_a_row_out_for_each_row_in(predict):
    for data in inputs():
        lines = [line.split("\t") for line in predict("--data", data)]
        assert [line[0] for line in lines] == list("012345")
        assert [line[3] if len(line) > 3 else "" for line in lines] == REASONS, data
        for output in (f"{data}.{kind}" for kind in ("csv", "tsv", "jsonl", "parquet")):
            predict("--data", data, "--output", output)
            rows = table(output)
            assert [int(row["row"]) for row in rows] == list(range(6)), output
            assert [row["reason"] for row in rows] == REASONS, output
            assert [bool(row["label"]) for row in rows] == [not reason for reason in REASONS], output
            for number, row in enumerate(rows):
                kept = row["input"] if "input" in row else row
                if "id" in kept:
                    assert int(kept["id"]) == number
                assert kept["text"] == TEXTS[number].replace("\udcff", "\ufffd")
                assert ("probabilities" in row and row["probabilities"] is None) == (
                    output.endswith("jsonl") and bool(REASONS[number])
                )
    assert pq.read_schema("a.parquet.parquet").field("id").type == pa.int32()


def test_blank_cells_and_torn_records_keep_their_places(predict):
    write("excel.csv", "text\r\ngood\r\n\r\nbad\r\n")
    write("torn.csv", "id,text\n0,good\n1,a,b,c\n2,bad\n")
    write("torn.jsonl", '{"id": 0, "text": "good"}\n{"id": 1, "te\n{"id": 2, "text": "bad"}\n')
    for data, reason in (("excel.csv", "empty"), ("torn.csv", "torn"), ("torn.jsonl", "torn")):
        predict("--data", data, "--output", f"{data}.csv")
        rows = table(f"{data}.csv")
        assert [row["row"] for row in rows] == ["0", "1", "2"], data
        assert [row["reason"] for row in rows] == ["", reason, ""], data
        assert [row["text"] for row in rows] == ["good", "", "bad"], data


def test_faults_never_refuse_a_prediction(predict):
    write("faults.csv", "text\n" + '""\n' * 50)
    lines = predict("--data", "faults.csv")
    assert [line.split("\t") for line in lines] == [[str(number), "", "", "empty"] for number in range(50)]


def test_rows_have_the_numbers_and_names_of_their_files(predict):
    write("parts/train-1.csv", "text\na\nb\n")
    write("parts/train-2.csv", "text\nc\n")
    write("parts/test.csv", "text,more\nd,1\ne,2\n")
    predict("--data", "parts", "--output", "p.csv")
    rows = [(row["row"], row["file"], row["text"], row["more"]) for row in table("p.csv")]
    assert rows == [
        ("0", "train-1.csv", "a", ""),
        ("1", "train-1.csv", "b", ""),
        ("0", "train-2.csv", "c", ""),
        ("0", "test.csv", "d", "1"),
        ("1", "test.csv", "e", "2"),
    ]
    predict("--data", "parts/train-*.csv", "--output", "p.jsonl")
    assert [(row["row"], row["file"]) for row in table("p.jsonl")] == [
        (0, "parts/train-1.csv"),
        (1, "parts/train-1.csv"),
        (0, "parts/train-2.csv"),
    ]


def test_documents_have_the_names_of_their_files(predict):
    for name, text in (("train/neg/1.txt", "bad"), ("train/pos/2.txt", ""), ("test/pos/x y.txt", "good")):
        write(f"docs/{name}", text)
    lines = [line.split("\t") for line in predict("--data", "docs")]
    assert [(line[0], line[1], line[-1] == "empty") for line in lines] == [
        ("0", "train/neg/1.txt", False),
        ("1", "train/pos/2.txt", True),
        ("2", "test/pos/x y.txt", False),
    ]


def test_marks_alone_are_labels_and_no_formula(predict, runs):
    """A file that predict writes goes back as --data."""
    shutil.copytree(runs.clf / "model", "of-marks")
    config = json.loads(Path("of-marks/config.json").read_text())
    Path("of-marks/config.json").write_text(json.dumps(config | {"label_names": ["-", "+"]}))
    write("a.csv", "text\na film\n")
    assert cli.main(["predict", "--model", "of-marks", "--data", "a.csv", "--output", "marks.csv"]) == 0
    (row,) = table("marks.csv")
    assert row["label"] in ("-", "+") and {"-", "+"} <= row.keys()


def test_names_that_are_taken(predict, runs, tmp_path):
    shutil.copytree(runs.clf / "model", "odd")
    config = json.loads(Path("odd/config.json").read_text())
    Path("odd/config.json").write_text(json.dumps(config | {"label_names": ["row", "=1+1"]}))
    write("a.csv", "row,text,label,reason,input_row,=1+1\n7,good,x,y,z,w\n")
    for output in ("p.csv", "p.parquet"):
        assert cli.main(["predict", "--model", "odd", "--data", "a.csv", "--output", output]) == 0
        (row,) = table(output)
        formula = "'=1+1" if output == "p.csv" else "=1+1"
        assert list(row) == ["row", "label", "probability_row", formula, "reason", "input_input_row", "text",
                             "input_label", "input_reason", "input_row", "input_=1+1"]  # fmt: skip
        assert row["input_input_row"] == "7" and row["input_row"] == "z" and row["label"] in ("row", formula)


@pytest.mark.parametrize("output", ["p.csv", "p.parquet", "p.jsonl"])
def test_a_value_that_is_nested_too_deeply_ends_nothing(predict, output):
    write("a.jsonl", '{"text": "a", "x": 1}\n{"text": "b", "x": ' + "[" * 900 + "]" * 900 + "}\n")
    predict("--data", "a.jsonl", "--output", output)
    assert [str(row.get("input", row)["x"]) for row in table(output)] == ["1", "(nested too deeply)"]


def test_values_of_other_types(predict):
    rows = [
        {"text": "a\tb\nc", "x": [1, {"y": None}], "z": 1.5},
        {"text": "\u001b[31mred", "x": "half \ud800", "z": True},
    ]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for output in ("p.csv", "p.tsv", "p.parquet", "p.jsonl"):
        predict("--data", "a.jsonl", "--output", output)
        found = [row.get("input", row) for row in table(output)]
        assert [row["text"] for row in found] == ["a\tb\nc", "\u001b[31mred"]
        if output == "p.jsonl":
            assert found == rows
        else:
            assert [(row["x"], row["z"]) for row in found] == [('[1, {"y": null}]', "1.5"), ("half \\ud800", "True")]
