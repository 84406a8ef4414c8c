"""The report: one page whose figures are those of the run, which loads nothing and holds no private text."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report_pages import Page, judged
from ulmfit import cli
from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.explanation import Explanation, Word
from ulmfit.report import judgement
from ulmfit.report.charts import line_chart, reliability_chart, ticks
from ulmfit.report.facts import differing, read_facts
from ulmfit.report.report_page import report_page


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main([str(word) for word in words]) == code, capsys.readouterr().err
        return "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def facts(runs):
    return read_facts(str(runs.clf))


def test_the_page_is_sound_and_loads_nothing(facts):
    page = Page(report_page([facts], {facts.path: judged(facts)}, version="<0>"))
    assert not page.faults
    assert "default-src 'none'" in page.text and 'name="viewport"' in page.text and "prefers-color-scheme" in page.text
    assert not re.search(r"https?:|url\(|@import|<script", page.text)
    shown = "".join(page.shown)
    for title in (
        "What it is for",
        "Data",
        "Training",
        "By class",
        "trusted",
        "Worst errors",
        "Words that decide",
        "Commands",
    ):
        assert title in shown
    assert "<b>awful</b>" in shown, "texts are shown as they are"


def test_the_figures_are_those_of_the_run(facts):
    page = report_page([facts], {}, version="0")
    scores = [json.loads(line) for line in (Path(facts.path) / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in scores if line["event"] == "eval"][-1]
    assert f"{last['accuracy']:.1%}" in page and f"{last['ece']:.3f}" in page
    for row in last["confusion"]:
        assert all(f">{cell}</span>" in page for cell in row)
    assert facts.main.curve("train", "loss") and facts.main.curve("eval", "loss", "valid")[-1][1] == last["loss"]


def test_several_runs_are_compared(facts, runs, run, tmp_path):
    other = shutil.copytree(runs.clf, tmp_path / "o<t>her")
    content = json.loads((other / "config.json").read_text())
    content["options"]["drop_mult"] = 0.25
    (other / "config.json").write_text(json.dumps(content))
    run("report", runs.clf, other, runs.lm, "--no-score", "--output", "page.html")
    page = Page(Path("page.html").read_text())
    assert not page.faults
    assert "--drop-mult" in "".join(page.shown) and page.tags.count("article") == 3
    both = [facts, read_facts(str(other))]
    assert differing(both) == [("--drop-mult", ["-", "0.25"])]
    assert "name a file by --output" in run("report", runs.clf, other, code=2)
    assert "exists" in run("report", runs.clf, "--output", "page.html", code=2)


def test_the_commands_can_be_typed(facts, runs):
    for one in (facts, read_facts(str(runs.lm))):
        for _, line in one.commands():
            program, name, *words = shlex.split(line)
            assert program == "ulmfit"
            parse(COMMANDS[name].options, words)
    options = parse(COMMANDS["train-clf"].options, shlex.split(facts.commands()[0][1])[2:])
    stored = facts.job["options"]
    assert (options.max_steps, options.batch_size, options.encoder) == (6, 8, stored["encoder"])


@pytest.mark.slow
def test_a_report_reads_model_and_data_but_never_texts_of_a_private_run(runs, run, tmp_path):
    open_run = shutil.copytree(runs.clf, tmp_path / "open")
    private = shutil.copytree(runs.clf, tmp_path / "private")
    content = json.loads((private / "config.json").read_text())
    content["options"]["samples"] = False
    (private / "config.json").write_text(json.dumps(content))
    pages = {}
    for folder in (open_run, private):
        assert "report.html" in run("report", folder)
        pages[folder] = (folder / "report.html").read_text()
        assert not Page(pages[folder]).faults
    assert '<p class="words"' in pages[open_run] and "Words that decide" in pages[open_run]
    for piece in ('class="words"', "<mark", "Words that decide", "<b>pos</b>"):
        assert piece not in pages[private]
    rows = [re.findall(r"<p>row (\d+):", page) for page in pages.values()]
    assert rows[0] == rows[1] != []


def test_a_report_without_samples_is_that_of_a_private_run(runs, run, tmp_path):
    run("report", runs.clf, "--no-samples", "--output", "page.html")
    page = (tmp_path / "page.html").read_text()
    for piece in ('class="words"', "<mark", "Words that decide", "<b>pos</b>", "<b>neg</b>"):
        assert piece not in page
    assert "<b>no. 1</b>" in page


@pytest.mark.parametrize(
    ("status", "lines", "told"),
    [
        ("running", 3, "This training is running, or was killed, at step 3 of 6 of the classifier; the figures are"),
        ("preempted", 0, "This training was stopped at step 0 of 6 of the classifier"),
        ("failed", 6, "This training failed at step 6 of 6 of the classifier"),
    ],
)
def test_a_run_that_is_not_done_is_reported_so(runs, run, tmp_path, status, lines, told):
    """While it runs, stopped before its first evaluation, and failed: there is no model yet."""
    copy = shutil.copytree(runs.clf, tmp_path / "run")
    shutil.rmtree(copy / "model")
    (copy / "status.json").write_text(json.dumps({"state": status, "step": 0}))
    every = [{"event": "train", "step": step, "stage": 0, "loss": 0.7, "lr": 1e-3} for step in range(1, 7)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in every[:lines]) + '{"event": "tr')
    run("report", copy)
    page = Page((copy / "report.html").read_text())
    assert not page.faults and told in "".join(page.shown)
    assert ("No step has been logged yet" in page.text) == (lines == 0)
    assert "Go on with it" in page.text and "ulmfit predict" not in page.text and "has no model yet" in page.text


def test_a_job_whose_classifier_has_not_begun_says_so(runs, run, tmp_path):
    shutil.copytree(runs.lm, tmp_path / "job" / "lm")
    (tmp_path / "job" / "config.json").write_text('{"task": "fit", "options": {"data": "reviews.csv"}}')
    (tmp_path / "job" / "status.json").write_text('{"state": "running"}')
    run("report", "job")
    assert "of the language model; the classifier has not begun" in (tmp_path / "job" / "report.html").read_text()


def test_changed_data_are_told(runs, run, tmp_path):
    copy = shutil.copytree(runs.clf, tmp_path / "run")
    run("report", copy)
    assert "data have changed" not in (copy / "report.html").read_text()
    content = json.loads((copy / "config.json").read_text())
    content["options"]["data"] = str(shutil.copy(content["options"]["data"], tmp_path / "other.csv"))
    with open(tmp_path / "other.csv", "a") as file:
        file.write("one more,neg\n")
    (copy / "config.json").write_text(json.dumps(content))
    run("report", copy)
    assert "The data have changed since the training" in (copy / "report.html").read_text()


def test_a_report_goes_on_without_what_is_gone(runs, run, tmp_path):
    copy = shutil.copytree(runs.clf, tmp_path / "run")
    content = json.loads((copy / "config.json").read_text())
    content["options"]["data"] = str(tmp_path / "gone.csv")
    (copy / "config.json").write_text(json.dumps(content))
    (copy / "metrics.jsonl").write_text('{"event": "eval", "split": "valid", "step": 6, "accuracy": null, '
                                        '"labels": 3, "confusion": [[1], 2], "by_class": "x"}\nnot JSON\n[1]\n')  # fmt: skip
    run("report", copy)
    page = Page((copy / "report.html").read_text())
    assert not page.faults and "Not shown: " in page.text and "gone.csv" in page.text
    assert "holds no run" in run("report", tmp_path, code=2)
    (copy / "report.html").unlink()
    (copy / "report.html").symlink_to(tmp_path / "mine")
    assert "is a link" in run("report", copy, code=2) and not (tmp_path / "mine").exists()


def test_long_texts_are_shown_where_it_was_decided():
    words = tuple(Word("w", 2 * n, 2 * n + 1, 5.0 if n == 150 else 0.0) for n in range(300))
    chosen = judgement.window(Explanation("w " * 300, "a", 0, 0.5, "a", words))
    assert chosen.start <= 150 < chosen.stop and chosen.stop - chosen.start == judgement.SHOWN_WORDS


def test_charts():
    assert ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0] and ticks(3.0, 3.0)[0] <= 3.0 <= ticks(3.0, 3.0)[-1]
    assert ticks(-0.2, 7.3)[0] <= -0.2 and ticks(-0.2, 7.3)[-1] >= 7.3
    chart = line_chart("<t>", [("a", [(1.0, 2.0), (2.0, 1.0)]), ("none", []), ("<b>", [(0.0, 1.5)])], marked=2.0)
    assert chart.count('class="line s') == 4 and "&lt;t&gt; over steps" in chart and "weights kept: step 2" in chart
    assert line_chart("t", [("a", [])]) == "" and reliability_chart([], several=False) == ""
    many = line_chart("t", [("a", [(float(x), 1.0) for x in range(5000)])])
    assert many.count("L") <= 300 and "4999" not in many.split("over steps")[0]


def test_a_label_of_an_axis_stands_below_its_value():
    chart = line_chart("t", [("a", [(0.0, 1.0), (616.0, 2.0)])])
    labels = {
        text: float(x) for x, text in re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">(\d+)<', chart)
    }
    steps = [labels[text] for text in ("0", "200", "400", "600")]
    assert np.ptp(np.diff(steps)) < 0.2, "evenly spread, also near the right end"
    chart = reliability_chart([(0.9, 0.8, 3)], several=False)
    x = float(re.search(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">100%', chart)[1])
    assert 340 < x < 350, "moved only as far as it would leave the chart"


def test_a_loss_among_sampled_words_is_told_from_that_of_validation(runs):
    lm = read_facts(str(runs.lm))
    lines = [line | {"sampled": True} if line.get("event") == "train" else line for line in lm.lm.lines]
    sampled = replace(lm, lm=replace(lm.lm, lines=lines))
    pages = [" ".join(Page(report_page([facts], {}, version="0")).shown) for facts in (lm, sampled)]
    for told in ("(sampled words)", "does not compare with that of validation"):
        assert told not in pages[0] and told in pages[1]
    for page in pages:  # and the only score of a language model has its name
        assert "Accuracy on the validation texts" in page and "Scores on" not in page


def test_what_trained_a_job_again_trains_its_baseline_too(facts):
    job = dict(facts.job, task="fit", options={"data": "reviews.csv", "baseline": False})
    scores = {"TF-IDF + logistic regression": {"valid": {"accuracy": 0.875}}}
    with_rival = replace(facts, job=job, summary={"systems": scores}, minutes={"clf": 3.0})
    without = replace(with_rival, summary={"systems": dict.fromkeys(scores)})
    assert with_rival.commands()[0][1] == f"ulmfit fit --data reviews.csv --output-dir {facts.path}"
    assert without.commands()[0][1] == f"ulmfit fit --data reviews.csv --no-baseline --output-dir {facts.path}"
    page = report_page([with_rival], {}, version="0")
    assert "<b>87.5%</b><span>TF-IDF baseline</span>" in page and "<small>1 process</small>" in page
    assert "<span>--output-dir</span>" in page, "a line of a command does not end within an option"
    assert "calibration error</span>" not in page and "expected calibration error is" in page


@pytest.mark.skipif(not os.environ.get("ULMFIT_LONG"), reason="long: headless Chromium (see tests/run_long.sh)")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(facts, tmp_path, width, scheme):
    sync_api = pytest.importorskip("playwright.sync_api")
    file = tmp_path / "report.html"
    labels = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    six = {"labels": labels, "confusion": [[137] * 6] * 6, "accuracy": 1 / 6}
    larger = replace(facts, path="six", clf=replace(facts.clf, metrics={"test": six}))
    file.write_text(report_page([facts, larger], {facts.path: judged(facts)}, version="0"))
    with sync_api.sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        told, asked = [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert not told and asked == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page does not scroll sideways"
        fitting = page.evaluate(
            "[...document.querySelectorAll('.matrix')].map(e => e.offsetWidth <= e.parentNode.clientWidth)"
        )
        assert fitting == [True, True], "confusion matrices of two and of six classes are whole on a phone"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        worst = page.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, worst
        browser.close()


# The lowest contrast of any text with what is painted behind it (WCAG 2.1).
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat([1]);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let worst = {ratio: 99};
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getClientRects().length) continue;
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(parse(getComputedStyle(p).backgroundColor));
    const back = layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
    const style = getComputedStyle(e), svg = e.namespaceURI.includes('svg');
    const text = over(parse(svg ? style.fill : style.color), back);
    const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst.ratio) worst = {ratio, text: e.textContent.slice(0, 40), tag: e.tagName};
  }
  return worst;
}"""
