"""python -m ulmfit COMMAND: train a tokenizer, look at batches, predict, generate, evaluate."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

from ulmfit.errors import UserError

CHUNK = 2048  # texts that one process predicts at a time


class _Parser(argparse.ArgumentParser):
    """Errors as UserError, so that they get one sentence and exit code 2 like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ulmfit", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        return sub

    def corpus(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", help="file, glob, folder or hub name (default: the embedded sample)")
        sub.add_argument("--text-column", help="column with the text, or several joined by commas")

    sub = command("tokenizer", tokenizer, "train a tokenizer on a corpus's training split and save it")
    corpus(sub)
    sub.add_argument("--output", default="tokenizer.json", help="file to write")
    sub.add_argument("--rules", choices=("fastai1", "fastai2"), default="fastai1", help="text rules")
    sub.add_argument("--vocab-size", type=int, default=60_000, help="largest vocabulary")
    sub.add_argument("--min-freq", type=int, default=2, help="rarer words become xxunk")
    sub.add_argument("--subword", choices=("unigram", "bpe"), help="split words further")

    sub = command("show", show, "what a batch looks like, in words")
    corpus(sub)
    sub.add_argument("--label-column", help="column with the label")
    sub.add_argument("--tokenizer", required=True, help="tokenizer.json, run directory or model")
    sub.add_argument("--task", choices=("lm", "clf"), default="lm", help="batches of which trainer")
    sub.add_argument("--rows", type=int, default=5, help="rows to show")
    sub.add_argument("--bptt", type=int, default=70, help="tokens of a row to show")

    sub = command("predict", predict, "label and probability of texts or of a corpus, a line each; "
                                      "under accelerate launch, on all processes")
    sub.add_argument("--model", required=True, help="run directory of a classifier, or its model/")
    sub.add_argument("text", nargs="*", metavar="TEXT", help="texts to classify")
    corpus(sub)
    sub.add_argument("--output", help="write there instead of the terminal (.jsonl and .csv have all probabilities)")

    sub = command("generate", generate, "continue prompts with a language model")
    sub.add_argument("--model", required=True, help="run directory of a language model, or its model/")
    sub.add_argument("prompt", nargs="+", metavar="PROMPT", help="beginnings of texts")
    sub.add_argument("--max-new-tokens", type=int, default=40, help="tokens to add")
    sub.add_argument("--temperature", type=float, default=0.75, help="below 1 for likelier text")
    sub.add_argument("--top-k", type=int, help="draw from the k likeliest words only")
    sub.add_argument("--min-p", type=float, help="leave out words below min_p times the likeliest")
    sub.add_argument("--seed", type=int, help="the same text every time")

    sub = command("evaluate", evaluate, "loss and accuracy of a model on a corpus")
    sub.add_argument("--model", required=True, help="run directory, or its model/")
    corpus(sub)
    sub.add_argument("--label-column", help="column with the label")
    sub.add_argument("--split", default="test", help="split to score; 'all' for every row of --data")
    sub.add_argument("--batch-size", type=int, default=64, help="rows a language model is read in")
    return parser


def tokenizer(args: argparse.Namespace) -> None:
    """Train and save a tokenizer."""
    from ulmfit.text.corpus import open_corpus
    from ulmfit.text.tokenizer import Tokenizer

    output = Path(args.output)
    if output.exists():
        raise UserError(f"--output {output} exists; name another file or remove it")
    split = open_corpus(args.data, task="lm", text_column=args.text_column).splits["train"]
    texts = (text for batch in split.batches() for text in batch.texts)
    trained = Tokenizer.train(texts, rules=args.rules, vocab_size=args.vocab_size, min_freq=args.min_freq,
                              subword=args.subword)
    try:
        trained.save(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}); name another file") from None
    print(f"{output}: {len(trained):,} tokens, fingerprint {trained.fingerprint}, begins with "
          f"{' '.join(trained.vocab[:16])}")


def show(args: argparse.Namespace) -> None:
    """Print rows of a batch as tokens."""
    from ulmfit.text.corpus import open_corpus
    from ulmfit.text.tokenizer import Tokenizer

    path = Path(args.tokenizer)
    tok = Tokenizer.from_file(path / "tokenizer.json" if path.is_dir() else path)
    corpus = open_corpus(args.data, task=args.task, text_column=args.text_column, label_column=args.label_column)
    known = set(tok.vocab)
    batch = next(iter(corpus.splits["train"].batches(max(args.rows, 1))))
    for row, tokens in enumerate(tok.tokenize(batch.texts)):
        words = [token if token in known else f"xxunk({token})" for token in tokens]
        tail = f" ... ({len(words)} tokens)" if len(words) > args.bptt else ""
        label = f"[{corpus.label_names[batch.labels[row]]}] " if args.task == "clf" else ""
        print(label + " ".join(repr(w)[1:-1] for w in words[:args.bptt]) + tail)


