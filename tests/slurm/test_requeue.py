"""What launch/slurm.sbatch and launch/slurm_chain.sh ask SLURM for, with stand-ins for its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import ROOT
from ulmfit.cli.job import Job, job_of
from ulmfit.errors import UserError

COMMANDS = {
    "scontrol": """case "$1 $2" in "show hostnames") echo n1;; "show node") echo "NodeAddr=127.0.0.1 x";;
        requeue*) [ -z "$FORBIDDEN" ] || exit 1; echo "$2" >"$LOGS/requeued";; *) echo "$*" >>"$LOGS/scontrol";; esac""",
    "squeue": """case "$*" in *%E*) printf '8 afterok:7(unfulfilled)\\n9 afterok:70(unfulfilled)\\n';;
        *) echo RUNNING;; esac""",
    "srun": 'echo "$*" >>"$LOGS/srun"; cp -r "$AFTER/." "$RUN"; exit "$CODE"',
    "sbatch": """echo "$ULMFIT_STARTS/$ULMFIT_AFTER/${SLURM_JOB_ID-}/$*" >>"$LOGS/sbatch"
        echo $((100 + $(wc -l <"$LOGS/sbatch")))""",
}
TRAINER, JOB = ["train_lm.py"], ["-m", "ulmfit", "fit", "--lm.lr", "1"]


def write(run: Path, state: str, step: int, *checkpoints: int, **more) -> None:
    """A run with a checkpoint; or with several, a job with a run a training."""
    for folder, checkpoint in zip(("lm", "clf", "clf-2") if len(checkpoints) > 1 else ("",), checkpoints, strict=False):
        path = run / folder / "checkpoints" / f"step-{checkpoint:08d}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "manifest.json").touch()
    (run / "status.json").write_text(json.dumps({"state": state, "step": step} | more))


class Slurm:
    """The stand-ins, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        for name in ("bin", "logs", "after"):
            (folder / name).mkdir()
        for name, text in COMMANDS.items():
            self.put(name, text)

    def put(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def asked(self, command: str) -> list[str]:
        file = self.folder / "logs" / command
        return file.read_text().splitlines() if file.exists() else []

    def start(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "ULMFIT_PYTHON": sys.executable,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_ID": "7",
            "LOGS": str(self.folder / "logs"),
            "AFTER": str(self.folder / "after"),
            "RUN": str(self.run),
            "CODE": "0",
            "FORBIDDEN": "",
        }
        return subprocess.run(
            ["bash", *words], cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=120
        )

    def job(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.start("launch/slurm.sbatch", *words, **more)


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "code", "options", "requeued", "trainer"),
    [
        # Killed further on than ever, but what it would go on from is what it went on from.
        (("failed", 910, 900), ("failed", 950, 900), 137, [], False, TRAINER),
        # Killed before it came as far as the last time, with a newer checkpoint.
        (("failed", 1000, 900), ("failed", 990, 980), 137, [], True, TRAINER),
        (("preempted", 40, 40), ("preempted", 80, 80), 0, [], True, TRAINER),
        (("preempted", 40, 40), ("preempted", 40, 40), 0, [], False, TRAINER),
        # Another run was there, which the trainer has moved aside.
        (("done", 500, 500), ("preempted", 100, 100), 0, ["--resume", "never"], True, TRAINER),
        # The language model is done, and the classifier has begun.
        (("preempted", 40, 40, 0), ("preempted", 50, 40, 10), 0, [], True, JOB),
        (("preempted", 50, 40, 10), ("failed", 55, 40, 10), 137, [], False, JOB),
        (("preempted", 50, 40, 10), ("done", 80, 40, 40), 0, [], False, JOB),
        # The second classifier goes on.
        (("preempted", 90, 40, 40, 10), ("preempted", 95, 40, 40, 15), 0, [], True, JOB),
    ],
)
def test_a_job_is_requeued_if_it_has_a_newer_checkpoint(before, after, code, options, requeued, trainer, slurm):
    if options:
        slurm.put("srun", 'rm -r "$RUN"; cp -r "$AFTER" "$RUN"; exit "$CODE"')
    write(slurm.run, *before)
    write(slurm.folder / "after", *after)
    done = slurm.job(*trainer, "--output-dir", str(slurm.run), *options, CODE=str(code))
    assert done.returncode == (0 if requeued or after[0] == "done" else 1), done.stderr
    assert (slurm.folder / "logs" / "requeued").exists() == requeued


