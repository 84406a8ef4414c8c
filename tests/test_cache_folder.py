"""The folder of caches: which it is, sentences when it cannot be written, and what dead processes leave there."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ulmfit import cache_folder, files
from ulmfit.cache_folder import locked, tidy, writing
from ulmfit.cli import USER_ERROR, main
from ulmfit.data.retry import faults_of
from ulmfit.errors import UserError
from ulmfit.processes import host_mark

ERRORS = {
    errno.ENOSPC: "No space left on device.; free space there, or name another folder by --cache-dir",
    errno.EDQUOT: "exceeded.; free space there",
    errno.EACCES: "Permission denied.; name a folder that you may write to by --cache-dir",
    errno.EROFS: "Read-only file system.; name a folder that you may write to",
    errno.ENOLCK: "No locks available.; its file system refuses locks, so name a folder on another one by --cache-dir",
}


@pytest.mark.parametrize("code", ERRORS)
def test_each_error_is_told_with_its_cure(tmp_path, code):
    with pytest.raises(UserError, match=f"cannot be written to {tmp_path} .*{ERRORS[code]}"), writing(tmp_path):
        raise OSError(code, "whatever")


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock here")])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(cache_folder.filelock.FileLock, "_acquire", fail)
    with pytest.raises(UserError, match=f"{tmp_path}/c .*refuses locks"):
        locked(tmp_path / "c" / "key.lock")


def test_the_folder_is_the_option_the_variable_or_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/people/somebody")
    monkeypatch.setenv("ULMFIT_CACHE", "~/there")
    assert cache_folder.cache_folder("here") == Path("here")
    assert cache_folder.cache_folder() == Path("/people/somebody/there")
    monkeypatch.delenv("ULMFIT_CACHE")
    assert cache_folder.cache_folder() == Path("/people/somebody/.cache/ulmfit")


def test_without_a_home_the_option_is_named(monkeypatch):
    import pwd

    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("ULMFIT_CACHE")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="no home directory.*--cache-dir"):
        cache_folder.cache_folder()
    assert cache_folder.cache_folder("here") == Path("here")


@pytest.mark.parametrize("where", ["tokenizers", "entry"])
def test_a_command_with_an_unwritable_cache_ends_in_one_sentence(tmp_path, monkeypatch, capsys, reviews, where):
    """Root may write anywhere, so a file stands where a folder should."""
    folder = tmp_path / "cache"
    folder.mkdir()
    if where == "tokenizers":
        (folder / "tokenizers").write_text("")
    else:
        real = cache_folder.filelock.FileLock

        def refused(path, **options):
            (folder / "dir").mkdir()
            return real(folder / "dir", **options)  # cannot be opened as a file

        monkeypatch.setattr(cache_folder.filelock, "FileLock", refused)
    words = ["train-lm", "--data", str(reviews), "--preset", "tiny", "--max-steps", "2", "--cache-dir", str(folder)]
    assert main([*words, "--output-dir", str(tmp_path / "run")]) == USER_ERROR
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: the token cache cannot be written to {folder} (") and "--cache-dir" in last
    assert not (tmp_path / "run").exists()


def test_files_of_dead_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(files.__file__).parents[1])!r})
from pathlib import Path
from ulmfit import files
for folder in sys.argv[1:]:
    with files.beside(Path(folder) / "a.json") as aside:
        aside.write_text("half")
        if folder == sys.argv[-1]:
            os.kill(os.getpid(), 9)
        os.rename(aside, aside.with_name(aside.name))
        aside.replace(keep := aside.with_name("kept"))
    keep.replace(aside)
"""
    folders = [tmp_path, tmp_path / "tokenizers", tmp_path / "files"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    assert subprocess.run([sys.executable, "-c", code, *map(str, folders)], timeout=60).returncode == -9
    assert all(len(list(folder.glob(".a.json.tmp-*"))) == 1 for folder in folders)
    with files.beside(tmp_path / "mine") as mine:
        mine.write_text("being written")
        far = tmp_path / ".b.tmp-0123abcd-1-1"  # of another host, whose processes cannot be seen
        old = tmp_path / ".b.tmp-77-77"  # of version 0.2.0
        for path in (far, old, tmp_path / "data.bin"):
            path.write_text("x")
        os.utime(old, (time.time() - 90_000,) * 2)
        assert host_mark() != "0123abcd"
        tidy(tmp_path)
        left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        assert left == sorted([far.name, mine.name, "data.bin"])
        os.utime(far, (time.time() - 90_000,) * 2)
        tidy(tmp_path)
        assert not far.exists()
    tidy(tmp_path / "absent")


def test_builds_that_nobody_goes_on_with_are_removed(tmp_path):
    long_ago = time.time() - cache_folder.ABANDONED - 100
    for name in ("old", "new", "held"):
        folder = tmp_path / f"{name}.partial"
        folder.mkdir()
        (folder / "tokens").write_text("x")
        for path in (folder / "tokens", folder):
            if name != "new":
                os.utime(path, (long_ago, long_ago))
    lock = locked(tmp_path / "held.lock")
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == ["held.partial", "new.partial"]
    lock.release()
    tidy(tmp_path)
    assert [path.name for path in tmp_path.glob("*.partial")] == ["new.partial"]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_everything_in_the_cache_has_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "a.json", "{}")
        locked(tmp_path / "key.lock").release()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("code", "file", "message"),
    [
        (errno.ENOSPC, None, "the cache of datasets cannot be written to .*/hf .No space left on device.; free space"),
        (errno.ENOLCK, None, "the cache of datasets cannot be written to .*/hf .No locks available"),
        (errno.EACCES, "hf/x/lock", "the cache of datasets cannot be written to .*/hf .Permission.*HF_DATASETS_CACHE"),
        (errno.EACCES, "", "the cache of datasets cannot be written to .*/hf .Permission denied"),
        (errno.EACCES, "data/a.csv", "^a.csv cannot be read .*mend the file"),
    ],
)
def test_a_cache_of_datasets_that_cannot_be_written_is_not_the_datas_fault(tmp_path, monkeypatch, code, file, message):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    named = [] if file is None else [str(tmp_path / file)]
    with pytest.raises(UserError, match=message), faults_of("a.csv"):
        raise OSError(code, os.strerror(code), *named)
