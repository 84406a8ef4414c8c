"""Model cards: what they tell of a run, what strangers, edits and names of the data put into them, folders of no model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import ulmfit
from tests.hub_stand_in import metadata
from ulmfit.cli import USER_ERROR, main
from ulmfit.model_card import model_card
from ulmfit.model_origin import Origin, Run
from ulmfit.paths import without_folders
from ulmfit.run.directory import MODEL


@pytest.fixture(scope="module")
def classifier(runs):
    return ulmfit.TextClassifier.from_pretrained(runs.clf, backend="torch")


def copy_of(run, folder, *, config=None, resolved=None, options=None, model=None):
    """A copy of a run with other entries in its config.json and in that of its model."""
    shutil.copytree(run, folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["options"] |= options or {}
    stored["resolved"] |= resolved or {}
    (folder / "config.json").write_text(json.dumps(stored | (config or {})))
    content = json.loads((folder / MODEL / "config.json").read_text())
    (folder / MODEL / "config.json").write_text(json.dumps(content | (model or {})))
    return folder


def card_of(folder):
    return str(ulmfit.TextClassifier.from_pretrained(folder, backend="torch").generate_model_card())


@pytest.mark.parametrize(("given", "name"), [
    ("/somewhere/ward/x.csv", "x.csv"), ("x.csv", "x.csv"), ("runs/lm/", "lm"), ("/", "/"), ("a=1.csv", "a=1.csv"),
    ("wiki=0.7:/somewhere/ward/wiki/*.parquet,notes=0.3:/somewhere/ward/n.csv", "wiki=0.7:*.parquet,notes=0.3:n.csv"),
    ("a=1:x, b=2:/somewhere/y/", "a=1:x,b=2:y"), ("https://me:word@host/a/x.csv?X-Signature=secret#part", "x.csv"),
    ("a=1:https://host/x.csv?k=1&l=2,b=1:s3://bucket/y", "a=1:x.csv,b=1:y"), ("a?b.csv", "a?b.csv"),
])  # fmt: skip
def test_names_without_folders_and_keys(given, name):
    assert without_folders(given) == name


def test_the_card_of_a_mixture_names_all_sources(runs, tmp_path):
    data = "wiki=0.7:/somewhere/ward/wiki.csv,notes=0.3:/somewhere/ward/notes.csv?x"
    run = copy_of(runs.clf, tmp_path / "run", options={"data": data})
    card = card_of(run)
    assert "| data | wiki=0.7:wiki.csv,notes=0.3:notes.csv?x; columns text, label |" in card
    assert "ulmfit train-clf --data 'wiki=0.7:wiki.csv,notes=0.3:notes.csv?x'" in card
    assert "ward" not in card and "datasets" not in ModelCard(card).data.to_dict()


def test_names_are_no_markdown(runs, tmp_path):
    evil = "<img src=x>|`c` [a](http://b)"
    run = copy_of(
        runs.clf,
        tmp_path / "run",
        options={"data": f"{evil}.csv"},
        resolved={"text_column": evil},
        model={"label_names": [evil, "```"], "imported": {"from": evil, "kind": "x\n# title"}},
    )
    card = card_of(run)
    text = card.partition("\n---\n")[2]
    outside = "".join(text.split("```")[0::2])  # of blocks of code
    assert "`<img src=x>|'" not in outside and "<img src=x>| c  [a](http://b)`" in outside  # the label, in a code span
    assert "\n# title" not in outside and outside.count("<img") == 1 and outside.count("](http") == 1
    assert r"&lt;img src=x>" not in outside and r"&lt;img src=x\>\|\`c\` \[a\]\(http://b" in outside


@pytest.mark.parametrize("changes", [
    {"resolved": {"stages": [1]}}, {"resolved": {"stages": 5}}, {"config": {"options": 5}}, {"config": {"versions": [1]}},
    {"model": {"imported": {"a": 1}}}, {"model": {"imported": 5}}, {"resolved": {"valid_rows": 10**400}},
    {"resolved": {"stages": [{"lr": 10**400}]}},
])  # fmt: skip
def test_edited_files_are_told_less_of(runs, tmp_path, changes):
    assert "## Licence" in card_of(copy_of(runs.clf, tmp_path / "run", **changes))


def test_scores_of_an_edited_log_are_told_less_of(classifier):
    rows = [
        5,
        {"label": ["x"], "support": "many", "f1": True},
        {"label": "neg", "f1": 0.5, "recall": 10**400, "support": 3},
    ]
    run = Run({"task": "clf", "options": 3}, {"valid": {"accuracy": None, "loss": "low", "by_class": rows}})
    sizes = {"embedding_size": "<img src=x>", "vocab_size": [], "hidden_size": 10**400, "num_layers": 2}
    config = classifier.config | {"task": "classifier", "architecture": sizes}  # as an export of somebody else may have
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ulmfit.model_card.origin_of", lambda folder: Origin([run]))
        card = model_card(classifier.card_data, None, config, size=1, usage="")
    assert "| `neg` | - | - | 0.500 | 3 |" in card and card.count("| - | - |") >= 2
    assert "embedding 0, hidden 0, 2 layers, 0 words" in card and "<img" not in card


def test_a_model_in_the_directory_of_another_run_is_not_told_of_by_it(runs, tmp_path):
    run = copy_of(runs.clf, tmp_path / "run")
    shutil.copytree(runs.clf / MODEL, run / "exported")
    assert "reviews.csv" in card_of(run / MODEL) and "is not beside it" in card_of(run / "exported")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n[a: {\n---\nx", b"---\n- a\n---\nx"])
def test_a_strangers_card_that_is_damaged_is_replaced(runs, tmp_path, content):
    shutil.copytree(runs.clf / MODEL, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(content)
    assert "# ULMFiT text classifier" in card_of(tmp_path / "model")


def test_saving_does_not_damage_a_run_or_make_a_folder_of_two_kinds(runs, classifier, tmp_path):
    run = copy_of(runs.clf, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    tokenizer = ulmfit.Tokenizer.from_file(runs.lm)
    other = ulmfit.Tokenizer.train(["other words than those"] * 3, min_freq=1)
    for kept in (classifier, other):
        with pytest.raises(ulmfit.UserError, match="is a run, whose own files would be replaced"):
            kept.save_pretrained(run)
    assert (run / "config.json").read_bytes() == before and not (run / "README.md").exists()
    bundle = ulmfit.TextClassifier.from_pretrained([runs.clf, runs.clf], backend="torch")
    bundle.save_pretrained(tmp_path / "both")
    bundle.save_pretrained(tmp_path / "both")
    classifier.save_pretrained(tmp_path / "one")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    for kept, folder in ((classifier, "both"), (bundle, "one"), (classifier, "onnx"), (other, "one")):
        with pytest.raises(ulmfit.UserError, match="would be of two kinds; name another folder"):
            kept.save_pretrained(tmp_path / folder)
    with pytest.raises(ulmfit.UserError, match="holds a classifier, which would be replaced; name another folder"):
        ulmfit.LanguageModel.from_pretrained(runs.lm).save_pretrained(tmp_path / "one")
    ulmfit.Tokenizer.from_file(tmp_path / "one").save_pretrained(tmp_path / "one")  # the model's own
    ulmfit.TextClassifier.from_pretrained(tmp_path / "one", backend="torch")
    for folder, sentence in (("", "empty name"), (tmp_path / "one" / "README.md" / "x", "cannot be written")):
        with pytest.raises(ulmfit.UserError, match=sentence):
            tokenizer.save_pretrained(folder)


def test_an_output_that_is_a_link_to_nowhere_is_refused(runs, tmp_path, capsys):
    os.symlink("nowhere", tmp_path / "link")
    assert main(["export", "--model", str(runs.lm), "--output", str(tmp_path / "link")]) == USER_ERROR
    assert "exists; name another file" in capsys.readouterr().err


def test_the_lines_for_fastai_are_python_whatever_the_folder_is_called(runs, tmp_path):
    folder = tmp_path / 'a "b"\n`c`'
    assert main(["export", "--model", str(runs.clf), "--output", str(folder), "--to", "fastai"]) == 0
    code = (folder / "README.md").read_text().split("```python\n")[1].split("\n```")[0]
    compile(code, "README.md", "exec")
    assert repr(f"{folder.name}/models/itos.pkl") in code


@pytest.mark.parametrize("content", [
    {"exported": 5}, {"thresholds": [0.5]}, {"thresholds": ["a", "b"]}, {"max_len": "x"}, {"temperature": []}, None,
])  # fmt: skip
def test_a_damaged_configuration_of_an_exported_model_is_a_users_mistake(runs, tmp_path, content):
    pytest.importorskip("onnxruntime")
    assert main(["export", "--model", str(runs.clf), "--output", str(tmp_path / "onnx"), "--to", "onnx"]) == 0
    path = tmp_path / "onnx" / "config.json"
    text = "[" * 10**5 if content is None else json.dumps(json.loads(path.read_text()) | content)
    Path(path).write_text(text)
    with pytest.raises(ulmfit.UserError, match=r"config\.json"):
        ulmfit.TextClassifier.from_pretrained(tmp_path / "onnx")


def test_the_card_of_a_classifier_tells_its_run(runs, tmp_path):
    ulmfit.TextClassifier.from_pretrained(runs.clf).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    data = metadata(card)
    assert data["library_name"] == "ulmfit" and data["pipeline_tag"] == "text-classification"
    assert data["license"] and {"ulmfit", "awd-lstm", "text-classification", "model_hub_mixin"} <= set(data["tags"])
    result = data["model-index"][0]["results"][0]
    scores = [json.loads(line) for line in (runs.clf / "metrics.jsonl").read_text().splitlines()]
    (valid,) = (line for line in scores if line["event"] == "eval")
    assert {each["type"]: each["value"] for each in result["metrics"]}["accuracy"] == round(valid["accuracy"], 4)
    assert ModelCard(card).data.library_name == "ulmfit"  # huggingface_hub reads it
    for told in (
        "reviews.csv; columns text, label", "10% of the rows, held out", "starts from | lm", "`neg`, `pos`", "seed, precision",
        "ulmfit train-clf --data reviews.csv", "--encoder lm", "ulmfit train-lm --data reviews.csv", "## Intended use",
        "| class | precision | recall | F1 | texts |", f"| accuracy | {valid['accuracy']:.3f} |", "## Licence",
    ):  # fmt: skip
        assert told in card, told
    assert "More Information Needed" not in card and str(runs.clf.parent) not in card


def test_a_card_tells_of_the_run_that_it_started_from_and_of_no_other(runs, tmp_path):
    for run in (runs.lm, runs.clf):
        shutil.copytree(run, tmp_path / run.name)
    stored = json.loads((tmp_path / "clf" / "config.json").read_text())
    stored["options"]["encoder"] = str(tmp_path / "lm" / "model")
    (tmp_path / "clf" / "config.json").write_text(json.dumps(stored))
    model = ulmfit.TextClassifier.from_pretrained(tmp_path / "clf")
    assert "Language model:" in str(model.generate_model_card())
    with open(tmp_path / "lm" / "model" / "model.safetensors", "ab") as file:  # trained again since
        file.write(b" ")
    assert "Language model:" not in str(model.generate_model_card())


def test_cards_tell_no_texts_and_no_folders(runs, tmp_path):
    """A run with --no-samples whose names are texts (a table without a header, a wrong column)."""
    text = "the patient complained of a headache and of her neighbours"
    run = tmp_path / "private ward" / "clf"
    shutil.copytree(runs.clf, run)
    for file in (run / "config.json", run / "model" / "config.json"):
        content = json.loads(file.read_text())
        if "options" in content:
            content["options"] |= {"samples": False, "text_column": text, "encoder": str(runs.lm)}
            content["resolved"] |= {"text_column": text}
        else:
            content["label_names"] = [text, "pos"]
        file.write_text(json.dumps(content))
    log = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(log.replace('"label": "neg"', f'"label": "{text}"'))
    model = ulmfit.TextClassifier.from_pretrained(run)
    card = str(model.generate_model_card())
    assert (
        "headache" not in card and "private ward" not in card and "hidden by --no-samples" in card and "`pos`" in card
    )


def card_with(run: Path, options: dict, resolved: dict) -> str:
    """The card of a language model's run with these values in its config.json."""
    stored = json.loads((run / "config.json").read_text())
    stored["options"] |= options
    stored["resolved"] |= resolved
    (run / "config.json").write_text(json.dumps(stored))
    return str(ulmfit.LanguageModel.from_pretrained(run, device="cpu").generate_model_card())