def test_a_job_that_has_trained_nothing_is_no_success(slurm):
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run))
    assert done.returncode == 1 and f"{slurm.run} is not done but none" in done.stderr
    # One that a backup has left is no checkpoint, and no reason to fail.
    write(slurm.folder / "after", "running", 40, 40)
    (slurm.folder / "after" / "checkpoints" / "step-00000080.bak").mkdir()
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run))
    assert done.returncode == 1 and "is not done but running" in done.stderr and "at step 40" in done.stdout
    assert slurm.job(*TRAINER, "--lr-find", "--output-dir", str(slurm.run)).returncode == 0


@pytest.mark.parametrize(("reason", "requeued"), [("--max-time", False), ("stop file", False), ("SIGUSR1", True)])
def test_a_run_that_was_to_stop_is_not_requeued(reason, requeued, slurm):
    write(slurm.folder / "after", "preempted", 40, 40, reason=reason)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run))
    assert done.returncode == 1 - requeued and (f"stopped ({reason}): not requeued" in done.stdout) != requeued
    assert (slurm.folder / "logs" / "requeued").exists() == requeued


def test_a_requeued_job_does_not_go_on_with_the_run_that_it_was_to_replace(slurm):
    write(slurm.run, "done", 500, 500)
    (slurm.run / "config.json").touch()
    words = [*TRAINER, "--resume", "never", "--output-dir", str(slurm.run)]
    slurm.put("srun", 'echo "$*" >>"$LOGS/srun"; exit 137')  # before it had moved the old run aside
    slurm.job(*words)
    slurm.job(*words, SLURM_RESTART_COUNT="1")
    slurm.put("srun", 'echo "$*" >>"$LOGS/srun"; rm -r "$RUN"; cp -r "$AFTER" "$RUN"; exit 137')
    write(slurm.folder / "after", "running", 40, 40)
    slurm.job(*words, SLURM_RESTART_COUNT="2")
    slurm.job(*words, SLURM_RESTART_COUNT="3")
    assert [line.endswith("--resume auto") for line in slurm.asked("srun")] == [False, False, False, True]


@pytest.mark.parametrize("answers", [1, 9])
def test_a_controller_that_does_not_answer_is_asked_again(answers, slurm):
    slurm.put("sleep", "exit 0")
    slurm.put(
        "squeue",
        f"""echo x >>"$LOGS/squeue"; [ $(wc -l <"$LOGS/squeue") -gt {answers} ] && echo RUNNING ||
        {{ echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }}""",
    )
    write(slurm.folder / "after", "preempted", 40, 40)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run))
    assert done.returncode == 0 and slurm.asked("requeued") == ["7"], done.stderr
    done = slurm.job(
        *TRAINER, "--output-dir", str(slurm.folder / "other"), RUN=str(slurm.folder / "other"), FORBIDDEN="1"
    )
    assert done.returncode == 1 and ("does not answer: not requeued" in done.stderr) == (answers == 9), done.stderr


def test_mistakes_in_variables(slurm):
    words = [*TRAINER, "--output-dir", str(slurm.run)]
    for number in ("abc", "0", "2(x2)"):
        done = slurm.job(*words, ULMFIT_PROCESSES_PER_NODE=number)
        assert done.returncode == 2 and f"ULMFIT_PROCESSES_PER_NODE is {number}; give" in done.stderr
    done = slurm.job(*words, SLURM_JOB_ID="")
    assert done.returncode == 2 and "this is a job for SLURM; submit it" in done.stderr
    assert not slurm.asked("srun")