def predict(args: argparse.Namespace) -> None:
    """Classify texts, or a corpus in chunks that are dealt to the processes."""
    from ulmfit.config import ClassifierConfig
    from ulmfit.inference import TextClassifier
    from ulmfit.text.corpus import read_texts
    from ulmfit.training.runtime import Runtime

    if bool(args.text) == bool(args.data):
        raise UserError("give either texts or --data, one of them")
    runtime = Runtime(ClassifierConfig())
    model = TextClassifier.from_pretrained(args.model, device=runtime.device)
    texts = iter(args.text) if args.text else (
        text for batch in read_texts(args.data, args.text_column) for text in batch.texts)
    with _writer(args.output if runtime.is_main else os.devnull, model.label_names) as write:
        while chunk := list(islice(texts, CHUNK * runtime.world_size)):
            mine = runtime.own_rows(len(chunk))
            rows = runtime.gather_objects(list(model.probabilities(chunk[mine.start:mine.stop])))
            if runtime.is_main:
                for row in rows:
                    write(model.label_names[row.argmax()], row)
    runtime.close()


@contextmanager
def _writer(output: str | None, labels: Sequence[str]) -> Iterator[Callable[[str, Any], None]]:
    """A function that writes one prediction; a file appears under its name once it is whole."""
    if output is None or output == os.devnull:
        with open(os.devnull, "w") if output else _same(sys.stdout) as file:
            yield lambda label, row: print(f"{label}\t{row.max():.4f}", file=file)
        return
    path = Path(output)
    if path.exists():
        raise UserError(f"--output {path} exists; name another file or remove it")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                yield lambda label, row: file.write(json.dumps(
                    {"label": label, "probabilities": dict(zip(labels, map(float, row), strict=True))}) + "\n")
            elif path.suffix == ".csv":
                table = csv.writer(file)
                table.writerow(["label", *labels])
                yield lambda label, row: table.writerow([label, *(f"{p:.6f}" for p in row)])
            else:
                yield lambda label, row: print(f"{label}\t{row.max():.4f}", file=file)
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
    for text in model.generate(args.prompt, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                               top_k=args.top_k, min_p=args.min_p, seed=args.seed):
        print(text)


def evaluate(args: argparse.Namespace) -> None:
    """Score a model on a split, as training does."""
    from ulmfit.batches.cache import build_or_open
    from ulmfit.config import ClassifierConfig, LMConfig
    from ulmfit.evaluation import score_classifier, score_language_model
    from ulmfit.model.classifier import ClassifierNet
    from ulmfit.model.pretrained import load_model
    from ulmfit.text.corpus import open_corpus
    from ulmfit.training.prepare import cache_directory
    from ulmfit.training.runtime import Runtime

    config = ClassifierConfig()
    runtime = Runtime(config)
    net, tok, saved = load_model(args.model, device=runtime.device)
    is_classifier = isinstance(net, ClassifierNet)
    config = config if is_classifier else LMConfig()
    corpus = open_corpus(args.data, task=config.task, text_column=args.text_column,
                         label_column=args.label_column, label_names=saved.get("label_names"),
                         whole=args.split == "all")
    if args.split not in corpus.splits:
        raise UserError(f"there is no split {args.split}; --split takes {', '.join(corpus.splits)} or all")
    store = build_or_open(corpus.splits[args.split], tok, cache_directory(config), with_labels=is_classifier)
    runtime.barrier()
    backwards = saved.get("backwards", False)
    if is_classifier:
        metrics = score_classifier(net, store, runtime, label_names=saved["label_names"], pad_id=tok.pad_id,
                                   backwards=backwards)
    else:
        metrics = score_language_model(net, store, runtime, num_rows=args.batch_size, bptt=saved["bptt"],
                                       backwards=backwards)
    if runtime.is_main:
        print(json.dumps({"split": args.split, "documents": store.num_documents, "tokens": store.num_tokens} | metrics))
    runtime.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 a user's mistake."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
