"""Numbers that nobody means: each is refused in a sentence, or does no harm."""

import math
from typing import get_args, get_type_hints

import pytest

from tests.tiers import LONG
from tests.training import runs
from ulmfit import train_classifier, train_language_model
from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import fields_of, is_texts, parse, required
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.config_check import check
from ulmfit.errors import UserError
from ulmfit.limits import LIMITS
from ulmfit.training.loop import TrainingFailed

HUGE = {int: [10**6, 10**9, 10**30, 10**400, math.inf], float: [1e6, 1e12, 1e300, math.inf]}
TINY = {int: [0], float: [0.0, 1e-300, 1e-9]}
BELOW = {int: [-1, -(10**30), math.nan], float: [-1.0, -1e-300, -math.inf, math.nan]}


def numbers(kind):
    """The numeric options of a configuration: (name, int or float)."""
    found = []
    for name, hint in get_type_hints(kind).items():
        kinds = {hint, *get_args(hint)}
        if name in kind.__dataclass_fields__ and kinds & {int, float}:
            found.append((name, float if float in kinds else int))
    return found


def test_every_numeric_option_has_limits():
    names = {name for command in COMMANDS.values() for name, _ in numbers(command.options)}
    assert len(names) > 25 and names == LIMITS.keys()


@pytest.mark.parametrize("kind", [LMConfig, ClassifierConfig])
def test_numbers_out_of_range_are_refused_in_a_sentence(kind):
    for name, number in numbers(kind):
        for value in BELOW[number] + HUGE[number][-2:]:
            if LIMITS[name].least <= value <= LIMITS[name].most:
                continue
            with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} is \S+; give .*[^.]$") as raised:
                check(kind(**{name: value}))
            assert len(str(raised.value)) < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if numbers(command.options)])
def test_every_command_refuses_numbers_out_of_range(name):
    kind = COMMANDS[name].options
    needed = [f"--{field.replace('_', '-')}=x" for field in required(kind) if not is_texts(fields_of(kind)[field])]
    texts = ["x"] if any(is_texts(hint) for hint in fields_of(kind).values()) else []
    for option, number in numbers(kind):
        flag = f"--{option.replace('_', '-')}"
        for value in ("-1", "1e400" if number is float else str(10**30), "nan" if number is float else str(-(10**30))):
            with pytest.raises(UserError, match=rf"^{flag} is \S+; give .*[^.]$"):
                parse(kind, [*needed, f"{flag}={value}", *texts])


def test_the_defaults_are_in_range():
    check(LMConfig())
    check(ClassifierConfig())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lm", "clf"])
def test_what_is_let_through_does_no_harm(task, tmp_path, monkeypatch):
    """Trained for some steps, it ends: done, preempted, refused, or given up in a sentence."""
    monkeypatch.setenv("ULMFIT_CACHE", str(tmp_path / "cache"))
    data = str(runs.write_reviews(tmp_path / "reviews.csv", 60))
    train = {"lm": train_language_model, "clf": train_classifier}[task]
    make = {"lm": runs.lm_config, "clf": runs.clf_config}[task]
    outcomes = {}
    options_of_both = {name for name, _ in numbers(LMConfig)} - {"lr", "epochs", "micro_batches"}
    for name, number in numbers(type(make(tmp_path))):
        if task == "clf" and name in options_of_both and not LONG:
            continue  # the language model is trained with it
        limit = LIMITS[name]
        for value in {number(limit.least), number(limit.most)}:
            if name == "watchdog" and value == limit.least:
                continue  # it ends the whole process, this one, where a step takes longer than that
            options = {"data": data, "max_steps": 2, "preset": "tiny", "threads": 1} | {name: value}
            if name in ("epochs", "max_steps"):
                options |= {"max_steps": options["max_steps"] if name == "max_steps" else None, "max_time": 1e-3}
            try:
                result = train(make(tmp_path / f"{name} {value}", **options)).state
            except UserError as error:
                result = "refused"
                assert "\n" not in str(error)
            except TrainingFailed:
                result = "given up"
            outcomes[name, value] = result
    assert set(outcomes.values()) <= {"done", "preempted", "refused", "given up"}
    assert outcomes["lr", 1e-300] == "done" and outcomes["epochs", 1e4] == "preempted"
    assert outcomes["micro_batches", 10**6] == "refused"
