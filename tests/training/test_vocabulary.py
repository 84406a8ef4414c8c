"""Unknown words are told before training and refused where nothing could be learnt; --subword auto chooses pieces."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.languages import CUT, SENTENCES, UNSPACED
from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.tokenizer.tokenizer import Tokenizer
from ulmfit.training.vocabulary import chosen_subword, judged, unknown_share

SHORT = {"recipe": "none", "lr": 1e-3, "max_steps": 2, "batch_size": 4, "bptt": 8, "preset": "tiny", "save_every": 1,
         "samples": False, "threads": 1}  # fmt: skip
KNOWN = Tokenizer.train(["the film was good and long"], min_freq=1)


def rows(language: str) -> dict[str, list]:
    space = "" if language in UNSPACED else " "
    texts = [f"{i}{space}{sentence}" for i in range(15) for sentence in SENTENCES[language]]
    return {"text": texts, "label": [i % 2 for i in range(len(texts))]}


def test_the_share_of_unknown_tokens():
    assert unknown_share(["the film was bad", "good"], KNOWN) == 1 / 5
    assert unknown_share([], KNOWN) == unknown_share([""], KNOWN) == 0


@pytest.mark.parametrize(
    ("text", "source", "pattern"),
    [
        ("the film was good", None, r"^0\.0% .* unknown \(xxunk\)$"),
        ("the film was good and long and good and bad", None, r"^10\.0% .*xxunk\)$"),
        ("the film was bad", None, r"^25\.0% .*--init .*--subword bpe"),
        ("the film was bad", "--init runs/lm", r"^25\.0% .*--min-freq 1"),
        ("the film was bad", "--encoder runs/lm", r"^25\.0% .*train_lm\.py --init"),
        ("the film was bad", "--tokenizer t.json", r"^25\.0% .*trained on this corpus"),
        ("the film a b c", None, r"^60\.0% .*--subword bpe"),
    ],
)
def test_advice(text, source, pattern):
    assert re.search(pattern, judged([text], KNOWN, source))


def test_more_than_60_percent_are_refused():
    for source, cure in ((None, "--subword bpe"), ("--encoder runs/lm", "--encoder runs/lm knows too few")):
        with pytest.raises(UserError, match=f"^75% of .* are unknown; .*{cure}"):
            judged(["film a b c"] * 50, KNOWN, source)
    pieces = Tokenizer.train(["aaa"], min_freq=1, subword="bpe", vocab_size=20)
    with pytest.raises(UserError, match="language of the training texts"):
        judged(["xyz"] * 200, pieces, None)


def test_a_few_unknown_words_tell_nothing_of_a_corpus():
    assert re.search(r"^75\.0% .*--subword bpe", judged(["film a b c"] * 49, KNOWN, None))


@pytest.mark.parametrize("language", sorted(UNSPACED))
def test_a_script_without_spaces_is_refused_above_10_percent(language):
    known = SENTENCES[language][:2]
    tokenizer = Tokenizer.train([*known, "10 a b c d e"], min_freq=1)
    assert "xxunk" in judged(known, tokenizer, None)
    with pytest.raises(UserError, match=rf"as {language} is written without spaces .*--subword auto"):
        judged(SENTENCES[language] + ["10 a"], tokenizer, None)
    with pytest.raises(UserError, match="use no --init x of whole words .*--subword auto"):
        judged(SENTENCES[language] + ["10 a"], tokenizer, "--init x")


@pytest.mark.parametrize("language", sorted(CUT))
def test_text_that_its_author_has_cut_into_words_passes(language):
    tokenizer = Tokenizer.train(CUT[language][:-1] + CUT[language][-1].split()[2:], min_freq=1)
    assert "--subword" in judged(CUT[language][-1:], tokenizer, None)


def test_auto_is_asked_of_the_texts():
    assert chosen_subword("auto", lambda: SENTENCES["Thai"])[0] == "bpe"
    assert chosen_subword("auto", lambda: SENTENCES["Korean"])[0] is None
    assert [chosen_subword(asked, list) for asked in (None, "none", "bpe", "unigram")] == [
        (None, ""), (None, ""), ("bpe", ""), ("unigram", "")]  # fmt: skip


def test_training_is_refused_before_anything_is_written(tmp_path, capsys):
    for train, kind in ((train_language_model, LMConfig), (train_classifier, ClassifierConfig)):
        with pytest.raises(UserError, match="as Chinese is written without spaces"):
            train(kind(data=rows("Chinese"), output_dir=str(tmp_path / "run"), **SHORT))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_auto_is_stored_with_the_run_and_stays_on_resume(tmp_path, capsys, monkeypatch):
    config = LMConfig(data=rows("Japanese"), output_dir=str(tmp_path / "run"), subword="auto", vocab_size=300, **SHORT)
    train_language_model(config)
    told = capsys.readouterr().out
    assert "--subword auto: Japanese is written without spaces" in told and "xxunk" in told
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["resolved"]["subword"] == "bpe"
    monkeypatch.setattr("ulmfit.training.vocabulary.unspaced_script", lambda texts: None)  # another version's verdict
    for again in (config, replace(config, subword=None), replace(config, subword="bpe")):
        train_language_model(again)
        assert "holds this run, finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="subword"):
        train_language_model(replace(config, subword="none"))


@pytest.mark.slow
def test_auto_takes_words_where_there_are_spaces(tmp_path, capsys, monkeypatch):
    config = ClassifierConfig(data=rows("Korean"), output_dir=str(tmp_path / "run"), subword="auto", **SHORT)
    train_classifier(config)
    assert "--subword auto: the texts have spaces" in capsys.readouterr().out
    assert Tokenizer.from_file(tmp_path / "run" / "tokenizer.json").subword is None
    monkeypatch.setattr("ulmfit.training.vocabulary.unspaced_script", lambda texts: "Korean")
    for again in (config, replace(config, subword=None), replace(config, subword="none")):
        train_classifier(again)
        assert "holds this run, finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_begun_run_is_not_judged_again(tmp_path, capsys, monkeypatch):
    config = LMConfig(data=rows("Korean"), output_dir=str(tmp_path / "run"), **SHORT)
    train_language_model(config)

    def refuse(*_):
        raise UserError("judged")

    monkeypatch.setattr("ulmfit.training.vocabulary.judged", refuse)
    train_language_model(config)
    with pytest.raises(UserError, match="judged"):
        train_language_model(replace(config, output_dir=str(tmp_path / "new")))


@pytest.mark.parametrize("first", ["streamed", "cached"])
def test_a_stream_and_the_whole_corpus_have_vocabularies_of_their_own_in_the_cache(first, tmp_path, monkeypatch):
    """A stream learns its words from the first documents of a corpus, a cached run from all of them."""
    monkeypatch.setattr("ulmfit.training.setup.STREAM_TOKENIZER_DOCUMENTS", 20)
    for name, count in (("train.txt", 60), ("valid.txt", 20)):
        (tmp_path / name).write_text("".join(f"one {'early' if n < 30 else 'late'} film\n" for n in range(count)))
    given = {"data": str(tmp_path / "train.txt"), "valid": str(tmp_path / "valid.txt"), "init": "none",
             "cache_dir": str(tmp_path / "cache")}  # fmt: skip
    for name in (first, "cached" if first == "streamed" else "streamed"):
        run = tmp_path / name
        train_language_model(LMConfig(output_dir=str(run), streaming=name == "streamed", **SHORT, **given))
        words = Tokenizer.from_file(run / "tokenizer.json").vocab
        assert "early" in words and ("late" in words) == (name == "cached")


def test_options_of_a_vocabulary_are_refused_with_a_start_in_pieces(tmp_path):
    pieces = LMConfig(
        data=rows("Japanese"), output_dir=str(tmp_path / "pieces"), subword="bpe", vocab_size=200, **SHORT
    )
    train_language_model(pieces)
    for options in ({"vocab_size": 400}, {"min_freq": 5}):
        config = LMConfig(data=rows("Japanese"), output_dir=str(tmp_path / "out"), init=pieces.output_dir, **SHORT)
        with pytest.raises(UserError, match=f"leave out --{next(iter(options)).replace('_', '-')}"):
            train_language_model(replace(config, preset=None, **options))
    assert not (tmp_path / "out").exists()
