"""The commands. A new one is a dataclass of options and a function that takes them, in a file of its own, and an
entry below.

The dataclass's docstring begins with the line of `ulmfit --help`; the docstring of a field is its help, with
"(default: ...)" where the value does not tell what happens. The file imports torch inside the function, so that
`--help` and mistakes are quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ulmfit.cli.evaluate import EvaluateOptions, evaluate
from ulmfit.cli.explain import ExplainOptions, explain
from ulmfit.cli.export import ExportOptions, export
from ulmfit.cli.generate import GenerateOptions, generate
from ulmfit.cli.import_fastai import ImportOptions, import_fastai
from ulmfit.cli.predict import PredictOptions, predict
from ulmfit.cli.preflight import PreflightOptions, preflight
from ulmfit.cli.report import ReportOptions, report
from ulmfit.cli.show import ShowOptions, show
from ulmfit.cli.top_losses import TopLossesOptions, top_losses
from ulmfit.cli.train import fit, sweep, train_clf, train_lm
from ulmfit.cli.train_tokenizer import TokenizerOptions, train_tokenizer
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.fit_config import FitConfig
from ulmfit.sweep_config import SweepConfig


@dataclass(frozen=True)
class Command:
    """An entry of COMMANDS.

    Attributes:
        options: the dataclass that the command line is parsed into.
        run: called with the options; with the StopRequest too where the command `trains` or `keeps`. Raises UserError for a
            mistake of the user's.
        example: options for the last line of the help.
        trains: signals ask for a checkpoint, and a closed stdout is no reason to stop.
        keeps: it is called with the StopRequest too, and a signal asks it to keep what it has done.
    """

    options: type
    run: Callable[..., None]
    example: str
    trains: bool = False
    keeps: bool = False


COMMANDS = {
    "fit": Command(FitConfig, fit, "--data reviews.csv --output-dir runs/reviews", trains=True),
    "train-lm": Command(LMConfig, train_lm, "--data reviews.csv --output-dir runs/lm", trains=True),
    "train-clf": Command(
        ClassifierConfig, train_clf, "--data reviews.csv --encoder runs/lm --output-dir runs/clf", trains=True
    ),
    "sweep": Command(SweepConfig, sweep, "--data reviews.csv --output-dir runs/sweep --time-budget 2h", trains=True),
    "predict": Command(PredictOptions, predict, "--model runs/clf --data new.csv --output labels.csv", keeps=True),
    "evaluate": Command(EvaluateOptions, evaluate, "--model runs/clf --data labelled.csv --split all"),
    "explain": Command(ExplainOptions, explain, 'runs/clf "What a wonderful film"'),
    "top-losses": Command(TopLossesOptions, top_losses, "runs/clf --data labelled.csv --split all"),
    "report": Command(ReportOptions, report, "runs/reviews"),
    "generate": Command(GenerateOptions, generate, '--model runs/lm "I liked this movie because"'),
    "export": Command(ExportOptions, export, "--model runs/lm --output encoder --bits 8"),
    "import-fastai": Command(ImportOptions, import_fastai, "wt103.pth itos_wt103.pkl wt103"),
    "show": Command(ShowOptions, show, "--data reviews.csv --task clf"),
    "preflight": Command(PreflightOptions, preflight, "--output-dir runs/lm --free 20"),
    "tokenizer": Command(TokenizerOptions, train_tokenizer, "--data reviews.csv --output tokenizer.json"),
}
