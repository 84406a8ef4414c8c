"""The classifier beside fastai's: training and inference in documents a second on the lengths of real reviews.

    ULMFIT_DATA=DATA python benchmarks/classifier.py --peer PEER/bin/python --preset small
    ULMFIT_DATA=DATA python benchmarks/classifier.py --peer PEER/bin/python --documents 64      # base: minutes a round

Both sides read the same documents by their own batches.

Training is an epoch of steps of documents of neighbouring lengths (those that classifier_padding.py describes, of
random words), taken at even distances from the shortest to the longest step of a real epoch. Ours is the trainer's step
(ClassifierTask and PlainEngine), fastai's is `text_classifier_learner(...).fit` with SortedDL and Pad_Chunk. Both train
all layers with fastai's dropouts x 0.5; fastai adds AR and TAR, ours clips.

Inference is of test reviews drawn at random, their own words (without the data: drawn by Zipf's law): ours as `predict`
does it on the CPU, in fp32 and in int8, fastai's by SortedDL (64) and `get_preds`. At the end 16 of them are read
alone: the lines tell how far their probabilities are from those in the batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import side_by_side as sides
import torch
from lm_loader import make_store
from lm_step import SIZES, lstm_flops
from torch.nn.utils.rnn import pad_sequence

WINDOW, MAX_LEN, ALONE = 72, 1440, 16


@contextlib.contextmanager
def ours(options: argparse.Namespace, train: np.ndarray, test: list[list[int]]) -> Iterator[tuple]:
    """train_epoch(), predict(name), alone(name) of the trainer, and the names, on these lengths and documents."""
    from ulmfit.batches.prefetch import Prefetcher
    from ulmfit.config import ClassifierConfig
    from ulmfit.device import pinned, to_device
    from ulmfit.distributed.runtime import Runtime
    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.int8 import quantize_encoder
    from ulmfit.parallel_inference import read_side_by_side, reading_batches
    from ulmfit.training import optim
    from ulmfit.training.clf_task import ClassifierTask
    from ulmfit.training.engine import PlainEngine
    from ulmfit.training.stages import recipe_for

    config = ClassifierConfig(
        recipe="ulmfit", batch_size=options.batch_size, max_len=MAX_LEN, precision=options.precision
    )
    runtime = Runtime(config)
    recipe = recipe_for(config, pretrained=False)
    sizes = AWDLSTMConfig(options.vocab_size, **PRESETS[options.preset]).with_dropouts("clf", recipe.drop_mult)
    net = ClassifierNet(sizes, 2, bptt=WINDOW, max_len=MAX_LEN).to(runtime.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        store = make_store(folder + "/train", train, options.vocab_size, classes=2)
        task = ClassifierTask(
            net, store, store, ["neg", "pos"], config=config, recipe=recipe, runtime=runtime, pad_id=1
        )
        optimizer = optim.build_optimizer(
            net,
            task.groups,
            range(len(task.groups)),
            [1e-3] * len(task.groups),
            weight_decay=recipe.weight_decay,
            eps=config.adam_eps,
            decay_bias_norm=True,
        )
        engine = PlainEngine(runtime)
        engine.begin_stage(net, optimizer)
        batches = stack.enter_context(Prefetcher(pinned(task.batches(None), runtime.device)))
        number = 0

        def train_epoch() -> None:
            nonlocal number
            for _ in range(task.steps_in_epoch(0)):
                batch, _ = next(batches)
                task.step(engine, batch, number)
                engine.update(recipe.clip)
                number += 1

        nets = {"predict": net}
        if options.precision == "fp32" and runtime.device.type == "cpu":
            nets["int8"] = quantize_encoder(copy.deepcopy(net))
        reviews = [torch.tensor(document) for document in test]
        lengths = np.array([len(document) for document in test])

        def read(reader: ClassifierNet, chosen: list[np.ndarray]) -> torch.Tensor:
            def probabilities(indices: np.ndarray) -> torch.Tensor:
                tokens = pad_sequence([reviews[i] for i in indices], batch_first=True, padding_value=1)
                with runtime.accelerator.autocast():
                    logits = reader(to_device(tokens, runtime.device), lengths[indices]).logits
                return logits.float().softmax(1).cpu()

            result = torch.empty(len(test), 2)
            for indices, rows in zip(chosen, read_side_by_side(probabilities, chosen, runtime.device), strict=True):
                result[indices] = rows
            return result

        def predict(name: str) -> torch.Tensor:
            return read(nets[name], reading_batches(lengths, nets[name], runtime.device))

        def alone(name: str) -> torch.Tensor:
            return read(nets[name], [np.array([i]) for i in range(ALONE)])[:ALONE]

        yield train_epoch, predict, alone, list(nets)


def serve_ours(options: argparse.Namespace, train: np.ndarray, test: list[list[int]]) -> None:
    with ours(options, train, test) as parts:
        serve(options, *parts)


def serve_peer(options: argparse.Namespace, train: np.ndarray, test: list[list[int]]) -> None:
    from fastai.text.all import (
        AWD_LSTM,
        Callback,
        CancelValidException,
        CrossEntropyLossFlat,
        DataLoaders,
        Pad_Chunk,
        SortedDL,
        TensorText,
        awd_lstm_clas_config,
        default_device,
        text_classifier_learner,
    )

    class TrainOnly(Callback):
        def before_validate(self):
            raise CancelValidException

    rng = np.random.default_rng(1)

    def loader(texts: list, batch_size: int, shuffle: bool) -> SortedDL:
        documents = [(TensorText(torch.as_tensor(text)), torch.tensor(i % 2)) for i, text in enumerate(texts)]
        return SortedDL(
            documents,
            res=[len(text) for text in texts],
            bs=batch_size,
            shuffle=shuffle,
            device=default_device(),
            before_batch=Pad_Chunk(seq_len=WINDOW),
            num_workers=0,
        )

    reviews = loader(test, 64, False)
    random = [rng.integers(10, options.vocab_size, n) for n in train]
    loaders = DataLoaders(loader(random, options.batch_size, True), reviews)
    loaders.vocab = [f"word{i}" for i in range(options.vocab_size)]
    embedding, hidden, layers = SIZES[options.preset]
    config = awd_lstm_clas_config | {"emb_sz": embedding, "n_hid": hidden, "n_layers": layers}
    learn = text_classifier_learner(
        loaders,
        AWD_LSTM,
        seq_len=WINDOW,
        config=config,
        pretrained=False,
        n_out=2,
        drop_mult=0.5,
        max_len=MAX_LEN,
        loss_func=CrossEntropyLossFlat(),
    )
    if options.precision != "fp32":
        learn = learn.to_fp16() if options.precision == "fp16" else learn.to_bf16()

    def train_epoch() -> None:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3, wd=0.1, cbs=[TrainOnly()])

    def predict(name: str) -> torch.Tensor:
        with learn.no_bar(), learn.no_logging():
            return learn.get_preds(dl=reviews)[0]

    @torch.no_grad()
    def alone(name: str) -> torch.Tensor:
        learn.model.eval()
        texts = [reviews.dataset[i][0].to(default_device()) for i in range(ALONE)]
        return torch.cat([learn.model(text[None])[0].float().softmax(1).cpu() for text in texts])

    serve(options, train_epoch, predict, alone, ["predict"])


def serve(
    options: argparse.Namespace, train_epoch: Callable, predict: Callable, alone: Callable, names: list[str]
) -> None:
    def measure() -> dict[str, float]:
        found = sides.matrix_peak(options.precision)
        for name in names:
            found |= sides.wall_and_cpu(name, lambda name=name: predict(name))
        return found if options.inference else found | sides.wall_and_cpu("train", train_epoch)

    def compare() -> dict[str, dict[str, list[float]]]:
        return {"far": {name: (predict(name)[:ALONE] - alone(name)).abs().amax(1).tolist() for name in names}}

    sides.serve(measure, compare)


def test_reviews(number: int, vocab_size: int) -> list[list[int]]:
    """Ids of test reviews by a tokenizer of a tenth of the training reviews, or drawn."""
    rng = np.random.default_rng(0)
    folder = os.environ.get("ULMFIT_DATA")
    if not folder:
        lengths = rng.lognormal(np.log(230), 0.68, number).astype(np.int64).clip(10, 3000)
        return [(10 + (rng.zipf(1.1, n) - 1) % (vocab_size - 10)).tolist() for n in lengths]
    import pyarrow.parquet

    from ulmfit.tokenizer.tokenizer import Tokenizer

    train, test = (
        pyarrow.parquet.read_table(Path(folder, "imdb", f"{split}.parquet"), columns=["text"])["text"]
        for split in ("train", "test")
    )
    tokenizer = Tokenizer.train(train.to_pylist()[::10], vocab_size=vocab_size)
    texts = test.take(rng.choice(len(test), number, replace=False)).to_pylist()
    return [document.tolist() for document in tokenizer.encode(texts)]


def spread_steps(lengths: np.ndarray, batch_size: int, number: int) -> np.ndarray:
    """The lengths in `number` steps of an epoch, from the shortest step to the longest at even distances."""
    from ulmfit.batches.documents import DocumentBatches

    plan = DocumentBatches(lengths, batch_size=batch_size, seed=0).plan(0)
    plan.sort(key=lambda step: lengths[step].mean())
    places = ((np.arange(number) + 0.5) * len(plan) / number).astype(int)
    return np.concatenate([lengths[plan[place]] for place in places])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=SIZES)
    parser.add_argument("--vocab-size", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=32, help="documents of a training step (default 32)")
    parser.add_argument("--documents", type=int, default=256, help="of an epoch, and to predict (default 256)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--inference", action="store_true", help="leave training out")
    parser.add_argument("--documents-file", help=argparse.SUPPRESS)  # for both sides
    sides.add_options(parser, rounds=5)
    options = parser.parse_args()
    if options.side:
        train, test = json.loads(Path(options.documents_file).read_text())
        with sides.protocol():
            return (serve_ours if options.side == "ours" else serve_peer)(options, np.array(train), test)

    from classifier_padding import review_lengths

    print(sides.machine())
    test = test_reviews(options.documents, options.vocab_size)
    # Where training is left out its loaders still want something.
    lengths = np.full(256, 20) if options.inference else review_lengths()
    train = spread_steps(lengths, options.batch_size, max(1, options.documents // options.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "documents.json")
        given.write_text(json.dumps([train.tolist(), test]))
        found = sides.alternate(
            options, [*sys.argv, "--documents-file", str(given)], sides.environment(options.threads)
        )
    report(options, found, {"train": train.tolist(), "predict": [len(document) for document in test]})


def report(options: argparse.Namespace, found: dict[str, sides.Side], lengths: dict[str, list[int]]) -> None:
    ours = found["ours"]
    peak = max(max(side.values("peak")) for side in found.values())
    print(
        f"{options.preset}, V = {options.vocab_size}, {options.precision}, peak {peak / 1e9:.0f} GFLOP/s, medians of "
        f"{options.rounds} rounds"
    )
    for part, passes in (("train", 3), ("predict", 1), ("int8", 1)):
        if part not in ours.rounds[0]:
            continue
        chosen = lengths["train" if part == "train" else "predict"]
        documents, tokens = len(chosen), sum(chosen)
        print(f"{part}: {documents} documents of {tokens / documents:.0f} tokens")
        for name, side in found.items():
            key = part if part in side.rounds[0] else "predict"
            wall = side.median(key)
            share = passes * lstm_flops(options.preset) * tokens / wall / peak
            print(
                f"  {name:5} {documents / wall:9.2f} documents/s {tokens / wall:8.0f} tokens/s "
                f"{tokens / side.median(key + '_cpu'):8.0f} a CPU second {share:6.1%} of the peak"
            )
            if name == "peer":
                wall, cpu = (sides.ratio(side.values(key + unit), ours.values(part + unit)) for unit in ("", "_cpu"))
                print(f"  ours / peer: {wall} documents/s, {cpu} a CPU second")
    for name, side in found.items():
        print(f"{name}: peak memory {side.facts['memory']:.2f} GiB")
        for part, far in side.facts["far"].items():
            print(
                f"  {part}: {sum(value > 1e-5 for value in far)} of {ALONE} documents have other probabilities alone "
                f"than in a batch (largest difference {max(far):.1e})"
            )
    far = ours.facts["far"]
    assert max(far["predict"]) < (1e-5 if options.precision == "fp32" else 1e-2)
    assert max(far.get("int8", [0])) < 1e-3


if __name__ == "__main__":
    main()
