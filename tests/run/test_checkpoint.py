"""Checkpoints: exact, complete or absent, and never fewer than one."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ulmfit.errors import UserError
from ulmfit.run import checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def save(directory: Path, step: int, state: dict | None = None, *, keep: int = 3, **options) -> Path:
    state = state or {"step": step, "w": torch.full((8,), float(step))}
    return checkpoint.write(directory, step, checkpoint.snapshot(state), keep=keep, **options)


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))


def assert_same(a, b, place="state"):
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), place
        assert torch.equal(
            a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
        ), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}/{i}")
    elif isinstance(a, float):
        assert a == b and math.copysign(1, a) == math.copysign(1, b) or math.isnan(a) and math.isnan(b), place
    else:
        assert a == b, place


def test_a_state_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 7, generator=generator)
    state = {
        "tensors": {str(dtype): (torch.randn(3, 5, generator=generator) * 50).to(dtype) for dtype in DTYPES},
        "special": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "generator": generator.get_state(),
        "transposed": base.t(),
        "slice": base[1:3],
        "column": base[:, 2],
        "parameter": base.clone(),
        "numbers": [0, -1, 2**80, 0.1, -0.0, 1e300, math.nan, math.inf, -math.inf, True, False, None],
        "betas": (0.9, 0.99),
        "nothing": {},
        "none": [],
        "nested": [{"h": [base[0], (base[1],)]}],
        "text": 'a "quoted" word\nand \u00e9\u4e16\U0001f600',
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "__metadata__": torch.ones(2),
    }
    loaded = checkpoint.load(save(tmp_path, 1, state))
    assert_same(state, loaded)


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path):
    loaded = checkpoint.load(save(tmp_path, 1, {"w": torch.nn.Parameter(torch.ones(2))}))
    assert type(loaded["w"]) is torch.Tensor and not loaded["w"].requires_grad


def test_a_tied_weight_is_stored_once_and_tied_again(tmp_path):
    weight = torch.randn(100, 100)
    path = save(tmp_path, 1, {"encoder": weight, "decoder": weight, "head": weight[:50]})
    assert (path / checkpoint.TENSORS).stat().st_size < 1.7 * weight.numel() * 4
    loaded = checkpoint.load(path)
    assert loaded["encoder"] is loaded["decoder"]
    assert torch.equal(loaded["head"], weight[:50])
    loaded["head"].zero_()  # an overlapping view is a tensor of its own
    assert torch.equal(loaded["encoder"], weight)


def test_what_is_loaded_outlives_the_files(tmp_path):
    weight = torch.randn(1000)
    path = save(tmp_path, 1, {"w": weight})
    loaded = checkpoint.load(path)
    with open(path / checkpoint.TENSORS, "r+b") as file:
        file.truncate(10)
    assert torch.equal(loaded["w"], weight)


@pytest.mark.parametrize(
    "state",
    [
        {"a": {1: 2}},
        {"a": object()},
        {"a": b"x"},
        {"$tensor": 1},
        {"a": {1, 2}},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
    ],
)
def test_what_cannot_be_exact_is_refused(tmp_path, state):
    with pytest.raises(AssertionError):
        save(tmp_path, 1, state)
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_not_reached_by_later_changes(tmp_path):
    weights = torch.ones(4)
    taken = checkpoint.snapshot({"w": weights, "again": weights})
    weights.zero_()
    state = checkpoint.load(checkpoint.write(tmp_path, 1, taken, keep=1))
    assert torch.equal(state["w"], torch.ones(4)) and state["again"] is state["w"]


def test_the_newest_are_kept(tmp_path):
    for step in range(10, 60, 10):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [40, 50]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000040", "step-00000050"]


def test_a_damaged_one_does_not_count(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000030" / checkpoint.MANIFEST).unlink()
    save(tmp_path, 40, keep=2)
    assert 20 in steps(tmp_path) and 40 in steps(tmp_path) and 10 not in steps(tmp_path)


def test_later_ones_that_were_passed_over_never_push_out_the_new_one(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=9)
    for step in (20, 30):  # same sizes: only the checksum tells
        flip_last_byte(tmp_path / f"step-{step:08d}" / checkpoint.TENSORS)
    warnings: list[str] = []
    assert checkpoint.latest(tmp_path, warn=warnings.append) == tmp_path / "step-00000010"
    assert len(warnings) == 2 and "step-00000030" in warnings[0] and "step-00000020" in warnings[1]
    save(tmp_path, 15, keep=2)
    assert checkpoint.latest(tmp_path, warn=warnings.append) == tmp_path / "step-00000015"
    assert steps(tmp_path) == [10, 15, 20, 30]
    save(tmp_path, 20, {"again": 1}, keep=1)
    assert checkpoint.latest(tmp_path, warn=warnings.append) == tmp_path / "step-00000020"
    assert checkpoint.load(tmp_path / "step-00000020") == {"again": 1}


def flip_last_byte(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


DAMAGES = {
    "no manifest": lambda p: (p / checkpoint.MANIFEST).unlink(),
    "torn manifest": lambda p: (p / checkpoint.MANIFEST).write_text('{"format": 1, "fi'),
    "empty manifest": lambda p: (p / checkpoint.MANIFEST).write_text(""),
    "manifest of nothing": lambda p: (p / checkpoint.MANIFEST).write_text('{"format": 1, "files": {}}'),
    "manifest is a list": lambda p: (p / checkpoint.MANIFEST).write_text("[]"),
    "other format": lambda p: (p / checkpoint.MANIFEST).write_text('{"format": 99, "files": {}}'),
    "no state": lambda p: (p / checkpoint.STATE).unlink(),
    "torn state": lambda p: os.truncate(p / checkpoint.STATE, 5),
    "torn tensors": lambda p: os.truncate(p / checkpoint.TENSORS, 40),
    "flipped bit": lambda p: flip_last_byte(p / checkpoint.TENSORS),
    "state changed in place": lambda p: flip_last_byte(p / checkpoint.STATE),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    assert checkpoint.validate(newest) == []
    damage(newest)
    assert checkpoint.validate(newest)
    warnings: list[str] = []
    assert checkpoint.latest(tmp_path, warn=warnings.append) == tmp_path / "step-00000010"
    assert len(warnings) == 1 and str(newest) in warnings[0]


def test_no_checkpoints(tmp_path):
    assert checkpoint.latest(tmp_path / "none", warn=pytest.fail) is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-00000001").write_text("a file")
    assert checkpoint.latest(tmp_path, warn=pytest.fail) is None


def test_loading_what_is_no_checkpoint_is_a_users_mistake(tmp_path):
    path = save(tmp_path, 10)
    os.truncate(path / checkpoint.TENSORS, 40)
    with pytest.raises(UserError, match="step-00000010.*--resume never"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="step-00000011"):
        checkpoint.load(tmp_path / "step-00000011")


def test_a_replaced_checkpoint_is_found_between_the_two_renames(tmp_path):
    path = save(tmp_path, 10, {"first": 1})
    path.rename(tmp_path / ".step-00000010.old-1")  # killed here
    found = checkpoint.latest(tmp_path, warn=pytest.fail)
    assert found is not None and checkpoint.load(found) == {"first": 1} and found.name == ".step-00000010.old-1"
    save(tmp_path, 10, {"second": 2})
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"second": 2}


def test_leftovers_of_dead_writers_are_removed_and_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("tmp", "old", "trash"):
        (tmp_path / f".step-00000010.{kind}-{dead.pid}").mkdir()
    living = tmp_path / f".step-00000010.tmp-{os.getppid()}"
    living.mkdir()
    save(tmp_path, 20)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [living.name, "step-00000020"]


def test_a_failed_deletion_is_told_and_does_not_stop(tmp_path, monkeypatch):
    save(tmp_path, 10)
    save(tmp_path, 20)
    kept = checkpoint.shutil.rmtree

    def refuse(path, ignore_errors=False):
        if "00000010" in path.name or "00000020" in path.name:
            raise PermissionError(errno.EACCES, "no", str(path))
        kept(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    warnings: list[str] = []
    path = save(tmp_path, 30, keep=1, warn=warnings.append)
    assert checkpoint.validate(path) == [] and len(warnings) == 2


def test_saving_where_nothing_can_be_saved(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="step 5 could not be written"):
        save(tmp_path / "file" / "checkpoints", 5)


def run(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    # A limit on the size of files stands for the disk; 3 MB pass the small save and stop the big one.
    done = run(
        """
        import errno, resource, signal, sys
        from pathlib import Path
        import torch
        from ulmfit.run import checkpoint
        directory = Path(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        checkpoint.write(directory, 1, checkpoint.snapshot({"w": torch.ones(1000)}), keep=1)
        for state in ({"w": torch.ones(1 << 20)}, {"w": torch.ones(1), "text": "x" * (4 << 20)}):
            try:
                checkpoint.write(directory, 2, checkpoint.snapshot(state), keep=1)
            except OSError as error:
                assert error.errno == errno.EFBIG, error
                print(error)
        assert torch.equal(checkpoint.load(checkpoint.latest(directory))["w"], torch.ones(1000))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2 could not be written (File too large)") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    """SIGKILL before each call that changes the directory: always the old checkpoint or the new one."""
    save(tmp_path, 1)
    save(tmp_path, 2, {"step": 2, "old": True}, keep=2)
    code = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from ulmfit.run import checkpoint
        countdown = [int(sys.argv[2])]
        def dying(function):
            def call(*arguments, **options):
                if countdown[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                countdown[0] -= 1
                return function(*arguments, **options)
            return call
        for module, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink")):
            setattr(module, name, dying(getattr(module, name)))
        state = {"step": 3, "w": torch.arange(1000)}
        checkpoint.write(Path(sys.argv[1]), 3, checkpoint.snapshot(state), keep=2)
        checkpoint.write(Path(sys.argv[1]), 3, checkpoint.snapshot(state | {"again": True}), keep=2)
        """
    script = textwrap.dedent(code)
    # All numbers at once, each in a directory of its own, in forks of one process that has imported torch.
    driver = f"""
        import os, shutil, signal, sys
        from pathlib import Path
        import torch
        from ulmfit.run import checkpoint
        root = Path(sys.argv[1])
        finished, number = False, 0
        while not finished:
            directory = root.with_name(f"killed-{{number}}")
            shutil.copytree(root, directory)
            pid = os.fork()
            if pid == 0:
                sys.argv = ["", str(directory), str(number)]
                exec({script!r}, {{}})
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (0, -signal.SIGKILL), code
            finished = code == 0
            found = checkpoint.latest(directory, warn=lambda text: sys.exit(f"kill {{number}}: {{text}}"))
            state = checkpoint.load(found)
            if state["step"] == 3:
                assert torch.equal(state["w"], torch.arange(1000))
            else:
                assert state == {{"step": 2, "old": True}}, state
            checkpoint.write(directory, 4, checkpoint.snapshot({{"step": 4}}), keep=2)
            assert len(list(directory.iterdir())) <= 2, list(directory.iterdir())
            number += 1
        print(number)
        """
    done = run(driver, tmp_path)
    for leftover in tmp_path.parent.glob("killed-*"):
        checkpoint.shutil.rmtree(leftover)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_the_manifest_covers_every_file(tmp_path):
    path = save(tmp_path, 7)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {entry.name for entry in path.iterdir()} - {checkpoint.MANIFEST}


def test_a_process_that_ended_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert checkpoint.process_alive(child.pid)
    finally:
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, still in the process table
        assert not checkpoint.process_alive(child.pid)
        child.wait()
    assert not checkpoint.process_alive(child.pid)
