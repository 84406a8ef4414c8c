"""Atomic writes: the old file or the new one, whole."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ulmfit import files

SOURCE = Path(files.__file__).parent


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "one")
    with files.replacing(path) as aside:
        aside.write_text("two")
        assert path.read_text() == "one" and aside.parent == tmp_path
    assert path.read_text() == "two" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_text(path, "one")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="full"):
        files.write_text(path, "two")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as aside:
        aside.write_text("tw")
        raise ZeroDivisionError
    assert path.read_text() == "one" and names(tmp_path) == ["a.json"]


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from ulmfit import files
        left = [int(sys.argv[2])]
        def dying(function):
            def call(*arguments, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*arguments, **options)
            return call
        for name in ("open", "fsync", "replace", "close"):
            setattr(os, name, dying(getattr(os, name)))
        files.write_text(Path(sys.argv[1]), "two")
        """
    seen = []
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a").write_text("one")
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(folder / "a"), str(number)], timeout=60)
        seen.append((folder / "a").read_text())
        assert all(entry == folder / "a" or files.is_torn(entry) for entry in folder.iterdir())
        files.remove_torn(folder)
        assert names(folder) == ["a"]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert seen == sorted(seen) and set(seen) == {"one", "two"} and len(seen) > 5


def test_threads_do_not_write_each_others_files(tmp_path):
    path, texts = tmp_path / "a", [str(number) * 10_000 for number in range(8)]
    threads = [
        threading.Thread(target=lambda text=text: [files.write_text(path, text) for _ in range(20)]) for text in texts
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts and names(tmp_path) == ["a"]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "real").write_text("one")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "two"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


@pytest.mark.parametrize("links", [True, False])
def test_publish_new_replaces_nothing(tmp_path, monkeypatch, links):
    if not links:

        def fail(*arguments):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(files.os, "link", fail)
    for number, name in enumerate(["a", "a.1", "a.2"]):
        with files.beside(tmp_path / "a") as aside:
            aside.write_text(str(number))
            assert files.publish_new(aside, tmp_path / "a") == tmp_path / name
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"a": "0", "a.1": "1", "a.2": "2"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    from ulmfit.files import new_folder

    path = tmp_path / ("long" * 60)
    dead = tmp_path / f".{path.name[:40]}.tmp-{files.host_mark()}-999999999-1"
    dead.mkdir()  # of a writer that was killed
    with pytest.raises(KeyboardInterrupt), new_folder(path) as aside:
        (aside / "file").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(path) as aside:
        (aside / "file").write_text("whole")
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and (path / "file").read_text() == "whole"


def test_nothing_else_renames_files():
    """One place for the order of flushing and renaming."""
    hits = [
        f"{file.relative_to(SOURCE)}: {line.strip()}"
        for file in SOURCE.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"os\.(replace|rename|link)\(", line) and file.name != "files.py"
    ]
    assert not hits