@pytest.mark.parametrize("cancelled", [True, False])
def test_scancel_ends_a_job_for_good_though_srun_gives_up_before_the_processes_have_ended(cancelled, slurm):
    slurm.put("squeue", f"echo {'COMPLETING' if cancelled else 'RUNNING'}")
    # Its parent is the shell of the background job, whose parent is the script.
    slurm.put("srun", 'cp -r "$AFTER/." "$RUN"; read -r _ _ _ script _ </proc/$PPID/stat; kill -TERM "$script"; exit 1')
    write(slurm.run, "preempted", 40, 40)
    write(slurm.folder / "after", "running", 90, 80)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run))
    assert ("the job was cancelled: not requeued" in done.stdout) == cancelled == (done.returncode == 1), done.stdout
    # A TERM that comes from elsewhere is a reason to go on.
    assert (slurm.folder / "logs" / "requeued").exists() != cancelled


def test_where_requeueing_is_forbidden_a_job_submits_itself_again(slurm):
    write(slurm.folder / "after", "preempted", 40, 40)
    words = [*TRAINER, "--resume", "never", "--output-dir", str(slurm.run)]
    chained = {"FORBIDDEN": "1", "ULMFIT_SBATCH": "--no-requeue --comment=a\\ b "}
    done = slurm.job(*words, **chained)
    assert done.returncode == 0, done.stderr
    line = f"1///--parsable --no-requeue --comment=a b {ROOT}/launch/slurm.sbatch {' '.join(words)}"
    assert slurm.asked("sbatch") == [line]
    assert slurm.asked("scontrol") == ["update JobId=8 Dependency=afterok:101"]
    assert "submitted again as job 101, to go on from step 40" in done.stdout

    # The second job goes on, though the first one was to start afresh, and a third is its successor.
    write(slurm.folder / "after", "preempted", 80, 80)
    assert slurm.job(*words, **chained, ULMFIT_STARTS="1").returncode == 0
    assert slurm.asked("srun")[-1].endswith("--resume auto")
    assert slurm.asked("sbatch")[-1] == "2" + line[1:]
    assert slurm.job(*words, FORBIDDEN="1").returncode == 1  # nobody has told it how to submit itself


def test_an_array_of_equal_tasks_is_a_chain(slurm):
    chain = {"FORBIDDEN": "1", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "2"}
    write(slurm.folder / "after", "preempted", 40, 40)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run), **chain, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0 and "the next task of the array goes on from step 40" in done.stdout, done.stderr
    write(slurm.folder / "after", "preempted", 60, 60)
    last = slurm.job(*TRAINER, "--resume", "never", "--output-dir", str(slurm.run), **chain, SLURM_ARRAY_TASK_ID="2")
    assert last.returncode == 1 and "submit the job again to go on" in last.stderr
    assert slurm.asked("srun")[-1].endswith("--resume auto")


def test_a_task_of_an_array_trains_a_run_of_its_own(slurm):
    slurm.run = slurm.folder / "run-3"
    write(slurm.folder / "after", "done", 40, 40)
    words = [*TRAINER, "--seed", "%a", f"--output-dir={slurm.folder}/run-%a"]
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "7"}
    done = slurm.job(*words, **array, ULMFIT_HEAD_ADDRESS="%h-ib")
    assert done.returncode == 0, done.stderr
    (trained,) = slurm.asked("srun")
    assert trained.endswith(f"train_lm.py --seed 3 --output-dir={slurm.run}")
    assert "head n1-ib:" in done.stdout
    assert f"ssh -L 6006:localhost:6006 LOGIN_NODE {sys.executable} -m tensorboard.main" in done.stdout

    # Job 7 is the whole array: its other tasks must not be requeued.
    write(slurm.folder / "after", "preempted", 80, 80)
    assert slurm.job(*words, **array).returncode == 0
    assert slurm.asked("requeued") == ["7_3"]

    shared = slurm.job(*TRAINER, "--seed", "%a", "--output-dir", "runs/lm", **array)
    assert shared.returncode == 2 and "would share --output-dir runs/lm" in shared.stderr
    assert len(slurm.asked("srun")) == 2


