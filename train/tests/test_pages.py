"""Commands that start anew with large pages of memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.terminal import loading

MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def started(monkeypatch):
    """What would be started instead of this process."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.delenv(loading.TUNABLES, raising=False)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "always [madvise] never\n")
    return calls


def test_the_same_command_is_started_with_the_variable_set(started):
    loading._use_huge_pages()
    assert started == [(sys.executable, sys.orig_argv)]
    assert os.environ[loading.TUNABLES] == loading.HUGE_PAGES


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=1"])
def test_what_the_user_has_set_stays(started, monkeypatch, value):
    monkeypatch.setenv(loading.TUNABLES, value)
    loading._use_huge_pages()
    assert (started, os.environ[loading.TUNABLES]) == ([], value)


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2", "", None])
def test_other_libraries_are_left_alone(started, monkeypatch, version):
    monkeypatch.setattr(os, "confstr", lambda name: version)
    loading._use_huge_pages()
    assert not started


def test_so_are_systems_without_large_pages(started, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "always madvise [never]\n")
    loading._use_huge_pages()
    assert not started

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    loading._use_huge_pages()
    assert not started


def test_small_pages_are_better_than_no_command(started, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "execv", refused)
    loading._use_huge_pages()


def test_a_command_starts_once_more_and_not_again(tmp_path):
    (tmp_path / "told.py").write_text(f"import os\nprint('has', os.environ.get('{loading.TUNABLES}'), os.getpid())\n")
    environment = {key: value for key, value in os.environ.items() if key != loading.TUNABLES}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "train.inspect", "--import", "told", "--help"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=120)
    expected = loading.HUGE_PAGES if loading._has_huge_pages() else None
    assert out.splitlines()[0] == f"has {expected} {process.pid}"
    assert process.returncode == 0
