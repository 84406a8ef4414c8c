"""Prediction and generation through the classes that users import."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import ulmfit
from ulmfit.errors import UserError

TEXTS = [
    "bad",
    "A good film. " * 200,
    "",
    "It was not bad at all<br />but long",
    "THE END " * 30,
    "a\n\nb",
    "\u4e2d\u6587",
]
PROMPT = 'I liked  this MOVIE because "zyzzyva'  # a double space, an unknown word and an open quote


@pytest.fixture(scope="module")
def classifier(runs):
    return ulmfit.TextClassifier.from_pretrained(runs.clf)


@pytest.fixture(scope="module")
def language_model(runs):
    return ulmfit.LanguageModel.from_pretrained(runs.lm)


def test_a_text_gets_a_prediction(classifier):
    prediction = classifier.predict("a good film")
    label, index, probabilities = prediction
    assert label == prediction.label == classifier.label_names[index] == ["neg", "pos"][index]
    assert isinstance(index, int) and index == probabilities.argmax()
    assert probabilities.dtype == np.float32 and probabilities.shape == (2,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6) and (probabilities > 0).all()


def test_predictions_compare_by_value_and_unpack():
    first = ulmfit.Prediction("pos", 1, np.array([0.25, 0.75], np.float32))
    label, index, probabilities = first
    assert (label, index) == ("pos", 1) and probabilities is first.probabilities
    same = ulmfit.Prediction("pos", 1, np.array([0.25, 0.75], np.float32))
    assert first == same and hash(first) == hash(same) and len({first, same}) == 1
    zeros = [ulmfit.Prediction("pos", 1, np.array([zero, 1], np.float32)) for zero in (0.0, -0.0)]
    assert zeros[0] == zeros[1] and hash(zeros[0]) == hash(zeros[1])
    for other in (
        ulmfit.Prediction("neg", 1, probabilities),
        ulmfit.Prediction("pos", 0, probabilities),
        ulmfit.Prediction("pos", 1, np.array([0.2, 0.8], np.float32)),
        ulmfit.Prediction("pos", 1, np.array([0.25, 0.75, 0], np.float32)),
        tuple(first),
        "pos",
    ):
        assert first != other
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.label = "neg"


def test_a_list_gets_a_list(classifier):
    assert classifier.predict([]) == []
    assert [type(prediction).__name__ for prediction in classifier.predict(["one"])] == ["Prediction"]
    assert len(classifier.predict(tuple(TEXTS))) == len(TEXTS)


def test_a_prediction_does_not_depend_on_the_texts_beside_it(classifier):
    together = classifier.predict(TEXTS)
    for text, prediction in zip(TEXTS, together, strict=True):
        alone = classifier.predict(text)
        np.testing.assert_allclose(prediction.probabilities, alone.probabilities, atol=1e-5)
    assert len({prediction.probabilities.tobytes() for prediction in together}) > 3  # the texts do tell apart


def test_int8_does_not_depend_on_the_texts_beside_it_either(runs, classifier):
    int8 = ulmfit.TextClassifier.from_pretrained(runs.clf, int8=True)
    for text, prediction, plain in zip(TEXTS, int8.predict(TEXTS), classifier.predict(TEXTS), strict=True):
        np.testing.assert_allclose(prediction.probabilities, int8.predict(text).probabilities, atol=1e-6)
        np.testing.assert_allclose(prediction.probabilities, plain.probabilities, atol=0.02)


def test_prediction_draws_no_random_numbers(classifier):
    one, other = classifier.predict(TEXTS), classifier.predict(TEXTS)
    assert one == other


def test_generation_goes_on_from_the_prompt_as_it_was_written(language_model):
    text = language_model.generate(PROMPT, seed=0)
    assert text.startswith(PROMPT) and len(text) > len(PROMPT) + 40
    assert language_model.generate(PROMPT, max_new_tokens=0) == PROMPT


@pytest.mark.parametrize("prompt", ("", "The", "THE", "so (", "it's \"", "well ...", "a\n", "what???", " ", "so "))
def test_any_beginning_is_kept(language_model, prompt):
    for seed in range(3):
        text = language_model.generate(prompt, max_new_tokens=5, seed=seed)
        assert text.startswith(prompt) and len(text) > len(prompt) and not text.startswith(prompt.rstrip(" ") + "  ")


def test_unknown_words_are_never_chosen(language_model):
    texts = language_model.generate([PROMPT, "The film"] * 4, temperature=2.0, max_new_tokens=60, seed=3)
    assert not any(mark in text for text in texts for mark in ("xxunk", "xxpad", "xxfake"))


def test_a_seed_gives_the_same_text_every_time(language_model):
    first = language_model.generate("The film", temperature=1.0, seed=1)
    assert language_model.generate("The film", temperature=1.0, seed=1) == first
    assert language_model.generate("The film", temperature=1.0, seed=2) != first
    assert language_model.generate("The film", temperature=1.0) != language_model.generate("The film", temperature=1.0)


def test_the_likeliest_words_need_no_seed(language_model):
    greedy = language_model.generate("The film", temperature=0)
    assert greedy == language_model.generate("The film", temperature=0)
    assert greedy == language_model.generate("The film", temperature=1.0, top_k=1, seed=5)
    assert greedy == language_model.generate("The film", temperature=1.0, min_p=1.0, seed=5)


def test_prompts_in_a_list_are_continued_in_order(language_model):
    assert language_model.generate([]) == []
    prompts = ["The", "I watched this long film twice because", "Not"]
    texts = language_model.generate(prompts, temperature=0, max_new_tokens=6)
    assert texts == [language_model.generate(prompt, temperature=0, max_new_tokens=6) for prompt in prompts]


@pytest.mark.parametrize("options, words", [
    ({"temperature": -1}, "temperature is -1"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_k": 0}, "top_k is 0"), ({"min_p": 2}, "min_p is 2"), ({"max_new_tokens": -1}, "max_new_tokens is -1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(language_model, options, words):
    with pytest.raises(UserError, match=words):
        language_model.generate("The", **options)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": 2**70}, {"max_new_tokens": 1.5}])
def test_numbers_that_are_no_whole_ones_are_refused(language_model, options):
    with pytest.raises(UserError, match="give whole numbers"):
        language_model.generate("a", **options)
    assert language_model.generate("a", seed=np.int64(3)) == language_model.generate("a", seed=3)


@pytest.mark.parametrize("options", [{"temperature": None}, {"temperature": "warm"}, {"top_k": 5.5}, {"min_p": "a"}])
def test_settings_of_another_type_are_refused(language_model, options):
    with pytest.raises(UserError, match="give numbers, top_k a whole one"):
        language_model.generate("a", **options)


FORKED = """
import multiprocessing, sys, tempfile
import ulmfit

