"""The exported graph in fp32 beside torch: the largest difference of a logit and of a probability, by batch and length.

    OMP_NUM_THREADS=1 python benchmarks/onnx_parity.py --presets small base
    OMP_NUM_THREADS=1 python benchmarks/onnx_parity.py --model runs/clf

Small has the English encoder that comes with the package, the others random weights, with an embedding so large that the
encodings vary as trained ones do. The head's statistics are those of documents, as after a training, and its weights are
large enough that the classes differ from text to text. With --model it is a trained classifier, on random words of its
vocabulary. A batch is read by torch in one call, by one call of the graph, padded, and by `OnnxReader`, which divides it. Exits with 1 where
a difference is above the promised 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import side_by_side as sides
import torch

from ulmfit.batches.documents import pad
from ulmfit.exported.graph import Weights, build
from ulmfit.exported.reader import OnnxReader
from ulmfit.inference import TextClassifier
from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
from ulmfit.model.classifier import ClassifierNet
from ulmfit.model.pretrained import load_model
from ulmfit.shipped import ENCODERS

PROMISED = 1e-5
MOST_PADDED = 12_000  # tokens of one call of the graph, which reads padding too
ALONE = (1, 2, 71, 72, 73, 127, 128, 129, 500, 1000, 1441, 2500, 5000)
BATCHES = ((2, (5000, 1)), (3, (1, 2, 3)), (8, (1, 128, 129, 200)), (17, (1, 150)), (32, (1, 100)), (64, (1, 60)))
LONG_BATCH = (64, (1, 500))  # of a trained model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["small", "base"], choices=PRESETS)
    parser.add_argument("--model", help="a trained classifier in place of the presets")
    options = parser.parse_args()
    print(f"{sides.machine()}\n")
    print("| model | classes | batch | lengths | logit | probability | spread of probabilities | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    if options.model is not None:
        differences = trained(options.model)
    else:
        differences = [difference for preset in options.presets for difference in table(preset)]
    worst = max(differences)
    print(f"\nlargest difference: {worst:.1e}")
    sys.exit(worst > PROMISED)


def trained(path: str) -> list[float]:
    """The rows of a trained classifier; returns the differences of the probabilities."""
    model = TextClassifier.from_pretrained(path, backend="torch")
    assert model.net is not None
    net, sizes = model.net.requires_grad_(False), model.net.config
    name = f"{sizes.embedding_size}/{sizes.hidden_size}/{sizes.num_layers}, trained"
    batches = [*((1, (length,)) for length in ALONE), *BATCHES, LONG_BATCH]
    return rows(name, net, len(model.label_names), batches, backwards=bool(model.config.get("backwards")))


def table(preset: str) -> list[float]:
    """The rows of a preset; returns the differences of the probabilities."""
    differences = []
    for backwards, several in ((False, False), (True, True)):
        net = network(preset, several)
        batches = [*((1, (length,)) for length in ALONE), *BATCHES]
        differences += rows(preset, net, 3, batches[-1:] if several else batches, backwards=backwards)
    return differences


def rows(
    name: str, net: ClassifierNet, classes: int, batches: list[tuple[int, tuple[int, ...]]], *, backwards: bool
) -> list[float]:
    """Print a row for each batch (size, some of its lengths); returns the differences of the probabilities."""
    differences = []
    rng = np.random.default_rng(0)
    config = {"architecture": {"num_layers": net.config.num_layers}, "max_len": net.max_len,
              "backwards": backwards, "multi_label": net.multi_label}  # fmt: skip
    reader = OnnxReader(build(Weights.of({key: tensor.numpy() for key, tensor in net.state_dict().items()}, config)))
    for size, given in batches:
        drawn = [*given, *rng.integers(min(given), max(given) + 1, max(0, size - len(given)))][:size]
        begun = time.process_time()
        logit, probability, spread = compare(net, reader, drawn, backwards=backwards, seed=size)
        differences.append(probability)
        kind = f"{'any' if net.multi_label else 'one'} of {classes}"
        shown = f"{min(drawn):,} to {max(drawn):,}" if size > 1 else f"{drawn[0]:,}"
        print(f"| {name} | {kind}{', backwards' if backwards else ''} | {size} | {shown} | {logit:.1e} | {probability:.1e} | "
              f"{spread:.2f} | {time.process_time() - begun:.1f} |", flush=True)  # fmt: skip
    return differences


def network(preset: str, several: bool) -> ClassifierNet:
    torch.manual_seed(0)
    sizes = AWDLSTMConfig(vocab_size=20_000, **PRESETS[preset])
    english = load_model(ENCODERS / "english")[0] if preset == "small" else None
    net = ClassifierNet(sizes if english is None else english.config, 3, multi_label=several).requires_grad_(False)
    if english is None:
        net.encoder.embedding.weight.mul_(10)
    else:
        net.encoder.load_state_dict(english.encoder.state_dict())
    pooled = net.encode(*padded(documents(np.arange(2, 66), 7, net.config.vocab_size))).pooled
    net.head.linear2.weight.mul_(6 if english is not None else 2)
    for norm, rows in ((net.head.norm1, pooled), (net.head.norm2, None)):
        if rows is None:  # of the hidden layer
            rows = net.head.linear1((pooled - pooled.mean(0)) / (pooled.var(0) + norm.eps).sqrt()).relu()
        norm.running_mean.copy_(rows.mean(0))
        norm.running_var.copy_(rows.var(0))
    return net


def documents(lengths: object, seed: int, words: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, words, length, dtype=np.int32) for length in np.asarray(lengths)]


def padded(texts: list[np.ndarray], backwards: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(text) for text in texts])
    return torch.from_numpy(pad(np.concatenate(texts), lengths, pad_id=1, backwards=backwards)), torch.from_numpy(
        lengths
    )


@torch.inference_mode()
def compare(
    net: ClassifierNet, reader: OnnxReader, lengths: list[int], *, backwards: bool, seed: int
) -> tuple[float, float, float]:
    """(largest difference of a logit, of a probability; range of the first class's probability)."""
    texts = documents(lengths, seed, net.config.vocab_size)
    logits = net(*padded(texts, backwards)).logits
    right = net.probabilities(logits).numpy()
    found = [reader.probabilities(texts)]
    logit = float("nan")
    if len(texts) * max(lengths) <= MOST_PADDED:
        tokens, sizes = padded(texts)
        given = {"tokens": tokens.numpy(), "lengths": sizes.numpy()}
        theirs, probabilities = reader._session.run(["logits", "probabilities"], given)
        logit = float(np.abs(theirs - logits.numpy()).max())
        found.append(probabilities)
    return logit, max(float(np.abs(one - right).max()) for one in found), float(np.ptp(right[:, 0]))


if __name__ == "__main__":
    main()