@pytest.mark.parametrize(
    ("words", "task", "expected"),
    [
        (["train_clf.py", "--encoder", "a", "--resume", "never"], None, Job("never", "runs/clf", "a")),
        (["-m", "ulmfit", "fit", "--init", "a-%a", "--output_dir", "b %a"], "7", Job("auto", "b 7", "a-7")),
        (["x.py", "--output-dir", "a", "--output-dir=b%a"], "0", Job("auto", "b0", "")),
        (["train_lm.py"], "1", Job("auto", "runs/lm", "")),
        (["train_lm.py", "--output-dir=a%a", "--output-dir", "b"], "1", "would share"),
        (["train_lm.py", "--output-dir", "a%a"], None, "--array"),
        (["train_lm.py", "--seed", "%a"], None, "does not fit"),
        (["-m", "ulmfit", "predict", "--model", "a"], None, "trains nothing"),
        (["-m", "ulmfit", "sweep", "--data", "a.csv"], None, "once for each task"),
    ],
)
def test_what_a_command_line_says_of_its_job(words, task, expected):
    environment = {} if task is None else {"SLURM_ARRAY_TASK_ID": task}
    if isinstance(expected, Job):
        assert job_of(words, environment) == expected
    else:
        with pytest.raises(UserError, match=expected):
            job_of(words, environment)


@pytest.mark.parametrize("state", ["preempted", None, "done"])
def test_a_job_starts_only_from_a_run_that_is_done(state, slurm):
    first = slurm.folder / "lm-2"
    first.mkdir()
    if state:
        write(first, state, 40, 40)
    write(slurm.folder / "after", "done", 40, 40)
    after = {"ULMFIT_AFTER": f"{slurm.folder}/lm-%a", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7"}
    done = slurm.job("train_clf.py", "--encoder", str(first), "--output-dir", str(slurm.run), **after)
    assert (done.returncode, len(slurm.asked("srun"))) == ((0, 1) if state == "done" else (1, 0)), done.stderr
    if state != "done":
        assert f"{first} is not done but {state or 'none'}" in done.stderr


def test_the_host_that_hung_is_told_with_the_cure(slurm):
    error = (
        "no step has ended for 15 minutes (--watchdog); nothing is heard of rank 1 (host n2, process 8) at step 3, x"
    )
    write(slurm.folder / "after", "failed", 40, 40, error=error)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run), CODE="1")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "to leave out who hung: sbatch --exclude=n2 ..."


def test_python_may_be_one_in_a_container(slurm):
    write(slurm.folder / "after", "done", 40, 40)
    image = slurm.folder / "ulmfit.sif"
    image.touch()
    slurm.put(
        "apptainer",
        f'echo "$*" >>"$LOGS/apptainer"; while [ "$1" != python ]; do shift; done; shift; exec {sys.executable} "$@"',
    )
    words = [*TRAINER, "--output-dir", str(slurm.run)]
    container = {"ULMFIT_PYTHON": str(ROOT / "launch" / "container_python.sh"), "ULMFIT_BINDS": "/data"}
    done = slurm.job(*words, **container)
    assert done.returncode == 2 and "there is no image in ULMFIT_IMAGE; build it by launch/apptainer.def" in done.stderr
    done = slurm.job(*words, **container, ULMFIT_IMAGE=str(image))
    assert done.returncode == 0, done.stderr
    assert slurm.asked("apptainer")[0].startswith(
        f"exec --bind {ROOT},/data {image} python -m ulmfit.cli.job train_lm.py"
    )
    recipe = (ROOT / "launch" / "apptainer.def").read_text().partition("%files")[2].partition("%post")[0]
    assert all((ROOT / line.split()[0]).exists() for line in recipe.strip().splitlines())


