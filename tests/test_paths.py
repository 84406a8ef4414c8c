"""Paths as users give them: ~, pathlib.Path, long names, names that are no UTF-8, under any locale."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ulmfit import ClassifierConfig, LanguageModel, LMConfig, TextClassifier, Tokenizer, train_language_model
from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import fields_of, flag_of, is_texts, parse, required
from ulmfit.errors import UserError
from ulmfit.excerpts import failure
from ulmfit.option_types import normalized
from ulmfit.paths import PATHS, as_path

BYTES = os.fsdecode(b"caf\xe9")  # Latin-1, as in an archive of the last century


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def options_with_paths() -> list:
    return [pytest.param(command.options, field, id=f"{name}-{field}") for name, command in COMMANDS.items()
            for field in sorted(set(fields_of(command.options)) & PATHS)]  # fmt: skip


def words(kind: type, field: str, value: str) -> list[str]:
    """A command line that gives an option, and what else the command needs."""
    hints = fields_of(kind)
    needed = [word for name in required(kind) if name != field and not is_texts(hints[name])
              for word in (flag_of(name), "x")]  # fmt: skip
    return [*needed, f"{flag_of(field)}={value}", *(["a text"] if any(map(is_texts, hints.values())) else [])]


def test_every_option_that_names_a_file_is_known_as_one():
    """By its help: a new option of that kind must get `~` resolved too."""
    for command in COMMANDS.values():
        for field in dataclasses.fields(command.options):
            is_named = field.name.endswith(("dir", "file", "path", "folder"))
            is_declared = "PathOption" in str(field.type)
            assert field.name in PATHS or not (is_named or is_declared), (command.options, field.name)


@pytest.mark.parametrize(("kind", "field"), options_with_paths())
def test_the_home_directory_in_every_option(kind, field, home):
    if field == "config":
        with pytest.raises(UserError, match=f"--config {home}/x.json cannot be read"):
            parse(kind, words(kind, field, "~/x.json"))
        return
    found = getattr(parse(kind, words(kind, field, "~/x y/ü")), field)
    assert found in (f"{home}/x y/ü", [f"{home}/x y/ü"])
    if dataclasses.is_dataclass(kind) and kind in (LMConfig, ClassifierConfig):
        for value in ("~/x y/ü", Path("~/x y/ü")):
            assert getattr(normalized(kind(**{field: value})), field) == f"{home}/x y/ü"


@pytest.mark.parametrize(("kind", "field"), options_with_paths())
@pytest.mark.parametrize(("value", "message"), [
    ("x" * 300, "holds a name of 300 bytes"), ("a/" + "ü" * 200 + "/b", "holds a name of 400 bytes"),
    ("a/" * 3000, "longer than 4,095 bytes"), ("a\0b", "null character"), ("~nobody-of-that-name/x", "home directory is not"),
    ("\ud800", "characters that names of files cannot have here"),
])  # fmt: skip
def test_impossible_names_in_every_option(kind, field, value, message):
    if field == "valid" and value.startswith("~"):
        return  # it may be a column
    with pytest.raises(UserError) as caught:
        parse(kind, words(kind, field, value))
    text = str(caught.value)
    assert text.startswith(flag_of(field)) and message in text and text.isprintable() and len(text) < 300


@pytest.mark.slow
@pytest.mark.parametrize("load", [
    LanguageModel.from_pretrained, TextClassifier.from_pretrained, Tokenizer.from_file,
    lambda path: train_language_model(LMConfig(data=path)), lambda path: train_language_model(LMConfig(init=path)),
])  # fmt: skip
@pytest.mark.parametrize("value", ["x" * 300, "a\0b", "~nobody-of-that-name/x", "~/missing/x", BYTES + "/x"])
@pytest.mark.parametrize("kind", [str, Path])
def test_impossible_names_in_python(load, value, kind):
    with pytest.raises(UserError) as caught:
        load(kind(value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("given", "shown"), [
    ("https://jane:secret@host/a.csv", "https://***@host/a.csv"), ("s3://key:se@cret@bucket/x", "s3://***@bucket/x"),
    ("'https://host/a.csv?X-Signature=secret&b=1' is gone", "'https://host/a.csv?***' is gone"),
    ("a=1:s3://jane@b/x?k=secret", "a=1:s3://***@b/x?***"), ("s3://b/year=1/part-?.csv has none", "s3://b/year=1/part-?.csv has none"),
    ("403, url=URL('https://h/x?token=secret')", "403, url=URL('https://h/x?***')"), ("a@b.org, x?y=z", "a@b.org, x?y=z"),
    ("s3:/key:se@cret@bucket/m?sig=S does", "s3:/***@bucket/m?*** does"), ("C:/films/a@b.csv", "C:/films/a@b.csv"),
])  # fmt: skip
def test_keys_in_urls_are_in_no_message(given, shown):
    assert str(UserError(given)) == shown
    assert failure(ValueError(given)) == f"ValueError: {shown}"


def test_a_glob_may_be_longer_than_a_name():
    assert as_path("[" + "ab" * 200 + "].csv", "--data").startswith("[")


def test_a_file_of_a_name_that_begins_with_a_tilde_is_read():
    Path("~kept").mkdir()
    Path("~kept/a.csv").write_text("text\na\n")
    assert as_path("~kept/a.csv", "--data") == "~kept/a.csv"


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"},
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"},
}
SCRIPT = """
import os, sys
from pathlib import Path
from ulmfit.cli import main
name = os.fsdecode(sys.argv[1])
lines = [f"text {n} of the film, na\\u00efve \\u4e2d\\u6587 \\U0001f600" for n in range(30)] * 3
for label in ("pos", name):
    os.makedirs(os.path.join(name, "d", "pos" if label == "pos" else "neg"), exist_ok=True)
