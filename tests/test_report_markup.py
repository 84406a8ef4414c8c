"""What a run's files may do to its report: no value is markup, no key is shown, damage ends in a page or a sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress

import pytest

from tests.faults.mutations import mutate
from tests.report_pages import Page, judged
from ulmfit.errors import UserError
from ulmfit.report.facts import read_facts
from ulmfit.report.report_page import report_page


@pytest.fixture(scope="module")
def facts(runs):
    return read_facts(str(runs.clf))


def test_damaged_files_of_a_run_make_a_page_or_a_sentence(runs, tmp_path):
    """Whatever disks and hands do to them."""
    made = 0
    for seed in range(int(os.environ.get("ULMFIT_FUZZ", 0)) // 20 or 60):
        rng = random.Random(seed)
        folder = tmp_path / "job"
        for name in ("clf", "lm"):
            for file in ("config.json", "metrics.jsonl", "status.json"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(getattr(runs, name) / file, folder / name / file)
        (folder / "config.json").write_text('{"task": "fit", "options": {"data": "reviews.csv", "lm": {"epochs": 3}}}')
        (folder / "status.json").write_text('{"state": "done", "minutes": {"lm": 1.5, "clf": 2}}')
        (folder / "summary.json").write_text(
            '{"verdict": "v", "systems": {"TF-IDF + logistic regression": {"valid": {"f1": 1}}}}'
        )
        told = [mutate(rng.choice(sorted(folder.rglob("*.json*"))), rng) for _ in range(rng.choice((1, 2)))]
        try:
            facts = read_facts(str(folder))
            page = Page(report_page([facts, facts], {}, version="0"))
        except UserError:
            continue
        made += 1
        assert not [fault for fault in page.faults if "the id" not in fault], told  # two of one run: two of each id
    assert made > 20


@pytest.mark.parametrize("bad", ["<script>alert(1)</script>", "\x1b[31m", '"><img src=x onerror=alert(1)>', "\u202ex"])
def test_user_text_is_escaped_wherever_it_stands(facts, bad):
    content = dict(facts.job, options=dict(facts.job["options"], data=bad, text_column=bad))
    facts.main.metrics["valid"]["labels"], before = [bad, "pos"], facts.main.metrics["valid"]["labels"]
    try:
        changed = type(facts)(bad, content, facts.lm, facts.clf, {"verdict": bad}, {"clf": 1.0}, False)
        text = report_page([changed, changed], {bad: judged(facts, text=bad, label=bad)}, version=bad)
    finally:
        facts.main.metrics["valid"]["labels"] = before
    page = Page(text)
    assert [fault for fault in page.faults if "there is a" in fault or " has " in fault] == []
    assert "\x1b" not in text and "\u202e" not in text


INJECTED = '"><img src=x onerror=alert(1)>'


def places(value, path=()):
    """The paths of all values in a value of JSON; of long lists those of the first ones."""
    yield path
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


def changed(value, path, new):
    """A copy of a value of JSON with another value at a path."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


def test_no_value_of_any_file_of_a_run_is_markup_or_ends_the_report(runs, tmp_path):
    """Whoever gives a run away can write its files: config.json, status.json, and a line of each kind of metrics.jsonl."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "status.json", "metrics.jsonl"):
        shutil.copy(runs.clf / name, copy / name)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    kinds = {(json.loads(line)["event"], json.loads(line).get("split")): number for number, line in enumerate(lines)}
    contents = [(name, None, json.loads((copy / name).read_text())) for name in ("config.json", "status.json")]
    contents += [("metrics.jsonl", number, json.loads(lines[number])) for number in kinds.values()]
    tried = 0
    for name, number, content in contents:
        before = (copy / name).read_text()
        for path in places(content):
            for new in (INJECTED, 10**400):
                text = json.dumps(changed(content, path, new))
                whole = text if number is None else "\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n"
                (copy / name).write_text(whole)
                tried += 1
                with suppress(UserError):
                    assert "<img" not in report_page([read_facts(str(copy))], {}, version="1"), (name, path)
        (copy / name).write_text(before)
    assert tried > 200


def test_keys_in_urls_are_not_shown(facts):
    url = "https://jane:secret@host/reviews.csv?token=secret"
    content = dict(facts.job, options=dict(facts.job["options"], data=url))
    shown = type(facts)(facts.path, content, facts.lm, facts.clf, {}, {}, False)
    text = report_page([shown, facts], {}, version="1")
    assert "secret" not in text and "jane" not in text and text.count("https://***@host/reviews.csv?***") == 3
