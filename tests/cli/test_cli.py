"""The command line: every command's help, its mistakes, and what it imports."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import ulmfit
from ulmfit import cli
from ulmfit.cli.commands import COMMANDS, Command
from ulmfit.cli.option_groups import GROUPS
from ulmfit.cli.options import fields_of, flag_of, is_switch, is_texts, parse
from ulmfit.config import PATHS, ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.fit_config import FitConfig
from ulmfit.sweep_config import SweepConfig

ROOT = Path(ulmfit.__file__).parents[1]
TRAINERS = [name for name, command in COMMANDS.items() if command.trains]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def ended(capsys, *argv, code=0):
    """Output of a command that ends with this code: stdout, or the last line of stderr where it is a mistake's."""
    assert cli.main([str(word) for word in argv]) == code
    out, err = capsys.readouterr()
    if code == 0:
        return out
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def python(*argv, **options):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120, env=env, **options
    )


# Help


def test_without_a_command_each_is_listed_with_a_line(capsys):
    text = ended(capsys)
    assert text == ended(capsys, "--help") == ended(capsys, "-h")
    lines = text.split("commands\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line) < 100 and len(line.split()) > 4 for line in lines)


def parts_of(kind):
    """The trainings of a command, whose options it takes with their name before them."""
    return ("lm", "clf") if kind in (FitConfig, SweepConfig) else ()


def entries(text):
    """What a help says of each option: `--name` -> its metavar and explanation."""
    found, name = {}, None
    for line in text.partition("\n\n")[2].partition("\nexample\n")[0].splitlines():
        if line.startswith("  ") and line[2] != " ":
            name = line.split()[0].rstrip(",")
            assert name not in found
            found[name] = ""
        if name and line.startswith("  "):
            found[name] += " " + line.strip()
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_each_option_once_with_its_default(capsys, name):
    kind, text = COMMANDS[name].options, ended(capsys, name, "--help")
    assert text == ended(capsys, name, "-h") and text.startswith(f"usage: ulmfit {name} ")
    found = entries(text)
    options = {flag_of(option): option for option, hint in fields_of(kind).items() if not is_texts(hint)}
    texts = [option for option, hint in fields_of(kind).items() if is_texts(hint)]
    positional = {getattr(kind, "metavars", {}).get(option, option.upper()).split()[0] for option in texts}
    assert set(found) == set(options) | positional | {"--help"} | {f"--{part}.OPTION" for part in parts_of(kind)}
    for flag, option in options.items():
        (default,) = (field.default for field in dataclasses.fields(kind) if field.name == option)
        words = found[flag]
        if default is dataclasses.MISSING:
            assert words.endswith("(required)")
        else:
            assert words.count("(default: ") == 1 and "default: None" not in words, words
        if default not in (dataclasses.MISSING, None) and not isinstance(default, bool):
            assert words.endswith(f"(default: {default})")
    example = text.splitlines()[-1].split()
    assert example[:2] == ["ulmfit", name]
    assert all(word in options for word in example[2:] if word.startswith("--"))


@pytest.mark.parametrize("name", TRAINERS)
def test_help_of_the_trainers_is_in_groups(capsys, name):
    text, fields = ended(capsys, name, "--help"), fields_of(COMMANDS[name].options)
    groups = getattr(COMMANDS[name].options, "groups", GROUPS)
    _, _, options = text.split("\n\n", 2)  # behind the usage, and the sentences on the command
    heads = [line for line in options.splitlines() if line and not line.startswith(" ")]
    assert heads == [*groups, "example"]
    for group, names in groups.items():
        part = text.split(f"\n{group}\n")[1].split("\n\n")[0]
        wanted = [flag_of(option) for option in names if option in fields]
        assert [flag for flag in entries("\n\n" + part + "\n") if flag != "--help" and "." not in flag] == wanted
    grouped = [option for names in groups.values() for option in names]
    assert len(grouped) == len(set(grouped)) and set(fields) <= set(grouped)


def test_groups_and_paths_name_options_that_exist():
    trained = set(fields_of(LMConfig)) | set(fields_of(ClassifierConfig))
    assert {option for names in GROUPS.values() for option in names} == trained
    assert set(PATHS) <= {option for command in COMMANDS.values() for option in fields_of(command.options)}


@pytest.mark.slow
def test_help_shows_the_defaults_that_a_config_file_sets(capsys, runs):
    found = entries(ended(capsys, "train-lm", "--config", runs.lm / "config.json", "--help"))
    assert found["--max-steps"].endswith("(default: 6)") and found["--keep"].endswith("(default: 2)")
    assert found["--max-steps"].count("default") == 1


def test_scripts_show_the_help_of_their_command():
    for script, name in (("train_lm.py", "train-lm"), ("train_clf.py", "train-clf")):
        done = python(ROOT / script, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"usage: python {script} [OPTIONS]\n")
        assert set(entries(done.stdout)) == {flag_of(option) for option in fields_of(COMMANDS[name].options)} | {
            "--help"
        }


def test_python_m_ulmfit_and_the_installed_command_are_main():
    done = python("-m", "ulmfit")
    assert done.returncode == 0 and "train-clf" in done.stdout and done.stderr == ""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ulmfit"]
    module, function = entry.split(":")
    assert getattr(import_module(module), function) is cli.main


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], *([name, "--help"] for name in COMMANDS), ["predict", "--modle", "x"]])
def test_help_and_mistakes_do_not_import_torch(words):
    code = (
        "import sys; from ulmfit.cli import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'datasets', 'accelerate'} & set(sys.modules); raise SystemExit(code)"
    )
    done = python("-c", code, *words)
    assert done.returncode == (2 if "--modle" in words else 0), done.stderr