def test_a_trainer_may_be_one_of_another_project(slurm):
    trainer = slurm.folder / "mine.py"
    trainer.touch()
    write(slurm.folder / "after", "done", 40, 40)
    done = slurm.job(str(trainer), "--output-dir", str(slurm.run), ULMFIT_PROCESSES_PER_NODE="2")
    assert done.returncode == 0, done.stderr
    assert f"--config_file {ROOT}/launch/several_nodes.yaml" in slurm.asked("srun")[0]


def test_unfit_nodes_start_no_training(slurm):
    slurm.put("srun", 'echo "$*" >>"$LOGS/srun"; case "$*" in *preflight*) exit 1;; esac; cp -r "$AFTER/." "$RUN"')
    write(slurm.folder / "after", "done", 40, 40)
    done = slurm.job(*TRAINER, "--output-dir", str(slurm.run), ULMFIT_PREFLIGHT="--free 50")
    assert done.returncode == 1 and "the nodes are not fit to train on" in done.stderr
    (line,) = slurm.asked("srun")
    assert "-m ulmfit preflight --nodes n1 --head 127.0.0.1:20070 --processes 1" in line and line.endswith("--free 50")


@pytest.mark.slow
def test_trainings_in_a_chain_wait_for_each_other(slurm):
    lm, fine, clf = (["--output-dir", f"{slurm.folder}/{name}"] for name in ("lm", "fine", "clf"))
    stages = [
        ["train_lm.py", *lm],
        ["train_lm.py", "--init", lm[1], *fine],
        ["train_clf.py", "--encoder", f"{fine[1]}/", *clf],
    ]

    def chain(options: list[str], stages: list[list[str]]) -> subprocess.CompletedProcess[str]:
        words = [word for stage in stages for word in ("--", *stage)]
        return slurm.start("launch/slurm_chain.sh", *options, *words)

    for wrong, sentence in [
        ([stages[0], ["train_clf.py", *clf]], "starts from no model and from no training before it"),
        ([stages[0], ["train_clf.py", *clf, "--encoder", "elsewhere"]], "starts from elsewhere and from no"),
        ([*stages[:2], ["train_clf.py", "--epoch", "3"]], "did you mean --epochs?"),
        ([stages[0], ["train_lm.py", "--init", *lm[1:], *lm]], "two trainings of the chain have the --output-dir"),
        ([stages[0], []], "has no training behind it"),
    ]:
        done = chain(["--nodes=2"], wrong)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not slurm.asked("sbatch")

    done = chain(["--nodes=2", "-A", "us all"], stages)
    assert done.returncode == 0, done.stderr
    options = "--parsable --nodes=2 -A us all"
    waits = [f"--dependency=afterok:10{number} --kill-on-invalid-dep=yes " for number in (1, 2)]
    assert [line.split("/--parsable")[0] for line in slurm.asked("sbatch")] == ["//7", f"/{lm[1]}/7", f"/{fine[1]}/7"]
    assert [line[line.index("--parsable") :] for line in slurm.asked("sbatch")] == [
        f"{options} {wait}launch/slurm.sbatch {' '.join(stage)}"
        for wait, stage in zip(("", *waits), stages, strict=True)
    ]

    tasks = [["train_lm.py", "--output-dir", "a-%a"], ["train_clf.py", "--encoder", "a-%a", "--output-dir", "b-%a"]]
    done = chain(["--array=1-4"], tasks)
    assert done.returncode == 0, done.stderr
    assert slurm.asked("sbatch")[-1].startswith("/a-%a/7/--parsable --array=1-4 --dependency=aftercorr:104 --kill")
