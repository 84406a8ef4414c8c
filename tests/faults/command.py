"""A real command on a file system with a fault: python -m tests.faults.command FAULT CALL FOLDER COMMAND [OPTION ...]"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.layer import FAULTS, LASTING, Layer
from ulmfit.cli import main as command


def main(fault: str, at: str, folder: str, *words: str) -> int:
    assert fault in FAULTS, fault
    with Layer([Path(folder)], fault, int(at), lasting=fault in LASTING).installed():
        return command(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
