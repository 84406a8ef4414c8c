"""The values of --report-to: services and programs that a run's numbers are sent to."""

from __future__ import annotations

from importlib.util import find_spec

from ulmfit.errors import UserError
from ulmfit.excerpts import cut

TRACKERS = ("wandb", "mlflow", "trackio")
ALL, NONE = "all", "none"


def trackers_of(report_to: str | None) -> list[str]:
    """The trackers that the option names, in a fixed order; "all" stands for those that are installed.

    Raises:
        UserError: a name is unknown.
    """
    names = [] if report_to is None else [name.strip().lower() for name in report_to.split(",")]
    if names == [NONE]:
        return []
    if unknown := [name for name in names if name not in (*TRACKERS, ALL)]:
        raise UserError(
            f"--report-to {cut(unknown[0])!r} is not known; give {', '.join(TRACKERS)} or {ALL}, several separated by "
            "commas (TensorBoard has the numbers in any case)"
        )
    return [name for name in TRACKERS if name in names or (ALL in names and is_installed(name))]


def is_installed(name: str) -> bool:
    """Whether there is a package of this name. A mere folder, as wandb leaves one where it has worked, is none."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module that was made by hand
        return True
    return spec is not None and spec.origin is not None


def check_installed(report_to: str | None) -> None:
    """Refuse a new run that could not report to what was named. One that has begun goes on without it.

    Raises:
        UserError: a package is not installed.
    """
    names = trackers_of(report_to)
    if absent := [name for name in names if not is_installed(name)]:
        raise UserError(f"--report-to {absent[0]} needs a package that is not installed; pip install {absent[0]}")
    if not names and report_to is not None and ALL in report_to.lower():
        raise UserError(
            f"--report-to {ALL} finds none of {', '.join(TRACKERS)} installed; install one, or leave the option out"
        )
