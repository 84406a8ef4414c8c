"""The command line: `ulmfit COMMAND`, `python -m ulmfit COMMAND`, and the launchers' train_lm.py and train_clf.py.

A command is an entry of `commands.COMMANDS`: the dataclass of its options and the function that takes them. This file
maps outcomes to exit codes. Until the signal handlers are installed it imports only what is quick: a signal during
the import of torch must not kill a run.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulmfit import __version__
from ulmfit.cli.streams import OutputLost, discard, standard_streams
from ulmfit.cores import prepare_threads
from ulmfit.distributed.launch import check_launch
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import RankLost, UserError, of_the_machine, one_line, tell
from ulmfit.excerpts import are_shown, failure, hide_values, values_shown

# The packages that pyproject.toml requires, by the names of their modules.
NEEDED = frozenset(
    ("accelerate", "datasets", "filelock", "fsspec", "huggingface_hub", "numpy", "psutil", "pyarrow", "safetensors", "tensorboard",
     "tokenizers", "torch", "tqdm", "tyro")
)  # fmt: skip
DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run a command and give its exit code: 0 done or preempted, 1 failed, 2 a user's mistake, 130 Ctrl-C.

    Args:
        argv: the command and its options; by default those of this process.
        prog: what the help calls the command; by default `ulmfit COMMAND`.
    """
    # torch reads it once. Its C++ code remarks at the first step that no parameter is unused, which is as intended.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    status = _status(argv, prog, StopRequest.install())
    if (mirror := sys.modules.get("ulmfit.training.mirror")) is not None:  # nothing else imports it than a training
        mirror.bound_end(status)
    return status


def _status(argv: Sequence[str] | None, prog: str | None, stop: StopRequest) -> int:
    with standard_streams(), values_shown(), _threads_in_a_sentence():
        try:
            check_launch()
            _run(list(sys.argv[1:] if argv is None else argv), prog, stop)
            sys.stdout.flush()
            return DONE
        except UserError as error:
            tell(error)
            return USER_ERROR
        except KeyboardInterrupt:
            return INTERRUPTED
        except OutputLost as lost:
            discard(sys.stdout)
            if lost.reader_left:  # head or less has seen enough
                return DONE
            print(f"error: {lost}", file=sys.stderr, flush=True)
            return USER_ERROR
        except RankLost as lost_rank:
            print(f"failed: {lost_rank}", file=sys.stderr, flush=True)
            return FAILED
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and (sentence := _not_installed(error.name)):
                print(f"error: {sentence}", file=sys.stderr, flush=True)
                return USER_ERROR
            if isinstance(error, OSError) and (fault := of_the_machine(error)):
                print(f"failed: {fault}", file=sys.stderr, flush=True)
                return FAILED
            if are_shown():
                traceback.print_exc()
            else:
                traceback.print_tb(error.__traceback__)  # without messages, which may quote texts
            print(f"failed: {failure(error)}", file=sys.stderr, flush=True)
            return FAILED


@contextmanager
def _threads_in_a_sentence() -> Iterator[None]:
    """Context without tracebacks of threads that the machine has failed, such as TensorBoard's on a full disk.

    Whoever next uses such a thread gets its error again, and it is told once, above.
    """

    def told(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and of_the_machine(failure.exc_value)):
            if are_shown():
                before(failure)
            else:
                traceback.print_tb(failure.exc_traceback)

    before, threading.excepthook = threading.excepthook, told
    try:
        yield
    finally:
        threading.excepthook = before


def _not_installed(module: str | None) -> str:
    """A sentence if a package that ulmfit needs is not there at all; "" if it is another module."""
    package = (module or "").partition(".")[0]
    if package not in NEEDED:
        return ""
    root = Path(__file__).parents[2]
    venv = root / ".venv" / "bin" / "activate"
    cure = (
        f"activate the environment by `source {venv}`"
        if venv.exists()
        else "run `bash launch/setup.sh`, or pip install ulmfit"
    )
    return f"{sys.executable} has no package {package}, which ulmfit needs; {cure}"


def _run(argv: list[str], prog: str | None, stop: StopRequest) -> None:
    from ulmfit.cli.commands import COMMANDS
    from ulmfit.cli.help import command_help, overview
    from ulmfit.cli.options import defaults, nearest, parse, parse_together, wants_help

    name, words = (argv[0], argv[1:]) if argv else ("--help", [])
    command = COMMANDS.get(name)
    if command is not None and not wants_help(words):
        prepare_threads()  # takes a tenth of a second, and must come before torch is imported
    if command is None or not (command.trains or command.keeps) or wants_help(words):
        stop.release()  # Ctrl-C ends at once what has nothing to save
    if name in ("-h", "--help"):
        print(overview(COMMANDS))
    elif name in ("-V", "--version"):
        print(f"ulmfit {__version__}")
    elif command is None:
        known = [*COMMANDS, "--help", "--version"]
        near = nearest(name.replace("_", "-").lower(), known, "see ulmfit --help")
        raise UserError(f"there is no command {one_line(name)}; {near}")
    elif wants_help(words):
        print(command_help(command, prog or f"ulmfit {name}", defaults(command.options, words)))
    elif command.trains:
        options: Any = parse_together(command.options, words)
        if not getattr(options, "samples", True):
            hide_values()
        with standard_streams(needed=False):
            command.run(options, stop)
    else:
        options = parse(command.options, words)
        # Where the result is a file, what is printed is a log.
        with standard_streams(needed=getattr(options, "output", None) in (None, "-")):
            command.run(*((options, stop) if command.keeps else (options,)))
