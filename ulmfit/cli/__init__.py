"""The command line: `ulmfit COMMAND`, `python -m ulmfit COMMAND`, and the launchers' train_lm.py and train_clf.py.

A command is an entry of `commands.COMMANDS`: the dataclass of its options and the function that takes them. This file
maps outcomes to exit codes. Until the signal handlers are installed it imports only what is quick: a signal during
the import of torch must not kill a run.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ulmfit.cli.streams import OutputLost, discard, standard_streams
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError, of_the_machine, tell

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run a command and give its exit code: 0 done or preempted, 1 failed, 2 a user's mistake, 130 Ctrl-C.

    Args:
        argv: the command and its options; by default those of this process.
        prog: what the help calls the command; by default `ulmfit COMMAND`.
    """
    stop = StopRequest.install()
    with standard_streams(), _threads_in_a_sentence():
        try:
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
        except Exception as error:
            if isinstance(error, OSError) and (sentence := of_the_machine(error)):
                print(f"failed: {sentence}", file=sys.stderr, flush=True)
                return FAILED
            traceback.print_exc()
            print(f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return FAILED


@contextmanager
def _threads_in_a_sentence() -> Iterator[None]:
    """Context without tracebacks of threads that the machine has failed, such as TensorBoard's on a full disk.

    Whoever next uses such a thread gets its error again, and it is told once, above.
    """

    def told(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and of_the_machine(failure.exc_value)):
            threading.__excepthook__(failure)

    before, threading.excepthook = threading.excepthook, told
    try:
        yield
    finally:
        threading.excepthook = before


def _run(argv: list[str], prog: str | None, stop: StopRequest) -> None:
    from ulmfit.cli.commands import COMMANDS
    from ulmfit.cli.help import command_help, overview
    from ulmfit.cli.options import defaults, nearest, parse, parse_together, wants_help

    name, words = (argv[0], argv[1:]) if argv else ("--help", [])
    command = COMMANDS.get(name)
    if command is None or not command.trains or wants_help(words):
        stop.release()  # Ctrl-C ends at once what has no checkpoint to save
    if name in ("-h", "--help"):
        print(overview(COMMANDS))
    elif command is None:
        raise UserError(f"there is no command {name}; {nearest(name, COMMANDS, 'see ulmfit --help')}")
    elif wants_help(words):
        print(command_help(command, prog or f"ulmfit {name}", defaults(command.options, words)))
    elif command.trains:
        options: Any = parse_together(command.options, words)
        with standard_streams(needed=False):
            command.run(options, stop)
    else:
        command.run(parse(command.options, words))
