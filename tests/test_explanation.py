"""Explanations: the contributions are the gradient's, the words are the user's, and no text becomes markup or command."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import ulmfit
from ulmfit import cli
from ulmfit.cli.explain import wants_colour
from ulmfit.coloured import fragment, lines, marked, visible
from ulmfit.errors import UserError
from ulmfit.explanation import Explanation, Word
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.saliency import token_contributions

ATTACK = "<script>alert(1)</script> \"'><img src=x onerror=alert(1)> \x1b[31mred\x1b]0;title\x07 \u202eabc"


@pytest.fixture(scope="module")
def classifier(runs):
    return ulmfit.TextClassifier.from_pretrained(runs.clf)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main([str(word) for word in words]) == code, capsys.readouterr().err
        run.out, run.err = capsys.readouterr()
        return run.out

    return run


# Contributions


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_contributions_are_the_derivative_of_the_log_odds(backwards, several):
    torch.manual_seed(0)
    config = AWDLSTMConfig(vocab_size=30, embedding_size=6, hidden_size=8, num_layers=2)
    net = ClassifierNet(config, 3, bptt=4, max_len=7, multi_label=several).double()
    ids = np.random.default_rng(0).integers(2, 30, 13).astype(np.int32)
    found = token_contributions(net, ids, 1, backwards=backwards, temperature=2.0, scales=(1.0,))

    def log_odds(factor: float, place: int) -> float:
        def scale(module, given, output):
            output = output.clone()
            output[0, place] *= factor
            return output

        handle = net.encoder.embedding.register_forward_hook(scale)
        whole = ids[::-1].copy() if backwards else ids
        bptt, net.bptt = net.bptt, 100  # the derivative through the whole document
        with torch.no_grad():
            logits = net(torch.from_numpy(whole.astype(np.int64))[None], [13]).logits[0] / 2
        net.bptt = bptt
        handle.remove()
        p = logits.sigmoid()[1] if several else logits.softmax(0)[1]
        return float(p.log() - (1 - p).log())

    expected = [(log_odds(1 + 1e-4, place) - log_odds(1 - 1e-4, place)) / 2e-4 for place in range(13)]
    np.testing.assert_allclose(found, expected[::-1] if backwards else expected, rtol=1e-5, atol=1e-9)
    assert np.abs(found).min() > 0, "the first tokens are not cut off by a window"
    assert net.bptt == 4 and not net.encoder.embedding._forward_hooks


def test_the_words_are_those_of_the_text(classifier):
    text = "An AWFUL film,<br />truly awful!!!! I'd leave; <b>"
    found = classifier.explain(text)
    assert found.text == text and [word.text for word in found.words][:5] == ["An", "AWFUL", "film", ",", "truly"]
    assert all(text[word.start : word.end] == word.text for word in found.words)
    assert found.label == found.predicted == classifier.predict(text).label
    assert found.probability == pytest.approx(classifier.predict(text).probabilities.max(), abs=1e-6)
    tried = [word for word in found.words if word.without is not None]
    assert sorted(word.start for word in found.strongest(5)) == [word.start for word in tried]
    for word in tried:
        rest = text[: word.start] + text[word.end :]
        assert word.without == pytest.approx(float(classifier.predict(rest).probabilities[found.index]), abs=1e-6)
    other = classifier.explain(text, "neg" if found.label == "pos" else "pos")
    for mine, theirs in zip(found.words, other.words, strict=True):  # with two classes the odds are the opposite
        assert mine.contribution == pytest.approx(-theirs.contribution, rel=1e-3, abs=1e-6)
    assert "".join(piece for piece, _ in found.pieces()) == text.replace("<br />", "\n")


def test_a_bundle_has_the_mean_of_its_members(classifier, runs):
    text = "A good film but not a great one"
    both = ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf]).explain(text)
    for mine, theirs in zip(both.words, classifier.explain(text).words, strict=True):
        assert mine.contribution == pytest.approx(theirs.contribution, rel=1e-5)


@pytest.mark.parametrize(
    "text, label, told",
    [(" \n", None, "no word in the text"), ("film", "good", "no class 'good'"), (["film"], None, "not of type list")],
)
def test_what_cannot_be_explained_is_told(classifier, text, label, told):
    with pytest.raises(UserError, match=told):
        classifier.explain(text, label)


# Shown


class _Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def made(text, label="pos"):
    words = tuple(
        Word(match[0], *match.span(), 1.0 - 0.3 * number) for number, match in enumerate(re.finditer(r"\S+", text))
    )
    return Explanation(text, label, 0, 0.75, label, words, (label, "other"))


def test_texts_and_classes_are_no_markup():
    found = made(ATTACK, label=ATTACK)
    for page in (found.html(), fragment(found)):
        tags = _Tags(page)
        assert not {"script", "img"} & set(tags.tags[tags.tags.index("strong" if "strong" in tags.tags else "h1") :])
        assert not any(name.startswith("on") for name in tags.attributes)
        assert "\x1b" not in page and "\u202e" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in found.html() and "<script" not in found.html()


@pytest.mark.parametrize("colour", [False, True])
def test_texts_do_not_command_the_terminal(colour):
    shown = "\n".join(lines(made(ATTACK, label=ATTACK), colour=colour))
    ours = re.sub(r"\x1b\[38;5;16;48;5;\d+m|\x1b\[0m", "", shown)
    assert ours.replace("\n", "").isprintable() and "\\x1b[31mred" in ours
    assert ("\x1b" in shown) == colour
    assert visible("a\tb\u00a0c\r\nd\re") == "a b c\nd\ne"


def test_a_long_text_is_cut_with_ellipses():
    found = made("one two three four five six")
    assert re.sub("<.*?>", "", marked(found, slice(2, 4))) == "\u2026 three four \u2026"
    assert re.sub("<.*?>", "", marked(found)) == found.text


def test_a_word_that_is_a_whole_line_is_cut_in_the_table():
    """As the text rules make one word of a word that is repeated."""
    found = made("x" * 400 + " is great")
    shown = lines(found, colour=False)
    table = shown[next(at for at, line in enumerate(shown) if line.startswith("word ")) :]
    assert max(map(len, table)) < 100 and "x" * 37 + "..." in "\n".join(table)
    assert any("x" * 400 in line for line in shown), "the text itself is whole"
    assert re.findall("x{41,}", found.html()) == ["x" * 400]


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert wants_colour(Terminal()) and not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())


# The commands


def test_explain_prints_the_text_and_writes_a_page(run, runs):
    out = run("explain", runs.clf, "A good film", "It was BAD", "--html", "page.html")
    assert "A good film\n" in out and "It was BAD\n" in out and "\x1b" not in out
    assert out.count("contribution") == 2 and re.search(r"BAD +[+-]\d\.\d{3}  0\.\d{3} -> 0\.\d{3}", out)
    page = open("page.html", encoding="utf-8").read()
    assert page.count("<section>") == 2 and "BAD" in page
    run("explain", "--model", runs.clf, "A good film", "--html", "page.html", code=2)
    assert "--html page.html exists" in run.err
    run("explain", runs.clf, code=2)
    assert "no text to explain" in run.err


def private(runs, folder, *, in_model):
    """A copy of the classifier of `runs` as --no-samples would have left it; `in_model`: its model/ alone."""
    shutil.copytree(runs.clf, folder)
    file = folder / ("model/config.json" if in_model else "config.json")
    content = json.loads(file.read_text())
    (content if in_model else content["options"])["samples"] = False
    file.write_text(json.dumps(content))
    return folder / "model" if in_model else folder


@pytest.mark.parametrize("in_model", [False, True])
def test_a_private_model_shows_no_text(run, runs, reviews, tmp_path, in_model):
    model = private(runs, tmp_path / "private", in_model=in_model)
    out = run("explain", model, "a SECRET film")
    assert "SECRET" not in out + run.err and re.search(r"word \d of 3 +[+-]", out)
    assert re.match(r"no\. \d 0\.\d{3}\n", out) and re.search(r"contribution +no\. \d without it", out)
    assert "no. 0" in run("explain", model, "a SECRET film", "--label", "neg")
    run("explain", model, "a SECRET film", "--label", "other", code=2)
    for name in ("neg", "pos"):
        assert not re.search(rf"\b{name}\b", out + run.err), "a class is a value of the data too"
    run("explain", model, "a SECRET film", "--html", "page.html", code=2)
    assert "--no-samples" in run.err and "SECRET" not in run.err
    assert re.search("(neg|pos) 0.*SECRET", run("explain", model, "a SECRET film", "--samples"), re.DOTALL)
    shown = run("top-losses", runs.clf, "--data", reviews, "--number", "3")
    hidden = run("top-losses", model, "--data", reviews, "--number", "3", "--samples")
    texts = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert len(texts) == 3 and not any(text[:20] in hidden for text in texts)
    assert re.findall(r"^row \d+", shown, re.MULTILINE) == re.findall(r"^row \d+", hidden, re.MULTILINE)
    assert "pos" not in hidden, "a class is a value of the data too"


def test_a_training_tells_its_model_that_it_is_private(tmp_path, reviews):
    from ulmfit import train_classifier
    from ulmfit.cli.options import parse
    from ulmfit.training.privacy import hides_texts

    words = ["--data", str(reviews), "--max-steps", "1", "--preset", "tiny", "--batch-size", "8", "--no-samples"]
    result = train_classifier(parse(ulmfit.ClassifierConfig, [*words, "--output-dir", str(tmp_path / "clf")]))
    shutil.copytree(result.model_dir, tmp_path / "copy")
    assert hides_texts([tmp_path / "copy"]) and hides_texts([result.run_dir])


def test_top_losses_are_the_largest(run, runs, reviews, classifier):
    import csv

    with open(reviews, newline="") as file:
        rows = list(csv.DictReader(file))
    p = classifier.probabilities([row["text"] for row in rows])
    losses = -np.log(p[np.arange(len(rows)), [classifier.label_names.index(row["label"]) for row in rows]])
    out = run("top-losses", runs.clf, "--data", reviews, "--split", "all", "--number", "4")
    found = re.findall(r"^row (\d+)  loss ([\d.]+)  true (\w+) [\d.]+  predicted (\w+)", out, re.MULTILINE)
    assert [int(row) for row, *_ in found] == np.argsort(-losses, kind="stable")[:4].tolist()
    assert float(found[0][1]) == pytest.approx(losses.max(), abs=2e-3)
    assert all(rows[int(row)]["label"] == true for row, _, true, _ in found)
    own = run("top-losses", "--model", runs.clf, "--number", "1")  # the validation split of the run
    assert own.startswith("valid: ") and "of 12 rows" in own
