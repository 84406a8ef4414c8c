"""Checkpoints written in the background: what goes wrong there reaches the training."""

import pytest
import torch

from ulmfit.run import checkpoint
from ulmfit.run.saver import Saver


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError("no room")])
def test_whatever_stops_the_thread_is_raised_in_the_training(error, tmp_path, monkeypatch):
    def write(*args, **options):
        raise error

    saver = Saver(tmp_path, keep=1, before=lambda: None)
    saver.start(1, {"weight": torch.ones(2)})
    saver.wait()
    assert not saver.failed and saver.written() == 1 and saver.written() is None
    monkeypatch.setattr(checkpoint, "write", write)
    saver.start(2, {"weight": torch.ones(2)})
    with pytest.raises(OSError, match=str(error)):
        saver.wait()
    assert saver.written() is None and checkpoint.latest(tmp_path) == tmp_path / "step-00000001"