Path(name, "a.txt").write_text("\\n".join(lines), encoding="utf-8")
os.makedirs("d/caf\\u00e9 \\x1b[31m\\n=1+1" if sys.getfilesystemencoding() != "ascii" else "d/=1+1", exist_ok=True)
os.makedirs("d/pos", exist_ok=True)
for folder in os.listdir("d"):
    for n in range(20):
        Path("d", folder, f"{n}.txt").write_text(f"text {n} of {folder.encode('unicode_escape').decode()} words", encoding="utf-8")
tiny = ["--preset", "tiny", "--recipe", "none", "--lr", "1e-3", "--max-steps", "2", "--batch-size", "4", "--threads", "1"]
codes = [
    main(["train-lm", "--data", os.path.join(name, "a.txt"), "--output-dir", "run", "--subword", "bpe", *tiny]),
    main(["generate", "--model", "run", name + " \\u4e2d the", "--seed", "1", "--max-new-tokens", "5"]),
    main(["train-clf", "--data", "d", "--output-dir", "clf", *tiny]),
    main(["predict", "--model", "clf", name + " \\u4e2d a text"]),
    main(["predict", "--model", "clf", "--data", "d", "--output", os.path.join(name, "out.csv")]),
    main(["train-lm", "--data", os.path.join(name, "missing.txt")]),
    main(["train-lm", "--data", os.path.join(name, "a.txt"), "--output-dir", name]),
]
sys.stderr.write(f"codes {codes}\\n")
"""


LONG = pytest.mark.skipif("ULMFIT_FUZZ_TREES" not in os.environ, reason="of the long tier, see tests/run_long.sh")


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", pytest.param("cp1252", marks=LONG), pytest.param("UTF-8", marks=LONG)])
def test_names_prompts_and_outputs_under_any_locale(locale, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    found = subprocess.run([sys.executable, "-c", SCRIPT, b"caf\xe9"], capture_output=True, cwd=tmp_path,
                           env=environment | LOCALES[locale] | {"HF_HUB_OFFLINE": "1"})  # fmt: skip
    errors = found.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors and "codes [0, 0, 0, 0, 0, 2, 2]" in errors, errors[-3000:]
    assert b"\x1b[31m" not in found.stdout + found.stderr
