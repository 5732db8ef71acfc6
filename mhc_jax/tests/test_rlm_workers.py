"""The processes behind environments: several at once, interrupted, killed, closed."""

import os
import signal
import threading
import time

import psutil
import pytest

from mhc_jax.rlm import environments
from mhc_jax.rlm.limits import Limits
from mhc_jax.tests.sandboxes import need_bwrap


@pytest.fixture(params=["monty", "monty+bwrap", "bwrap"])
def kind(request):
    if "bwrap" in request.param:
        need_bwrap()
    return request.param


def opened(kind, names, seconds=10.0, **functions):
    environment = environments.make(kind, Limits(cell_timeout=seconds))
    environment.start(names, functions)
    return environment


def gone(processes):
    """Whether they all end within ten seconds; those that no parent has taken note of count."""
    deadline = time.monotonic() + 10
    while (left := [*filter(alive, processes)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left


def alive(process):
    """Whether it runs, not whether its parent has taken note that it does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_session_within_a_call_and_several_at_once(kind):
    def inner(text):
        child = opened(kind, {"context": text})
        try:
            return child.execute("FINAL(context.upper())").answer
        finally:
            child.close()

    outer = opened(kind, {"context": ""}, rlm_query=inner)
    assert outer.execute("rlm_query('abc')").stdout == "ABC\n"
    outer.close()
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(inner(f"t{i}"))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["T0", "T1", "T2"]


def test_ctrl_c_in_a_cell_reaches_the_host_and_leaves_the_variables_from_before(kind):
    environment = opened(kind, {"context": "text"}, seconds=0.5)
    environment.execute("x = 1")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        environment.execute("x = 2\nwhile True: pass")
    assert environment.execute("x").stdout == "1\n"
    environment.close()


def test_a_worker_that_is_killed_is_replaced(kind):
    before = set(psutil.Process().children())
    environment = opened(kind, {"context": "text"})
    environment.execute("x = 41")
    (worker,) = set(psutil.Process().children()) - before
    inside = worker.children(recursive=True)
    worker.kill()
    worker.wait()
    assert gone(inside)
    cell = environment.execute("x + 1")
    assert "The sandbox ended" in cell.error
    assert environment.execute("x + 1").stdout == "42\n"
    environment.close()


def test_no_process_is_left(kind):
    before = set(psutil.Process().children(recursive=True))
    environment = opened(kind, {"context": "text"})
    environment.execute("x = 1")
    started = set(psutil.Process().children(recursive=True)) - before
    environment.close()
    assert started
    assert gone(started)
