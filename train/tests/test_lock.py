"""The lock on a run's folder: one writer at a time, and none left behind by a process that is gone."""

import signal
import subprocess
import sys

import pytest

from mhc_jax.config import ConfigError
from train.loop.resolve import run_folder
from train.loop.run import run
from train.storage import lock
from train.tests.runs import tiny_run

HOLDER = """
import pathlib, sys, time
from train.storage import lock
held = lock.take(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder):
    """A process that holds the lock, and its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_writer_is_refused_by_name_until_the_first_is_gone(tmp_path):
    with holder(tmp_path) as first:
        try:
            for attempt in (lock.take, lock.refuse_held):
                with pytest.raises(
                    ConfigError, match=f"is being written by process {first.pid} on .*another --run-dir"
                ):
                    attempt(tmp_path)
        finally:
            first.send_signal(signal.SIGKILL)
    lock.refuse_held(tmp_path)
    with lock.take(tmp_path), pytest.raises(ConfigError, match="is being written by process"):
        lock.take(tmp_path)
    lock.take(tmp_path).close()


def test_looking_leaves_nothing_behind(tmp_path):
    lock.refuse_held(tmp_path / "run")
    lock.refuse_held(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_folder_that_is_written_to_is_refused_and_changes_nothing(tmp_path):
    config = tiny_run(tmp_path)
    folder = run_folder(config)
    folder.mkdir()
    with lock.take(folder), pytest.raises(ConfigError, match="is being written by process"):
        run(config)
    assert [path.name for path in folder.iterdir()] == [lock.NAME]


def test_of_two_that_start_at_once_in_one_new_folder_one_wins(tmp_path, monkeypatch):
    """Both have found the folder free; the other one claims it, and is done, before this one does."""
    config = tiny_run(tmp_path)
    folder = run_folder(config)
    theirs = config.replace(name="the other's").to_json()

    def overtaken(path):
        monkeypatch.undo()
        (folder / "config.json").write_text(theirs)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        return lock.take(path)

    monkeypatch.setattr(lock, "take", overtaken)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(config)
    assert (folder / "config.json").read_text() == theirs
    lock.refuse_held(folder)


def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch, capsys):
    def refuse(file, kind):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    lock.take(tmp_path).close()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "cannot be locked (No locks available)" in warning
