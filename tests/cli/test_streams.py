"""Standard streams that are closed, full, or a pipe whose reader has gone: real processes, since they are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import ulmfit
from ulmfit.cli.generate import GenerateOptions, generate
from ulmfit.generation import LanguageModel

ROOT = Path(ulmfit.__file__).parents[1]
# A command `act` that prints, by its name as the trainers or as predict does, and then writes the file `done`.
PROGRAM = """
import dataclasses, os, sys
from pathlib import Path
from ulmfit import cli
from ulmfit.cli.commands import COMMANDS, Command

@dataclasses.dataclass
class Nothing:
    '''Has no options.'''

def act(options, *stop):
    print(sys.stdin.read() if sys.stdin else "", end="")
    for number in range(20_000):
        print("a line of output", number)
    sys.stdout.flush()
    os.write(os.open("file", os.O_WRONLY | os.O_CREAT), b"mine")
    print("on stderr", file=sys.stderr)
    print("more", flush=True)
    Path("done").touch()

@dataclasses.dataclass
class Writes(Nothing):
    '''Has a file as its result.'''
    output: str = "file"
    '''The file.'''

kind = sys.argv[1]
COMMANDS["act"] = Command(Writes if kind == "writes" else Nothing, act, "", trains=kind == "trains")
raise SystemExit(cli.main(["act"]))
"""
WAYS = {
    "closed": "{} >&- 2>err",
    "all closed": "{} <&- >&- 2>&-",
    "full": "{} >/dev/full 2>err",
    "both full": "{} >/dev/full 2>/dev/full",
    "reader gone": "set -o pipefail; {} 2>err | head -1 >first",
}
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def shell(line, *words):
    command = f'"{sys.executable}" ' + " ".join(f"'{word}'" for word in words)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line.format(command)], env=env, timeout=200, stdin=subprocess.DEVNULL, check=False
    ).returncode


@needs_full
@pytest.mark.parametrize("way", WAYS)
def test_a_training_goes_on(tmp_path, way):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert shell(WAYS[way], "program.py", "trains") == 0
    assert (tmp_path / "done").exists() and (tmp_path / "file").read_bytes() == b"mine"
    if (tmp_path / "err").exists():
        assert (tmp_path / "err").read_text() == "on stderr\n"


@needs_full
@pytest.mark.parametrize("way", ["full", "reader gone"])
def test_a_command_that_writes_a_file_goes_on(tmp_path, way):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert shell(WAYS[way], "program.py", "writes") == 0
    assert (tmp_path / "done").exists() and (tmp_path / "err").read_text() == "on stderr\n"


@needs_full
@pytest.mark.parametrize(("way", "code"), [("closed", 0), ("full", 2), ("both full", 2), ("reader gone", 0)])
def test_a_command_ends_where_its_result_is_lost(tmp_path, way, code):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert shell(WAYS[way], "program.py", "prints") == code
    told = {"full": "error: standard output cannot be written (No space left on device); send it to another place\n"}
    if way == "closed":
        assert (tmp_path / "done").exists() and (tmp_path / "file").read_bytes() == b"mine"
    elif way != "both full":
        assert not (tmp_path / "done").exists() and (tmp_path / "err").read_text() == told.get(way, "")


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.replace('print("more"', 'print("caf\\xe9 \\udce9"'))
    assert shell("PYTHONIOENCODING=ascii:strict {} >out", "program.py", "prints") == 0
    assert (tmp_path / "out").read_text().splitlines()[-1] == "caf\\xe9 \\udce9"


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("way", ("all closed", "both full"))
def test_the_trainer_itself_goes_on(tmp_path, reviews, way):
    words = (
        f"train-lm --data {reviews} --preset tiny --max-steps 3 --batch-size 4 --bptt 10 --log-every 1 --output-dir run"
    )
    assert shell(WAYS[way], "-m", "ulmfit", *words.split()) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_predict_into_a_pipe_that_is_closed(tmp_path, runs):
    with open("new.csv", "w") as file:
        file.write("text\n" + "one film\n" * 6000)
    code = shell(
        "set -o pipefail; {} 2>err | head -1 >first",
        "-m",
        "ulmfit",
        "predict",
        "--model",
        runs.clf,
        "--data",
        "new.csv",
    )
    assert code == 0 and (tmp_path / "err").read_text() == ""
    assert len((tmp_path / "first").read_text().splitlines()) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_no_word_of_a_vocabulary_commands_a_terminal(terminal, monkeypatch, capsys):
    monkeypatch.setattr(
        LanguageModel, "from_pretrained", lambda path: SimpleNamespace(generate=lambda *_, **__: ["a\x1b[2Jb"])
    )
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: terminal)
    generate(GenerateOptions(prompt=("a",), model="x"))
    assert capsys.readouterr().out == ("a\\x1b[2Jb\n" if terminal else "a\x1b[2Jb\n")
