"""The classifier beside fastai's: training and inference in documents a second on the lengths of real reviews.

    ULMFIT_DATA=DATA python benchmarks/classifier.py --peer PEER/bin/python --preset small
    ULMFIT_DATA=DATA python benchmarks/classifier.py --peer PEER/bin/python --documents 64      # base: minutes a round

Documents have random words and the lengths that classifier_padding.py describes. Both sides read the same documents
by their own batches.

Training is an epoch of steps of documents of neighbouring lengths, taken at even distances from the shortest to the
longest step of a real epoch. Ours is the trainer's step (ClassifierTask and PlainEngine), fastai's is
`text_classifier_learner(...).fit` with SortedDL and Pad_Chunk. Both train all layers with fastai's dropouts x 0.5;
fastai adds AR and TAR, ours clips.

Inference is of documents drawn at random: ours by a token budget, fastai's by SortedDL (64) and `get_preds`. At the
end 16 of them are read alone: the line tells how far their probabilities are from those in the batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import side_by_side as sides
import torch
from lm_loader import make_store
from lm_step import SIZES, lstm_flops

WINDOW, MAX_LEN, ALONE = 72, 1440, 16


@contextlib.contextmanager
def ours(options: argparse.Namespace, train: np.ndarray, test: np.ndarray) -> Iterator[tuple[Callable, ...]]:
    """train_epoch(), predict() and alone() of the trainer, on documents of these lengths."""
    from ulmfit.batches.documents import collate, evaluation_batches
    from ulmfit.batches.prefetch import Prefetcher
    from ulmfit.config import ClassifierConfig
    from ulmfit.evaluation import EVALUATION_TOKENS
    from ulmfit.model.awd_lstm import PRESETS, AWDLSTMConfig
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.training import optim
    from ulmfit.training.classifier import ClassifierTask
    from ulmfit.training.engine import PlainEngine
    from ulmfit.training.runtime import Runtime
    from ulmfit.training.stages import recipe_for
    from ulmfit.transfer import pinned, to_device

    config = ClassifierConfig(recipe="ulmfit", batch_size=options.batch_size, max_len=MAX_LEN,
                              precision=options.precision)
    runtime = Runtime(config)
    recipe = recipe_for(config, pretrained=False)
    sizes = AWDLSTMConfig(options.vocab_size, **PRESETS[options.preset]).with_dropouts("clf", recipe.drop_mult)
    net = ClassifierNet(sizes, 2, bptt=WINDOW, max_len=MAX_LEN).to(runtime.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        store = make_store(folder + "/train", train, options.vocab_size, classes=2)
        reviews = make_store(folder + "/test", test, options.vocab_size, classes=2)
        task = ClassifierTask(net, store, reviews, ["neg", "pos"], config=config, recipe=recipe, runtime=runtime,
                              pad_id=1)
        optimizer = optim.build_optimizer(net, task.groups, range(len(task.groups)), [1e-3] * len(task.groups),
                                          weight_decay=recipe.weight_decay, eps=config.adam_eps, decay_bias_norm=True)
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

        @torch.inference_mode()
        def read(chosen: list[np.ndarray]) -> torch.Tensor:
            result = torch.empty(len(test), 2)
            for indices in chosen:
                part = collate(reviews, indices, np.arange(len(indices)), pad_id=1)
                with runtime.accelerator.autocast():
                    logits = net(to_device(part.tokens, runtime.device), part.lengths).logits
                result[part.indices] = logits.float().softmax(1).cpu()
            return result

        def predict() -> torch.Tensor:
            return read(evaluation_batches(reviews.lengths, token_budget=EVALUATION_TOKENS))

        def alone() -> torch.Tensor:
            return read([np.array([i]) for i in range(ALONE)])[:ALONE]

        yield train_epoch, predict, alone


def serve_ours(options: argparse.Namespace, train: np.ndarray, test: np.ndarray) -> None:
    with ours(options, train, test) as parts:
        serve(options, *parts)


def serve_peer(options: argparse.Namespace, train: np.ndarray, test: np.ndarray) -> None:
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

    def loader(lengths: np.ndarray, batch_size: int, shuffle: bool) -> SortedDL:
        documents = [(TensorText(torch.from_numpy(rng.integers(10, options.vocab_size, n))), torch.tensor(i % 2))
                     for i, n in enumerate(lengths)]
        return SortedDL(documents, res=lengths.tolist(), bs=batch_size, shuffle=shuffle, device=default_device(),
                        before_batch=Pad_Chunk(seq_len=WINDOW), num_workers=0)

    reviews = loader(test, 64, False)
    loaders = DataLoaders(loader(train, options.batch_size, True), reviews)
    loaders.vocab = [f"word{i}" for i in range(options.vocab_size)]
    embedding, hidden, layers = SIZES[options.preset]
    config = awd_lstm_clas_config | {"emb_sz": embedding, "n_hid": hidden, "n_layers": layers}
    learn = text_classifier_learner(loaders, AWD_LSTM, seq_len=WINDOW, config=config, pretrained=False, n_out=2,
                                    drop_mult=0.5, max_len=MAX_LEN, loss_func=CrossEntropyLossFlat())
    if options.precision != "fp32":
        learn = learn.to_fp16() if options.precision == "fp16" else learn.to_bf16()

    def train_epoch() -> None:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3, wd=0.1, cbs=[TrainOnly()])

    def predict() -> torch.Tensor:
        with learn.no_bar(), learn.no_logging():
            return learn.get_preds(dl=reviews)[0]

    @torch.no_grad()
    def alone() -> torch.Tensor:
        learn.model.eval()
        texts = [reviews.dataset[i][0].to(default_device()) for i in range(ALONE)]
        return torch.cat([learn.model(text[None])[0].float().softmax(1).cpu() for text in texts])

    serve(options, train_epoch, predict, alone)


def serve(options: argparse.Namespace, train_epoch: Callable, predict: Callable, alone: Callable) -> None:
    def measure() -> dict[str, float]:
        return {**sides.wall_and_cpu("predict", predict), **sides.wall_and_cpu("train", train_epoch),
                **sides.matrix_peak(options.precision)}

    def compare() -> dict[str, list[float]]:
        return {"far": (predict()[:ALONE] - alone()).abs().amax(1).tolist()}

    sides.serve(measure, compare)


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
    parser.add_argument("--lengths", help=argparse.SUPPRESS)  # a file, for both sides
    sides.add_options(parser, rounds=5)
    options = parser.parse_args()
    if options.side:
        train, test = (np.array(part) for part in json.loads(Path(options.lengths).read_text()))
        with sides.protocol():
            return (serve_ours if options.side == "ours" else serve_peer)(options, train, test)

    from classifier_padding import review_lengths

    print(sides.machine())
    lengths = review_lengths()
    train = spread_steps(lengths, options.batch_size, max(1, options.documents // options.batch_size))
    test = np.random.default_rng(0).choice(lengths, options.documents, replace=False)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "lengths.json")
        given.write_text(json.dumps([train.tolist(), test.tolist()]))
        found = sides.alternate(options, [*sys.argv, "--lengths", str(given)], sides.environment(options.threads))
    peak = max(max(side.values("peak")) for side in found.values())
    print(f"{options.preset}, V = {options.vocab_size}, {options.precision}, peak {peak / 1e9:.0f} GFLOP/s, medians of "
          f"{options.rounds} rounds")
    for part, chosen, passes in (("train", train, 3), ("predict", test, 1)):
        print(f"{part}: {len(chosen)} documents of {chosen.mean():.0f} tokens")
        for name, side in found.items():
            wall = side.median(part)
            share = passes * lstm_flops(options.preset) * chosen.sum() / wall / peak
            print(f"  {name:5} {len(chosen) / wall:9.2f} documents/s {chosen.sum() / wall:10.0f} tokens/s "
                  f"{share:6.1%} of the peak")
        if options.peer:
            wall, cpu = (sides.ratio(found["peer"].values(key), found["ours"].values(key))
                         for key in (part, f"{part}_cpu"))
            print(f"  ours / peer: {wall} documents/s, {cpu} a CPU second")
    for name, side in found.items():
        far = side.facts["far"]
        print(f"{name}: peak memory {side.facts['memory']:.2f} GiB; {sum(value > 1e-5 for value in far)} of {ALONE} "
              f"documents have other probabilities alone than in a batch (largest difference {max(far):.1e})")
    assert max(found["ours"].facts["far"]) < (1e-5 if options.precision == "fp32" else 1e-2)


if __name__ == "__main__":
    main()
