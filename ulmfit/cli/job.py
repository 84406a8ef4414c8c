"""What launch/slurm.sbatch and launch/slurm_chain.sh ask of a training's command line before they start it.

    python -m ulmfit.cli.job train_lm.py --data corpus.parquet --output-dir runs/lm
    python -m ulmfit.cli.job -m ulmfit fit --data reviews.csv

prints, a line each, `--resume`, the output directory, and the model to start from (an empty line without one). A mistake
in the options is a sentence on stderr and exit code 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ulmfit.cli.commands import COMMANDS
from ulmfit.cli.options import parse
from ulmfit.config import TrainConfig
from ulmfit.config_check import check
from ulmfit.errors import UserError, tell
from ulmfit.fit_config import stage_configs
from ulmfit.option_types import path_text

TASK = "%a"  # as in the file names of sbatch
_OUTPUT_DIR = re.compile(r"--output[-_]dir")


class Job(NamedTuple):
    """What the scripts need to know of a training."""

    resume: str
    output_dir: str
    start: str


def job_of(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> Job:
    """Check the words behind the launcher: a trainer's file or `-m ulmfit COMMAND`, and its options.

    `%a` in an option is the number of this task of a job array, `$SLURM_ARRAY_TASK_ID`.

    Raises:
        UserError: the command trains nothing or is a sweep, its options are wrong, or the tasks of an array would train different runs
            in one directory.
    """
    place = 3 if words[0] == "-m" else 1
    name = os.path.basename(words[place - 1]).removesuffix(".py").replace("_", "-")
    command = COMMANDS.get(name, COMMANDS["train-lm"])  # a script of another name has its options
    if not command.trains:
        raise UserError(f"{name} trains nothing; give fit, train-lm or train-clf")
    if command is COMMANDS["sweep"]:
        raise UserError(
            "a sweep is started once for each task and not by a launcher; give sbatch --array=1-4 --wrap 'ulmfit sweep ...'"
        )
    options = list(words[place:])
    task = environment.get("SLURM_ARRAY_TASK_ID", "")
    if task:
        expanded = [word.replace(TASK, task) for word in options]
    else:
        expanded = options
    config: Any = parse(command.options, expanded)
    for training in [config] if isinstance(config, TrainConfig) else stage_configs(config):
        check(training)
    output_dir = path_text(config.output_dir)
    if not task and TASK in output_dir:
        raise UserError(
            f"--output-dir {output_dir} has {TASK}, which stands for the task of a job array; submit by sbatch --array=1-4"
        )
    if task and expanded != options and not _has_own_directory(options):
        raise UserError(
            f"the tasks of this job array differ and would share --output-dir {output_dir}; write {TASK} into it, as in "
            f"{output_dir}-{TASK}"
        )
    start = getattr(config, "encoder" if command is COMMANDS["train-clf"] else "init")
    return Job(config.resume, output_dir, path_text(start) if start else "")


def _has_own_directory(options: Sequence[str]) -> bool:
    """Whether the last `--output-dir` has `%a` in it."""
    own = False
    for option, following in zip(options, [*options[1:], ""], strict=False):
        name, equals, value = option.partition("=")
        if _OUTPUT_DIR.fullmatch(name):
            own = TASK in (value if equals else following)
    return own


def main() -> int:
    """Print what is known of the training on this process's command line; gives the exit code."""
    try:
        print("\n".join(job_of(sys.argv[1:])))
    except UserError as error:
        tell(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
