"""The long tier misses no test, and the order of a run names files that are there."""

import re
from pathlib import Path

from tests.tiers import LONGEST_FIRST

ROOT = Path(__file__).parents[1]


def test_the_files_that_go_first_are_there():
    assert [file for file in LONGEST_FIRST if not (ROOT / file).is_file()] == []


def test_run_long_runs_every_file_with_tests_of_its_own():
    commands = (ROOT / "tests" / "run_long.sh").read_text().replace("\\\n", " ").splitlines()
    run = {
        word for line in commands if "ULMFIT_LONG=1" in line for word in re.findall(r"(?<!--ignore )tests/\S+", line)
    }
    for file in sorted(ROOT.glob("tests/**/test_*.py")):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        if file != Path(__file__) and re.search(r"ULMFIT_LONG|\blong_tier\(|\bLONG\b", text):
            own = "ULMFIT_FUZZ" in text and not re.search(r"ULMFIT_LONG|\blong_tier\(", text)
            assert own or any(name == part or name.startswith(part.rstrip("/") + "/") for part in run), name