texts = ["a film that I liked"] * 12
model = ulmfit.TextClassifier.from_pretrained(sys.argv[1], backend="torch")
lm = ulmfit.LanguageModel.from_pretrained(sys.argv[2], device="cpu")
if sys.argv[3] == "used":
    model.predict(texts), lm.generate("a")

def work():
    assert len(model.predict(texts)) == len(model.predict(texts * 20)) / 20 == 12
    model.explain(texts[0]), lm.generate("a")
    options = {"preset": "tiny", "init": "none", "recipe": "none", "lr": 1e-3, "max_steps": 2, "batch_size": 4, "bptt": 8}
    with tempfile.TemporaryDirectory() as folder:
        config = ulmfit.LMConfig(data=texts * 9, output_dir=folder + "/run", cache_dir=folder, threads=2, min_freq=1, **options)
        assert ulmfit.train_language_model(config).state == "done"

children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
[child.start() for child in children]
[child.join(60) for child in children]
codes = [child.exitcode for child in children]
[child.kill() for child in children]
sys.exit(codes != [0, 0] and f"exit codes {codes}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("before", ["loaded", "used"])
def test_processes_that_are_forked_from_one_with_a_model_answer(runs, before):
    """As the workers of a server that loads the model first: OpenMP's threads are not in a forked process."""
    command = [sys.executable, "-c", FORKED, str(runs.clf), str(runs.lm), before]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, timeout=300)


def test_what_is_no_text_or_device_is_told_in_a_sentence(classifier, runs):
    rows = classifier.probabilities(["a film", "the"])
    for texts in (np.array(["a film", "the"]), (text for text in ("a film", "the"))):
        np.testing.assert_array_equal(classifier.probabilities(texts), rows)
    with pytest.raises(UserError, match="texts are expected and not ndarray"):
        classifier.predict(np.array("x"))
    for device in ("foo", "cuda:99"):
        with pytest.raises(UserError, match="cannot be used .*; give cpu or cuda"):
            ulmfit.TextClassifier.from_pretrained(runs.clf, device=device)


