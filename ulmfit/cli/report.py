"""report: a page about runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ulmfit.cli.common import check_output
from ulmfit.errors import UserError
from ulmfit.excerpts import values_shown
from ulmfit.files import write_text
from ulmfit.paths import as_path

if TYPE_CHECKING:
    from ulmfit.report.facts import Facts
    from ulmfit.report.judged import Judged

PAGE = "report.html"


@dataclass(kw_only=True)
class ReportOptions:
    """Write a page about a run, or about several runs side by side.

    It tells what the model is for, its data in figures, the curves, scores by class, calibration, the worst errors, the
    words that decide, and the commands. The page is one file that loads nothing. Model and data are read again for errors
    and words; where they are gone, the rest is told.
    """

    run: Positional[tuple[str, ...]]
    """Run directories of train-lm and train-clf, or jobs of fit."""
    output: str | None = None
    """New file (default: report.html in the directory of the only run; with several it must be given)."""
    errors: int = 10
    """Worst errors to show."""
    samples: bool = True
    """Show texts, words and names of classes; never those of a run with --no-samples."""
    score: bool = True
    """Read model and data; --no-score takes only what the run's files tell."""


def report(options: ReportOptions) -> None:
    """Read the runs and write the page."""
    from ulmfit import __version__
    from ulmfit.report.facts import read_facts
    from ulmfit.report.report_page import report_page

    runs = [read_facts(path.rstrip("/") or path) for path in dict.fromkeys(options.run)]
    if not options.samples:
        runs = [replace(run, hidden=True) for run in runs]
    if options.output is None and len(runs) > 1:
        raise UserError("a report of several runs lies in none of them; name a file by --output")
    file = Path(options.output) if options.output else Path(as_path(runs[0].path)) / PAGE
    if options.output:
        check_output(file)
    elif file.is_symlink():  # a run of somebody else could have any file here overwritten
        raise UserError(f"{file} is a link, whose target would be overwritten; remove it, or name a file by --output")
    judged: dict[str, Judged | str] = {}
    if options.score:
        for run in runs:
            if run.clf is not None:
                judged[run.path] = _judged(run, options)
    with values_shown(not any(run.hidden for run in runs)):
        write_text(file, report_page(runs, judged, version=__version__))
    print(f"written to {file}")


def _judged(run: Facts, options: ReportOptions) -> Judged | str:
    """What model and data tell; else why they do not."""
    from ulmfit.config import ClassifierConfig
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.report.judged import judge

    try:
        with values_shown(not run.hidden), open_runtime(ClassifierConfig()) as (runtime, _):
            return judge(run, runtime, errors=options.errors, texts=not run.hidden)
    except UserError as error:
        return str(error)
