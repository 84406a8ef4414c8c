"""One writer a run directory; a dead one is no obstacle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from ulmfit.errors import UserError
from ulmfit.processes import process_state
from ulmfit.run import lock
from ulmfit.run.lock import DirectoryLock, rename_aside


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave_lock(directory, *, age: float = 0, **owner) -> None:
    path = directory / lock.LOCK_FILE
    path.write_text(json.dumps({"host": lock.socket.gethostname(), "start": None} | owner))
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path):
    with DirectoryLock(tmp_path) as held:
        message = f"process {os.getpid()} on {lock.socket.gethostname()}.*--output-dir"
        with pytest.raises(UserError, match=message):
            DirectoryLock(tmp_path)
        assert held.path.exists()
    assert list(tmp_path.iterdir()) == []
    DirectoryLock(tmp_path / "new" / "run").close()


def test_another_process_is_refused(tmp_path):
    with DirectoryLock(tmp_path):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                textwrap.dedent(f"""
            from pathlib import Path
            from ulmfit.errors import UserError
            from ulmfit.run.lock import DirectoryLock
            try:
                DirectoryLock(Path({str(tmp_path)!r}))
            except UserError as error:
                print(error)
            """),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert f"process {os.getpid()} on" in done.stdout, done.stderr


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    leave_lock(tmp_path, pid=dead_process())
    with DirectoryLock(tmp_path) as held:
        assert json.loads(held.path.read_text())["pid"] == os.getpid()


def test_a_number_given_again_does_not_keep_the_lock(tmp_path):
    leave_lock(tmp_path, pid=os.getpid(), start="1")  # as in a container, where every start is process 7
    DirectoryLock(tmp_path).close()
    leave_lock(tmp_path, pid=os.getppid(), start=process_state(os.getppid())[1])
    with pytest.raises(UserError):
        DirectoryLock(tmp_path)


def test_another_hosts_lock_holds_while_its_heart_beats(tmp_path):
    leave_lock(tmp_path, host="far", pid=dead_process(), age=200)
    with pytest.raises(UserError, match=f"on far.*delete .*{lock.LOCK_FILE}"):
        DirectoryLock(tmp_path)
    leave_lock(tmp_path, host="far", pid=1, age=400)
    DirectoryLock(tmp_path).close()


@pytest.mark.parametrize("alive", [True, False])
def test_a_process_of_another_container_with_this_hosts_name_is_watched(alive, tmp_path, monkeypatch):
    """Whether its number is that of a process here tells nothing."""
    monkeypatch.setattr(lock, "HEARTBEAT", 1.0)
    pid = 999_999_999 if alive else os.getpid()
    leave_lock(tmp_path, pid=pid, namespace="pid:[1]")
    if alive:
        beat = threading.Timer(0.7, os.utime, [tmp_path / lock.LOCK_FILE])
        beat.start()
        with pytest.raises(UserError, match=f"process {pid} of another container on .*--output-dir"):
            DirectoryLock(tmp_path)
        beat.join()
    else:
        DirectoryLock(tmp_path).close()


def test_a_requeued_job_goes_on_at_once_on_another_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    leave_lock(tmp_path, host="far", pid=1, job="17", restart=1)
    with DirectoryLock(tmp_path) as held:
        assert json.loads(held.path.read_text())["restart"] == 2


@pytest.mark.parametrize("then", ["beats", "ends", "is silent"])
def test_a_job_waits_for_a_sign_of_life_of_another_nodes_process(then, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(lock, "SILENCE", 100.0)
    # Another job, which may have been another start of this run, on a node that was lost.
    leave_lock(tmp_path, host="far", pid=1, job="16", restart=0, age=0 if then == "beats" else 97)
    path = tmp_path / lock.LOCK_FILE
    acts = {"beats": lambda: os.utime(path), "ends": path.unlink, "is silent": lambda: None}
    threading.Timer(0.7, acts[then]).start()
    if then == "beats":
        with pytest.raises(UserError, match="is being written by process 1 on far"):
            DirectoryLock(tmp_path)
    else:
        with DirectoryLock(tmp_path) as held:
            assert json.loads(held.path.read_text())["job"] == "17"


def test_a_damaged_lock_is_a_run_that_is_just_starting(tmp_path):
    path = tmp_path / lock.LOCK_FILE
    path.write_text('{"host')
    with pytest.raises(UserError, match="starting"):
        DirectoryLock(tmp_path)
    os.utime(path, (1, 1))
    DirectoryLock(tmp_path).close()


def test_an_empty_lock_is_waited_for_and_then_taken(tmp_path, monkeypatch):
    """Its owner was killed before it could write."""
    monkeypatch.setattr(lock, "EMPTY", 0.2)
    (tmp_path / lock.LOCK_FILE).touch()
    begun = time.monotonic()
    with DirectoryLock(tmp_path) as held:
        assert time.monotonic() - begun >= 0.2 and json.loads(held.path.read_text())["pid"] == os.getpid()


def test_an_empty_lock_that_its_owner_writes_meanwhile_is_the_owners(tmp_path, monkeypatch):
    (tmp_path / lock.LOCK_FILE).touch()
    monkeypatch.setattr(lock.time, "sleep", lambda _: leave_lock(tmp_path, host="far", pid=1))
    with pytest.raises(UserError, match="on far"):
        DirectoryLock(tmp_path)


def test_a_new_lock_that_another_process_took_as_an_empty_one_is_not_overwritten(tmp_path, monkeypatch):
    """This process was suspended between making the file and writing it."""
    taken = []
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: taken or taken.append(leave_lock(tmp_path, host="far", pid=1)))
    with pytest.raises(UserError, match="on far"):
        DirectoryLock(tmp_path)


def test_a_kill_while_a_lock_is_taken_over_leaves_one_that_can_be_read(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    leave_lock(tmp_path, pid=dead_process(), more="x" * 200)
    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "ftruncate", killed)
        with pytest.raises(KeyboardInterrupt):
            DirectoryLock(tmp_path)
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == os.getpid()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with DirectoryLock(tmp_path) as held:
        os.utime(held.path, (1, 1))
        deadline = time.monotonic() + 60
        while held.path.stat().st_mtime < 10:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


def test_a_lock_that_another_took_over_is_left_alone(tmp_path):
    held = DirectoryLock(tmp_path)
    leave_lock(tmp_path, host="far", pid=1)
    held.close()
    held.close()
    assert held.path.exists()


def test_of_many_that_find_a_dead_lock_one_takes_it(tmp_path):
    leave_lock(tmp_path, pid=dead_process())
    code = textwrap.dedent(f"""
        import os, sys, time
        from pathlib import Path
        from ulmfit.errors import UserError
        from ulmfit.run.lock import DirectoryLock
        judge = DirectoryLock._judge
        def judge_slowly(self, descriptor):
            judge(self, descriptor)
            time.sleep(0.1)  # whoever could, would come between judging and taking
        DirectoryLock._judge = judge_slowly
        gate, out = os.pipe()
        children = []
        for i in range(12):
            if (pid := os.fork()) == 0:
                os.close(out)
                os.read(gate, 1)  # all start when the pipe closes
                try:
                    DirectoryLock(Path({str(tmp_path)!r}))
                except UserError:
                    os._exit(3)
                sys.stdin.read()  # hold it until the parent has seen all others end
                os._exit(0)
            children.append(pid)
        os.close(out)
        codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(11)]
        print(codes.count(3), flush=True)
        """)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "11\n"
    child.communicate(timeout=60)


def test_an_unwritable_place_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        DirectoryLock(tmp_path / "file" / "run")


def test_a_run_is_renamed_to_the_first_free_number(tmp_path):
    run = tmp_path / "run"
    for number in (1, 2):
        run.mkdir()
        (run / "mark").write_text(str(number))
        assert rename_aside(run) == tmp_path / f"run.{number}"
    assert not run.exists() and (tmp_path / "run.2" / "mark").read_text() == "2"


def test_of_a_link_the_run_that_it_leads_to_is_renamed(tmp_path):
    real, link = tmp_path / "scratch" / "run", tmp_path / "run"
    real.mkdir(parents=True)
    (real / "mark").touch()
    link.symlink_to(real)
    assert rename_aside(link) == tmp_path / "scratch" / "run.1"
    assert (tmp_path / "scratch" / "run.1" / "mark").exists()
    assert link.is_symlink() and link.is_dir() and not any(link.iterdir())


def test_a_lock_that_moved_with_its_directory_is_closed_quietly(tmp_path):
    run = tmp_path / "run"
    held = DirectoryLock(run)
    aside = rename_aside(run)
    held.close()
    assert not run.exists() and (aside / lock.LOCK_FILE).exists()
