"""The calibration error against its definition, temperature scaling against a search, and both in a training."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.batches.conftest import FakeSplit, FakeTokenizer
from tests.training.runs import clf_config, one_rank
from ulmfit import train_classifier
from ulmfit.batches.cache import build_or_open
from ulmfit.cli import main
from ulmfit.errors import UserError
from ulmfit.inference import TextClassifier
from ulmfit.model.awd_lstm import AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.training.calibration import bin_sums, calibration, calibration_error, fit_temperature
from ulmfit.training.fit import fit
from ulmfit.training.scores import all_logits


def definition(probabilities, labels, bins=15):
    """The formula of Guo et al., bin by bin."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    result = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            result += inside.mean() * abs((predicted == labels)[inside].mean() - confidence[inside].mean())
    return result


def documents(number, classes, factor, seed=0):
    """Logits whose softmax at temperature `factor` is the true distribution of the labels."""
    random = np.random.RandomState(seed)
    true = random.normal(size=(number, classes)) * 1.5
    chances = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([random.choice(classes, p=row) for row in chances])
    return torch.from_numpy(true * factor), torch.from_numpy(labels)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_calibration_error_is_its_definition(classes):
    logits, labels = documents(400, classes, 3.0)
    probabilities = logits.softmax(1)
    parts = [bin_sums(probabilities[rows], labels[rows]) for rows in (slice(0, 150), slice(150, 400))]
    expected = definition(probabilities.numpy(), labels.numpy())
    assert calibration_error(parts[0] + parts[1]) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_known_cases():
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert calibration_error(bin_sums(sure, torch.tensor([0, 0, 0, 0]))) == 0
    assert calibration_error(bin_sums(sure, torch.tensor([0, 1, 1, 1]))) == 0.75


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_the_one_of_lowest_loss(factor):
    logits, labels = documents(4000, 3, factor)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(factor, rel=0.1)  # 4,000 documents do not tell it better
    best = min(F.cross_entropy(logits / t, labels).item() for t in np.geomspace(0.05, 20, 500))
    assert F.cross_entropy(logits / found, labels).item() <= best
    scores = calibration(logits, labels)
    if factor != 1:
        assert scores["ece"] < 0.5 * scores["ece_before"]


def test_temperature_of_documents_that_tell_none():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    assert fit_temperature(logits, torch.tensor([0, 1])) is None
    assert calibration(logits, torch.tensor([0, 1]))["temperature"] == 1
    assert fit_temperature(logits[:0], torch.tensor([], dtype=torch.int64)) is None
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(20)  # worse than chance: as flat as may be