# Mistakes

MISTAKES = {
    "predictt": r"there is no command predictt; did you mean predict?",
    "xyzzy": "there is no command xyzzy; see ulmfit --help",
    "--colour": "there is no command --colour; see ulmfit --help",
    "generate --model x The --colour red": "there is no option --colour; see --help",
    "predict --modle x text": "there is no option --modle; did you mean --model?",
    "predict -m x": "there is no option -m; see --help",
    "predict text": "--model is missing; see --help",
    "generate --model x": "PROMPT is missing; see --help",
    "predict --model": "--model needs a value; it takes a text",
    "predict --model --int8 text": "--model needs a value; it takes a text",
    "predict --model x --int8=yes text": "--int8 takes no value; write --int8 alone, or --no-int8 for the opposite",
    "generate --model x The --top-k many": "--top-k many does not fit; it takes a whole number",
    "generate --model x The --temperature warm": "--temperature warm does not fit; it takes a number",
    "show --tokenizer x --task both": "--task both does not fit; it takes one of lm, clf",
    "show --tokenizer x --rows 0": "--rows is 0; give at least 1",
    "show --tokenizer x surplus": "to train on a file, write --data surplus",
    "tokenizer --min-freq 0": "--min-freq is 0; give at least 1",
    "generate --model x The --min-p 2": "--min-p is 2; give at most 1",
    "evaluate --model x --batch-size 0": "--batch-size is 0; give at least 1",
    "train-lm --batchsize 4": "there is no option --batchsize; did you mean --batch-size?",
    "train-lm --keep-best=1": "--keep-best takes no value; write --keep-best alone, or --no-keep-best",
    "train-clf reviews.csv": "reviews.csv belongs to no option; to train on a file, write --data reviews.csv",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_sentence_and_code_2(capsys, words):
    assert MISTAKES[words] in ended(capsys, *words.split(), code=2)


# Parsing


def test_texts_stand_anywhere_between_the_options():
    kind = COMMANDS["predict"].options
    for words in (
        ["one", "--model", "m", "two"],
        ["--model=m", "one", "two"],
        ["one", "two", "--model", "m"],
        ["--model", "m", "--", "one", "two"],
    ):
        parsed = parse(kind, words)
        assert (parsed.model, parsed.text) == (["m"], ("one", "two"))
    odd = ["- a dash", "-- two dashes", "-5", "a=b", "", "--in all it was=good"]
    assert parse(kind, ["--model", "m", *odd]).text == tuple(odd)
    assert parse(kind, ["--model", "m", "--", "--model", "--help"]).text == ("--model", "--help")


def test_values_are_read_as_they_are_meant():
    options = parse(LMConfig, ["--lr", "1e-3", "--batch_size=8", "--micro-batches", "auto", "--data=", "--clip", "0"])
    assert (options.lr, options.batch_size, options.micro_batches, options.data, options.clip) == (
        1e-3,
        8,
        "auto",
        "",
        0,
    )
    with pytest.raises(UserError, match="^--lr is -1; "):
        parse(LMConfig, ["--lr", "-1"])
    assert parse(LMConfig, ["--micro-batches", "2", "--preset", "None"]) == LMConfig(micro_batches=2)
    assert parse(LMConfig, []) == LMConfig() and parse(ClassifierConfig, []) == ClassifierConfig()


@pytest.mark.parametrize("kind", (LMConfig, ClassifierConfig))
def test_every_switch_can_be_turned_on_and_off(kind):
    switches = [name for name, hint in fields_of(kind).items() if is_switch(hint)]
    assert {"samples", "keep_best", "backwards"} <= set(switches)
    for name in switches:
        assert getattr(parse(kind, [flag_of(name)]), name) is True
        assert getattr(parse(kind, [f"--no-{flag_of(name)[2:]}"]), name) is False


def test_a_home_directory_is_resolved_also_behind_an_equals_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse(LMConfig, ["--output-dir=~/run", "--data", "~/x.csv", "--text-column=~/a"])
    assert (options.output_dir, options.data) == (f"{tmp_path}/run", f"{tmp_path}/x.csv")
    assert options.text_column == "~/a"  # no path
    assert parse(COMMANDS["predict"].options, ["--model=~/m", "~/t"]).model == [f"{tmp_path}/m"]
    (tmp_path / "config.json").write_text(json.dumps({"options": {"seed": 7}}))
    assert parse(LMConfig, ["--config=~/config.json"]).seed == 7


# Outcomes


def command_that(monkeypatch, action, *, trains=False):
    """Registers a command `act` that does this."""

    @dataclasses.dataclass
    class Nothing:
        """Has no options, and its line."""

    command = Command(Nothing, lambda options, *stop: action(*stop), "", trains)
    monkeypatch.setitem(COMMANDS, "act", command)


def test_exit_codes(monkeypatch, capsys):
    def fail(error):
        raise error

    for error, code, last in (
        (UserError("that is wrong; mend it"), 2, "error: that is wrong; mend it"),
        (RuntimeError("lost"), 1, "failed: RuntimeError: lost"),
        (KeyboardInterrupt(), 130, ""),
    ):
        for trains in (False, True):
            command_that(monkeypatch, lambda *stop, error=error: fail(error), trains=trains)
            assert cli.main(["act"]) == code
            err = capsys.readouterr().err
            assert err.rstrip("\n").split("\n")[-1] == last
            assert ("Traceback" in err) == (code == 1)


def test_only_a_training_keeps_the_signals(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    seen = []

    def look(stop=None):
        seen.append({number: signal.getsignal(number) for number in before} == before)
        if stop is not None:
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested() and stop.reason == "SIGTERM"

    command_that(monkeypatch, look)
    assert cli.main(["act"]) == 0 and seen == [True]
    command_that(monkeypatch, look, trains=True)
    assert cli.main(["act"]) == 0 and seen == [True, False]


@pytest.mark.parametrize("start", (["train_lm.py"], ["-m", "ulmfit", "train-clf"]))
def test_signals_are_caught_before_anything_slow_is_imported(start):
    """When the signal handlers are installed, no module is loaded yet that takes long."""
    code = f"""
import runpy, signal, sys
def look(number, handler):
    assert not {{"torch", "tyro", "numpy", "datasets"}} & set(sys.modules)
    print("installed", flush=True)
    raise SystemExit(0)
signal.signal = look
words = {start!r}
sys.argv = words[1 if words[0] == "-m" else 0:]
if words[0] == "-m":
    runpy.run_module(words[1], run_name="__main__")
else:
    runpy.run_path(words[0], run_name="__main__")
"""
    done = python("-c", code, cwd=ROOT)
    assert done.stdout == "installed\n" and done.returncode == 0, done.stderr


def test_a_signal_before_a_command_without_checkpoints_is_not_lost(monkeypatch):
    from ulmfit.distributed.stop import StopRequest

    caught = []
    signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
    request = StopRequest.install()
    signal.raise_signal(signal.SIGUSR1)
    assert caught == []
    request.release()
    assert caught == [signal.SIGUSR1]
