"""The scripts for a rented GPU lie in benchmarks/ and import each other by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