def test_ranks_gather_the_logits_of_all(tmp_path):
    net, ids = ClassifierNet(AWDLSTMConfig(60, 4, 4, 1), 3), np.random.RandomState(0)
    split = FakeSplit(
        [ids.randint(10, 60, ids.randint(1, 6)).tolist() for _ in range(37)], labels=[0] * 37, batch_size=100
    )
    store = build_or_open(split, FakeTokenizer(60), tmp_path, with_labels=True)
    parts = []
    for rank, world_size in ((0, 1), (0, 3), (1, 3), (2, 3)):
        runtime = one_rank(rank, world_size)
        parts.append(all_logits(net, store, runtime, pad_id=1))
    torch.testing.assert_close(parts[1] + parts[2] + parts[3], parts[0], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        alone = net(torch.tensor(np.asarray(store.document(20)))[None].long(), [int(store.lengths[20])]).logits
    torch.testing.assert_close(parts[0][20:21], alone.double(), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, reviews, runs):
    folder = tmp_path_factory.mktemp("calibrated")
    options = {"data": str(reviews), "encoder": str(runs.lm), "lr": 0.3, "eval_every": 4}
    return (
        train_classifier(clf_config(folder / "plain", **options)),
        train_classifier(clf_config(folder / "clf", calibrate=True, **options)),
    )


@pytest.mark.slow
def test_calibrate_changes_probabilities_and_nothing_else(calibrated, reviews):
    plain, result = calibrated
    files = [run.model_dir / "model.safetensors" for run in (plain, result)]
    assert files[0].read_bytes() == files[1].read_bytes()
    configs = [json.loads((run.model_dir / "config.json").read_text()) for run in (plain, result)]
    temperature = configs[1].pop("temperature")
    assert configs[0] == configs[1] and temperature != 1
    before, after = plain.metrics["valid"], result.metrics["valid"]
    assert after["temperature"] == temperature and after["accuracy"] == before["accuracy"]
    assert after["confusion"] == before["confusion"] and after["loss"] < before["loss"]
    assert after["ece_before"] == pytest.approx(before["ece"], abs=1e-6)
    texts = ["a fine film", "dull and long"]
    expected = plain.model(backend="torch").probabilities(texts).astype(np.float64) ** (1 / temperature)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(result.model(backend="torch").probabilities(texts), expected, atol=1e-5)


def test_every_reader_applies_the_temperature(calibrated, tmp_path):
    pytest.importorskip("onnxruntime")
    result = calibrated[1]
    texts = ["a fine film", "dull and long " * 40]
    expected = result.model(backend="torch").probabilities(texts)
    main(["export", "--to", "onnx", "--model", str(result.run_dir), "--output", str(tmp_path / "onnx")])
    main(["export", "--bits", "8", "--model", str(result.run_dir), "--output", str(tmp_path / "bits")])
    main(["export", "--model", str(result.run_dir), "--model", str(result.run_dir), "--output", str(tmp_path / "two")])
    for path, options, tolerance in [
        (result.model_dir, {"backend": "onnx"}, 1e-5),
        (tmp_path / "onnx", {}, 1e-5),
        (tmp_path / "two", {}, 1e-5),
        (tmp_path / "bits", {"backend": "torch"}, 0.02),
        (result.model_dir, {"int8": True, "backend": "torch"}, 0.02),
    ]:
        found = TextClassifier.from_pretrained(path, **options).probabilities(texts)
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=str(path))


def test_evaluate_tells_the_error_before_and_after(calibrated, reviews, capsys):
    plain, result = calibrated
    found = []
    for models in ([plain], [result], [result, result]):
        arguments = [part for run in models for part in ("--model", str(run.run_dir))]
        main(["evaluate", *arguments, "--data", str(reviews), "--split", "all"])
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert "ece_before" not in found[0] and "temperature" not in found[0]
    assert found[1]["ece_before"] == found[0]["ece"] and found[1]["accuracy"] == found[0]["accuracy"]
    assert found[1]["temperature"] == result.metrics["valid"]["temperature"]
    for name in ("ece", "loss"):
        assert found[2][name] == pytest.approx(found[1][name], abs=1e-6)


def test_a_temperature_that_is_none_is_refused(calibrated, tmp_path):
    for value in (0, -1.0, "1", True, 1e400):
        folder = tmp_path / str(value)
        folder.mkdir()
        for file in calibrated[1].model_dir.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | {"temperature": value}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="temperature"):
            TextClassifier.from_pretrained(folder)


def test_calibrate_needs_validation_texts(tmp_path):
    data = {"text": ["a good one", "a bad one"], "label": ["a", "b"]}
    with pytest.raises(UserError, match="--calibrate needs validation texts"):
        train_classifier(clf_config(tmp_path / "run", data=data, encoder="none", preset="tiny", calibrate=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fit_calibrates(tmp_path, reviews):
    short = {"max_steps": 2, "batch_size": 8}
    result = fit(data=str(reviews), preset="tiny", init="none", lm=short, clf=short, calibrate=True, baseline=False,
                 ngrams=False, output_dir=str(tmp_path / "fit"))  # fmt: skip
    assert result.model().config["temperature"] == result.classifier.metrics["valid"]["temperature"]
