"""status.json: read back as written, nothing left beside it, and written on a full disk too."""

import math

import pytest

from ulmfit.run import status
from ulmfit.run.status import STATUS, read_status, write_status


def test_status_is_written_whole(tmp_path):
    assert read_status(tmp_path) is None
    write_status(tmp_path, "running", 0)
    write_status(tmp_path, "preempted", 12, reason="SIGTERM", loss=math.nan)
    assert read_status(tmp_path) == {"state": "preempted", "step": 12, "reason": "SIGTERM", "loss": None}
    assert [entry.name for entry in tmp_path.iterdir()] == [STATUS]
    (tmp_path / STATUS).write_text("{")
    assert read_status(tmp_path) is None


def test_a_full_disk_still_gets_the_outcome(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    write_status(tmp_path, "running", 100, note="longer than what follows")
    monkeypatch.setattr(status, "write_text", full)
    for step, state in ((7, "failed"), (8, "preempted")):
        write_status(tmp_path, state, step)
        assert read_status(tmp_path) == {"state": state, "step": step}
    with pytest.raises(OSError, match="No space"):
        write_status(tmp_path / "elsewhere", "failed", 1)
