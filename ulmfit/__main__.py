"""python -m ulmfit COMMAND: train a tokenizer, look at batches, predict, generate, evaluate."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ulmfit.errors import UserError, tell

if TYPE_CHECKING:
    from ulmfit.data.splits import Split

CHUNK = 2048  # texts that one process predicts at a time
LM_WINDOW = 70  # tokens at a time of a language model that does not tell its own


class _Parser(argparse.ArgumentParser):
    """Errors as UserError, so that they get one sentence and exit code 2 like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.HelpFormatter):
    """Adds the default to an option's help, where the help does not tell it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        silent = action.default in (None, argparse.SUPPRESS) or not action.option_strings
        return (action.help or "") + ("" if silent else " (default: %(default)s)")


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is too small, give a number of at least {least}")
        return number

    return whole_number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ulmfit", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, formatter_class=_Formatter)
        sub.set_defaults(run=run)
        return sub

    def corpus(sub: argparse.ArgumentParser, default: str = "the embedded sample", columns: str = "text") -> None:
        sub.add_argument("--data", help=f"file, glob, folder or hub name (default: {default})")
        sub.add_argument(
            "--text-column",
            help=f"column with the text, or several joined by commas (default: {columns}, else the only one)",
        )

    sub = command("tokenizer", tokenizer, "train a tokenizer on a corpus's training split and save it")
    corpus(sub)
    sub.add_argument("--output", default="tokenizer.json", help="file to write")
    sub.add_argument("--rules", choices=("fastai1", "fastai2"), default="fastai1", help="text rules")
    sub.add_argument("--vocab-size", type=_at_least(10), default=60_000, help="largest vocabulary")
    sub.add_argument("--min-freq", type=_at_least(1), default=2, help="rarer words become xxunk")
    sub.add_argument("--subword", choices=("unigram", "bpe"), help="split words further (default: whole words)")

    sub = command("show", show, "what the first batch looks like, in words")
    corpus(sub)
    sub.add_argument("--label-column", help="column with the label (default: label)")
    sub.add_argument("--tokenizer", required=True, help="tokenizer.json, run directory or model")
    sub.add_argument("--task", choices=("lm", "clf"), default="lm", help="batches of which trainer")
    sub.add_argument("--rows", type=_at_least(1), default=5, help="rows or documents to show")
    sub.add_argument("--steps", type=_at_least(1), default=2, help="batches to show")
    sub.add_argument("--batch-size", type=_at_least(1), help="rows or documents of a batch (default: lm 64, clf 32)")
    sub.add_argument("--bptt", type=_at_least(2), default=70, help="tokens of a row; of a document, those shown")
    sub.add_argument("--seed", type=_at_least(0), default=0, help="seed of the order")

    int8 = "matrix products of a classifier in 8 bits, on the CPU: faster, probabilities move by 0.001 or so"
    trained = "what the classifier was trained on, else text"
    sub = command(
        "predict",
        predict,
        "label and probability of texts or of a corpus, a line each; under accelerate launch, on all processes",
    )
    sub.add_argument("--model", required=True, help="run directory of a classifier, or its model/")
    sub.add_argument("text", nargs="*", metavar="TEXT", help="texts to classify")
    corpus(sub, "the texts on the command line", trained)
    sub.add_argument("--int8", action="store_true", help=int8)
    sub.add_argument(
        "--output",
        help="write there instead of the terminal; .jsonl and .csv have the row's number "
        "and all probabilities (default: the terminal)",
    )

    sub = command("generate", generate, "continue prompts with a language model")
    sub.add_argument("--model", required=True, help="run directory of a language model, or its model/")
    sub.add_argument("prompt", nargs="+", metavar="PROMPT", help="beginnings of texts")
    sub.add_argument("--max-new-tokens", type=_at_least(0), default=40, help="tokens to add")
    sub.add_argument("--temperature", type=float, default=0.75, help="below 1 for likelier text")
    sub.add_argument("--top-k", type=_at_least(1), help="draw from the k likeliest words only (default: all)")
    sub.add_argument("--min-p", type=float, help="leave out words below min_p times the likeliest (default: none)")
    sub.add_argument("--seed", type=_at_least(0), help="the same text every time (default: another each time)")

    sub = command("evaluate", evaluate, "loss and accuracy of a model on a corpus")
    sub.add_argument("--model", required=True, help="run directory, or its model/")
    corpus(sub, columns=trained)
    sub.add_argument("--label-column", help="column with the label (default: label)")
    sub.add_argument("--split", help="split to score; 'all' for every row (default: test, else valid, else all)")
    sub.add_argument(
        "--valid",
        help="what training held out of data without a valid split, with --split valid "
        "(default: the column is_valid, else 0.1)",
    )
    sub.add_argument("--seed", type=_at_least(0), default=0, help="training's seed, which chose a held-out fraction")
    sub.add_argument("--int8", action="store_true", help=int8)
    sub.add_argument("--batch-size", type=_at_least(1), default=64, help="rows a language model is read in")
    return parser


def tokenizer(args: argparse.Namespace) -> None:
    """Train and save a tokenizer."""
    from ulmfit.data.corpus import open_corpus
    from ulmfit.tokenizer.tokenizer import Tokenizer

    output = Path(args.output)
    _check_output(output)
    split = open_corpus(args.data, task="lm", text_column=args.text_column).splits["train"]
    texts = (text for batch in split.batches() for text in batch.texts)
    trained = Tokenizer.train(
        texts, rules=args.rules, vocab_size=args.vocab_size, min_freq=args.min_freq, subword=args.subword
    )
    try:
        trained.save(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}); name another file") from None
    _tell_skipped(split.skipped)
    print(
        f"{output}: {len(trained):,} tokens, fingerprint {trained.fingerprint}, begins with "
        f"{' '.join(trained.vocab[:16])}"
    )


def show(args: argparse.Namespace) -> None:
    """Print the first batches of a trainer as words."""
    from ulmfit.batches.cache import build_or_open
    from ulmfit.batches.documents import DocumentBatches
    from ulmfit.batches.lm import CachedRows
    from ulmfit.config import LMConfig
    from ulmfit.data.corpus import open_corpus
    from ulmfit.tokenizer.tokenizer import Tokenizer
    from ulmfit.training.setup import cache_directory

    path = Path(args.tokenizer)
    tok = Tokenizer.from_file(path / "tokenizer.json" if path.is_dir() else path)
    is_clf = args.task == "clf"
    corpus = open_corpus(
        args.data, task=args.task, text_column=args.text_column, label_column=args.label_column, seed=args.seed
    )
    store = build_or_open(corpus.splits["train"], tok, cache_directory(LMConfig()), with_labels=is_clf)
    _tell_skipped(store.skipped)
    size = args.batch_size or (32 if is_clf else 64)

    def words(ids: Any) -> str:
        return " ".join(repr(tok.vocab[token])[1:-1] for token in ids)

    if is_clf:
        source = DocumentBatches(store.lengths, batch_size=size, seed=args.seed)
        for indices, epoch, step, _ in islice(source.batches(None), args.steps):
            print(
                f"epoch {epoch} step {step}: {len(indices)} documents of {store.lengths[indices].min()} to "
                f"{store.lengths[indices].max()} tokens"
            )
            for index in indices[: args.rows]:
                ids = store.document(index)
                more = f" ... ({len(ids)} tokens)" if len(ids) > args.bptt else ""
                print(f"  [{corpus.label_names[store.labels[index]]}] {words(ids[: args.bptt])}{more}")
        return
    source = CachedRows(store, batch_size=size, bptt=args.bptt, seed=args.seed, rows=range(min(args.rows, size)))
    for batch, _ in islice(source.batches(None), args.steps):
        print(f"epoch {batch.epoch} step {batch.step_in_epoch}: {size} rows of {batch.tokens.shape[1]} tokens")
        for row, (ids, targets) in enumerate(zip(batch.tokens, batch.targets, strict=True)):
            print(f"  row {row}: {words(ids[targets >= 0])}")


def predict(args: argparse.Namespace) -> None:
    """Classify texts, or a corpus in chunks that are dealt to the processes."""
    from ulmfit.config import ClassifierConfig
    from ulmfit.data.corpus import open_rows
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.inference import TextClassifier

    if bool(args.text) == bool(args.data):
        raise UserError("give either texts or --data, one of them")
    with open_runtime(ClassifierConfig()) as (runtime, _):
        if args.output:
            runtime.on_main(lambda: _check_output(Path(args.output)))
        model = TextClassifier.from_pretrained(args.model, device=runtime.device, int8=args.int8)
        split = (
            open_rows(args.data, args.text_column, trained_columns=model.config.get("text_columns", ()))
            if args.data
            else None
        )
        texts = (
            enumerate(args.text)
            if split is None
            else (pair for batch in split.batches() for pair in zip(batch.rows, batch.texts, strict=True))
        )
        with _writer(args.output if runtime.is_main else os.devnull, model.label_names) as write:
            while chunk := list(islice(texts, CHUNK * runtime.world_size)):
                mine = runtime.own_rows(len(chunk))
                share = [text for _, text in chunk[mine.start : mine.stop]]
                rows = runtime.gather_objects(list(model.probabilities(share)))
                for (number, _), row in zip(chunk, rows, strict=True):
                    write(number, model.label_names[row.argmax()], row)
        if split is not None and runtime.is_main:
            _tell_skipped(split.skipped)


def _tell_skipped(skipped: Mapping[str, int]) -> None:
    """Say how many rows were left out and why."""
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        print(f"skipped rows: {reasons}", file=sys.stderr)


def _check_output(path: Path) -> None:
    """Refuse a file that is there, or cannot come to be, before the work."""
    if path.exists():
        raise UserError(f"--output {path} exists; name another file or remove it")
    if not path.parent.is_dir():
        raise UserError(
            f"--output {path} cannot be written, for {path.parent} is no folder; make it, or name another file"
        )


@contextmanager
def _writer(output: str | None, labels: Sequence[str]) -> Iterator[Callable[[str, Any], None]]:
    """A function that writes one prediction; a file appears under its name once it is whole."""
    if output is None or output == os.devnull:
        with open(os.devnull, "w") if output else _same(sys.stdout) as file:
            yield lambda number, label, row: print(f"{label}\t{row.max():.4f}", file=file)
        return
    path = Path(output)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                yield lambda number, label, row: print(
                    json.dumps(
                        {
                            "row": number,
                            "label": label,
                            "probabilities": dict(zip(labels, map(float, row), strict=True)),
                        }
                    ),
                    file=file,
                )
            elif path.suffix == ".csv":
                table = csv.writer(file)
                table.writerow(["row", "label", *labels])
                yield lambda number, label, row: table.writerow([number, label, *(f"{p:.6f}" for p in row)])
            else:
                yield lambda number, label, row: print(f"{label}\t{row.max():.4f}", file=file)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name another file") from None
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _same(file: TextIO) -> Iterator[TextIO]:
    yield file


def generate(args: argparse.Namespace) -> None:
    """Continue prompts."""
    from ulmfit.inference import LanguageModel

    model = LanguageModel.from_pretrained(args.model)
    for text in model.generate(
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
    ):
        print(text)


def evaluate(args: argparse.Namespace) -> None:
    """Score a model on a split, as training does."""
    from ulmfit.batches.cache import build_or_open
    from ulmfit.config import ClassifierConfig, LMConfig
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.int8 import quantize_encoder
    from ulmfit.model.pretrained import load_model
    from ulmfit.training.evaluate import score_classifier, score_language_model
    from ulmfit.training.setup import cache_directory

    with open_runtime(ClassifierConfig()) as (runtime, _):
        net, tok, saved = load_model(args.model, device=runtime.device)
        is_classifier = isinstance(net, ClassifierNet)
        if args.int8:
            if not is_classifier:
                raise UserError(f"--int8 is for classifiers and {args.model} is a language model; leave it out")
            quantize_encoder(net)
        config = ClassifierConfig() if is_classifier else LMConfig()
        name, split = runtime.main_first(lambda: _split_to_score(args, saved))
        store = build_or_open(split, tok, cache_directory(config), with_labels=is_classifier)
        runtime.barrier()
        if is_classifier:
            metrics = score_classifier(
                net, store, runtime, label_names=saved["label_names"], pad_id=tok.pad_id, backwards=saved["backwards"]
            )
        else:
            metrics = score_language_model(
                net,
                store,
                runtime,
                num_rows=args.batch_size,
                bptt=saved.get("bptt", LM_WINDOW),
                backwards=saved["backwards"],
            )
        if runtime.is_main:
            _tell_skipped(store.skipped)
            print(json.dumps({"split": name, "documents": store.num_documents, "tokens": store.num_tokens} | metrics))


def _split_to_score(args: argparse.Namespace, saved: Mapping[str, Any]) -> tuple[str, Split]:
    """The name and rows of --split; by default test, else what is marked as validation, else all.

    `saved` is the model's config, which tells the classes of a classifier and the columns that it read.
    """
    from ulmfit.data.corpus import open_corpus, open_rows
    from ulmfit.data.sources import SPLIT_NAMES, find

    label_names, trained_columns = saved.get("label_names"), saved.get("text_columns", ())
    found = find(args.data)
    marked = "valid" in found or ("train" in found and "is_valid" in found["train"].columns)
    name = args.split or ("test" if "test" in found else "valid" if marked or args.valid else "all")
    name = SPLIT_NAMES.get(name, name)
    if args.valid and name != "valid":
        raise UserError(f"--valid chooses rows of --split valid and not of {name}; leave it out")
    if name == "valid" and "train" in found and (args.valid or "valid" not in found):
        task = "clf" if label_names else "lm"
        corpus = open_corpus(
            args.data,
            task=task,
            text_column=args.text_column,
            label_column=args.label_column,
            valid=args.valid,
            seed=args.seed,
            label_names=label_names,
            trained_columns=trained_columns,
        )
        return name, corpus.splits["valid"]
    return name, open_rows(
        args.data,
        args.text_column,
        label_column=args.label_column,
        label_names=label_names,
        split=None if name == "all" else name,
        keep_unlabelled=label_names is None,
        streaming=False,
        trained_columns=trained_columns,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 a user's mistake."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except UserError as error:
        tell(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
