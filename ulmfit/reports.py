"""The values of --report-to: services and programs that a run's numbers are sent to."""

from __future__ import annotations

from importlib.util import find_spec

from ulmfit.errors import UserError

TRACKERS = ("wandb", "mlflow", "trackio")
ALL = "all"


def trackers_of(report_to: str | None) -> list[str]:
    """The trackers that the option names, in a fixed order; "all" stands for those that are installed.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    if report_to is None:
        return []
    names = [name.strip() for name in report_to.split(",")]
    if unknown := [name for name in names if name not in (*TRACKERS, ALL)]:
        raise UserError(
            f"--report-to {unknown[0]} is not known; give {', '.join(TRACKERS)} or {ALL}, several separated by commas "
            "(TensorBoard has the numbers in any case)"
        )
    missing = [name for name in TRACKERS if find_spec(name) is None]
    if absent := [name for name in names if name in missing]:
        raise UserError(f"--report-to {absent[0]} needs a package that is not installed; pip install {absent[0]}")
    found = [name for name in TRACKERS if name not in missing and (name in names or ALL in names)]
    if not found:
        raise UserError(
            f"--report-to {ALL} finds none of {', '.join(TRACKERS)} installed; install one, or leave the option out"
        )
    return found


def check_reports(report_to: str | None) -> None:
    """Raise UserError for a value of --report-to that cannot be used here."""
    trackers_of(report_to)