def test_a_card_names_every_source_of_a_mixture_and_hub_data_by_their_whole_name(runs, tmp_path):
    run = shutil.copytree(runs.lm, tmp_path / "run")
    mixed = "wiki=0.7:owner/wiki,notes=0.3:/somewhere/else/notes.csv"
    card = card_with(run, {"data": mixed}, {"revision": {"wiki": "0123456789abcdef"}})
    shown = "wiki=0.7:owner/wiki,notes=0.3:notes.csv"
    assert f"| data | {shown}, revisions on the hub: wiki 0123456789ab" in card and f"--data {shown} " in card
    assert "/home" not in card and "datasets" not in metadata(card)
    card = card_with(run, {"data": "owner/films"}, {"revision": "0123456789abcdef"})
    assert "| data | owner/films of the hub, revision 0123456789ab" in card and "--data owner/films " in card
    assert metadata(card)["datasets"] == ["owner/films"]
    assert "--data" not in card_with(run, {"data": "in memory: a table, 3 rows"}, {"revision": None})


def test_cards_of_models_without_a_run_and_of_the_packages_own(tmp_path, runs):
    shutil.copytree(runs.clf / "model", tmp_path / "alone")
    card = str(ulmfit.TextClassifier.from_pretrained(tmp_path / "alone").generate_model_card(language="en"))
    assert "is not beside it" in card and metadata(card)["language"] == "en" and "More Information" not in card
    ulmfit.LanguageModel.from_pretrained("english", device="cpu").save_pretrained(tmp_path / "english")
    card = (tmp_path / "english" / "README.md").read_text()
    assert metadata(card)["license"] == "cc-by-sa-3.0" and "18,021 articles" in card
    fields = {"license": "mit", "intended_use": "Sorting reviews.", "model_name": "films", "tags": ["films"]}
    card = str(ulmfit.TextClassifier.from_pretrained(runs.clf).generate_model_card(**fields))
    assert "# films\n" in card and "Sorting reviews." in card and metadata(card)["license"] == "mit"
    with pytest.raises(TypeError):
        ulmfit.TextClassifier.from_pretrained(runs.clf).generate_model_card(licence="mit")