def test_a_backward_model_continues_nothing(language_model):
    backward = ulmfit.LanguageModel(
        language_model.net, language_model.tokenizer, language_model.config | {"backwards": True}
    )
    with pytest.raises(UserError, match="--backwards"):
        backward.generate("The")


def test_a_backward_classifier_reads_from_the_end(classifier):
    backward = ulmfit.TextClassifier(classifier.net, classifier.tokenizer, classifier.config | {"backwards": True})
    ids = classifier.tokenizer.encode(["not bad but far too long"])[0]

    class Reversed:
        pad_id = classifier.tokenizer.pad_id

        def encode(self, texts):
            return [ids[::-1].copy() for _ in texts]

    flipped = ulmfit.TextClassifier(classifier.net, Reversed(), classifier.config)
    expected = flipped.predict("ignored").probabilities
    np.testing.assert_allclose(backward.predict("not bad but far too long").probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("place", (".", "model"))
def test_a_run_directory_or_its_model_is_loaded(runs, classifier, place):
    again = ulmfit.TextClassifier.from_pretrained(str(runs.clf / place))
    assert (again.predict("good").probabilities == classifier.predict("good").probabilities).all()
    assert ulmfit.LanguageModel.from_pretrained(runs.lm / place, device="cpu").generate("The", seed=1).startswith("The")


def test_a_model_can_be_moved(runs, classifier, tmp_path):
    shutil.copytree(runs.clf / "model", tmp_path / "elsewhere")
    moved = ulmfit.TextClassifier.from_pretrained(tmp_path / "elsewhere")
    assert (moved.predict("good").probabilities == classifier.predict("good").probabilities).all()


def test_the_other_kind_of_model_is_refused(runs):
    with pytest.raises(UserError, match="load it with LanguageModel"):
        ulmfit.TextClassifier.from_pretrained(runs.lm)
    with pytest.raises(UserError, match="load it with TextClassifier"):
        ulmfit.LanguageModel.from_pretrained(runs.clf)


@pytest.mark.slow
def test_a_text_of_two_million_characters_is_read(classifier):
    words = ("interminably" * 20 + "abcdefg"[number % 7] for number in range(8_300))  # none repeated
    long = " ".join(words) + " a bad film"
    assert len(long) > 2_000_000 and len(classifier.tokenizer.encode([long])[0]) > 8_300
    short, longest = classifier.predict(["a bad film", long])
    assert longest.probabilities.shape == (2,) and np.isfinite(longest.probabilities).all()
    assert (short.probabilities != longest.probabilities).any()


def test_the_directory_of_fit_is_its_language_model_where_one_is_wanted(runs, tmp_path, capsys):
    """`generate`, `--init` and `show` take the directory that `ulmfit fit` leaves, as predict does."""
    from ulmfit.cli import main
    from ulmfit.training.pretrained_start import open_pretrained

    for name, made in (("lm", runs.lm), ("model", runs.clf / "model")):
        (tmp_path / name).symlink_to(made)
    text = ulmfit.LanguageModel.from_pretrained(tmp_path).generate("I liked", seed=0)
    assert text == ulmfit.LanguageModel.from_pretrained(runs.lm).generate("I liked", seed=0)
    assert open_pretrained(str(tmp_path)).vocab == open_pretrained(str(runs.lm)).vocab
    assert ulmfit.Tokenizer.from_file(tmp_path).vocab == ulmfit.Tokenizer.from_file(runs.lm / "tokenizer.json").vocab
    assert ulmfit.TextClassifier.from_pretrained(tmp_path).label_names == ["neg", "pos"]
    assert main(["generate", "--model", str(tmp_path), "I liked", "--seed", "0"]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main(["generate", "--model", str(runs.clf), "I liked"]) == 2
    assert (
        capsys.readouterr()
        .err.rstrip()
        .endswith("give its language model, or load it with TextClassifier (ulmfit predict)")
    )


def test_a_path_is_called_the_nearest_only_if_it_is_near(tmp_path, monkeypatch, capsys):
    from ulmfit.cli import main

    monkeypatch.chdir(tmp_path)
    for name in ("launch", "reviews.csv"):
        (tmp_path / name).mkdir()
    for typed, told in (("nosuch/", "; check the path"), ("revews.csv", " (the nearest is reviews.csv)")):
        assert main(["tokenizer", "--data", typed]) == 2
        assert capsys.readouterr().err == f"error: no file or folder {typed}{told}\n"
