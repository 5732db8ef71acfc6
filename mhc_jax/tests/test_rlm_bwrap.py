"""bubblewrap: what it refuses, and that nothing runs where it is refused."""

import ast
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mhc_jax.rlm import Limits, environments
from mhc_jax.rlm.environments import SandboxDied, SandboxUnavailable, bwrap, host, seccomp
from mhc_jax.rlm.environments.base import LOST
from mhc_jax.rlm.environments.escape import ATTEMPTS
from mhc_jax.tests.sandboxes import need_bwrap


def test_bwrap_that_is_not_installed_runs_nothing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(SandboxUnavailable, match="install it with: .* monty"):
        environments.make("bwrap").start({}, {})


def test_bwrap_on_an_unknown_machine_runs_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="not to be had here"):
        environments.make("bwrap").start({}, {})


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("_filter", b"", "can open a socket, start a process, make system calls"),
        ("_arguments", ["--no-such-flag"], "does not start: .*no-such-flag"),
        ("_arguments", ["--ro-bind", "/", "/", "--", sys.executable, "-sSP", str(bwrap.WORKER)], "can read files"),
    ],
)
def test_bwrap_that_does_not_hold_is_refused(monkeypatch, method, value, words):
    need_bwrap()
    monkeypatch.setattr(bwrap.Bwrap, method, lambda self: value)
    environment = environments.make("bwrap")
    with pytest.raises(SandboxUnavailable, match=words):
        environment.start({}, {})
    with pytest.raises(SandboxDied, match="closed"):
        environment.execute("1")


def test_a_long_context_and_its_parts_take_little_memory():
    need_bwrap()
    environment = environments.make("bwrap")
    environment.start({"context": "0123456789" * 1_000_000}, {})
    assert environment.execute("parts = chunk(10_000)").error is None
    workers = psutil.Process(environment._process.pid).children(recursive=True)
    told = [Path(f"/proc/{worker.pid}/status").read_text(encoding="utf-8") for worker in workers]
    environment.close()
    assert max(int(status.split("VmHWM:", 1)[1].split()[0]) for status in told) < 80 << 10  # KiB


def test_objects_are_printed_and_ordered_the_same_twice():
    need_bwrap()
    texts = []
    for _ in range(2):
        environment = environments.make("bwrap")
        environment.start({}, {})
        texts.append(environment.execute("class A: pass\nprint({A() for i in range(20)})").stdout)
        environment.close()
    assert " object at 0x" in texts[0]
    assert texts[0] == texts[1]


def test_variables_that_take_for_ever_to_load_are_dropped(monkeypatch):
    need_bwrap()
    monkeypatch.setattr(bwrap, "SAVE_S", 0.3)
    environment = environments.make("bwrap", Limits(cell_timeout=0.3))
    environment.start({"context": "text"}, {})
    environment.execute("class A:\n    def __reduce__(self): return eval, ('sum(iter(int, 1))',)\na, b = A(), 1")
    assert environment.execute("while True: pass").error.endswith(LOST)
    assert environment.execute("print(context, SHOW_VARS())").stdout == "text {'context': 'str'}\n"
    environment.close()


@pytest.mark.parametrize("size", [host.MAX_BYTES + 1, 6, 400])
def test_a_message_that_is_none_is_not_read_on(size):
    environment = environments.make("bwrap", Limits(memory_mb=4096))
    environment._received += bwrap.LENGTH.pack(size) + bytes(400)
    with pytest.raises(bwrap._Failed, match="a message is too large" if size > 400 else "no message"):
        environment._message(float("inf"), host.MAX_BYTES)


def test_a_filter_for_both_machines(monkeypatch):
    """Every jump of the program stays within it, and it ends by refusing."""
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        steps = list(struct.iter_unpack("=HBBI", seccomp.program()))
        assert all(at + 1 + max(yes, no) < len(steps) for at, (code, yes, no, _) in enumerate(steps) if code & 7 == 5)
        assert steps[-1] == (0x06, 0, 0, 0x00050001)
        assert not {number for code, *_, number in steps if code == 0x15} & set(seccomp.forbidden().values())


def test_the_page_on_sandboxes_has_the_numbers():
    page = Path(environments.__file__).parents[3] / "docs" / "rlm_sandbox.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"allow list of {len(seccomp._ALLOWED)} system calls" in text
    others = len(ATTEMPTS) - len(seccomp.forbidden())
    assert f"runs {others + len(seccomp._FORBIDDEN)} attempts" in text


def test_nothing_of_a_model_is_executed_in_this_process():
    """No builtin that runs code is called outside of what runs inside a sandbox, which nothing imports."""
    folder = Path(environments.__file__).parents[1]
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if path != bwrap.WORKER:
            assert not {"exec", "eval", "compile", "__import__"} & names, path
            assert not re.search(
                r"pickle\.loads?\b|marshal|runpy|\bcode\.Interactive", path.read_text(encoding="utf-8")
            ), path
        assert "environments.worker" not in path.read_text(encoding="utf-8")
