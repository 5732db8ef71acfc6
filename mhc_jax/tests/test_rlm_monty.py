"""Monty: what it has, what it lacks, and that nothing runs without it."""

import shutil
import tempfile
from unittest import mock

import pytest

from mhc_jax.rlm import environments
from mhc_jax.rlm.environments import SandboxDied, SandboxUnavailable, bwrap, host, monty
from mhc_jax.tests.sandboxes import need_bwrap


def opened():
    environment = environments.make("monty")
    environment.start({"context": "text"}, {"llm_query": lambda prompt: f"reply to {prompt}"})
    return environment


def test_monty_that_is_not_installed_runs_nothing(monkeypatch):
    monkeypatch.setattr(monty, "monty", None)
    with pytest.raises(SandboxUnavailable, match=r"pip install 'pydantic-monty"):
        opened()


def test_monty_that_does_not_start_runs_nothing(tmp_path):
    environment = monty.Monty(binary=tmp_path / "missing")
    with pytest.raises(SandboxUnavailable, match="does not start"):
        environment.start({}, {})
    with pytest.raises(SandboxDied, match="closed"):
        environment.execute("1")


def test_no_session_is_without_limits():
    """Of the package's own limits, none bounds time or memory unless it is told to."""
    environment = opened()
    asked = []
    pool = environment._pool
    environment._pool = mock.Mock(checkout=lambda **options: asked.append(options) or pool.checkout(**options))
    assert "before it" in environment.execute("'a' * 10 ** 10").error  # renews the session
    environment._pool = pool
    environment.close()
    (limits,) = [options["limits"] for options in asked]
    assert set(limits) == {"max_feed_duration_secs", "max_memory", "max_recursion_depth", "max_suspensions"}
    assert all(limits.values())


def test_a_session_that_cannot_be_renewed_is_dead():
    environment = opened()
    pool = environment._pool
    environment._pool = mock.Mock(checkout=mock.Mock(side_effect=RuntimeError("no worker starts")))
    with pytest.raises(SandboxDied, match="no worker starts"):
        environment.execute("'a' * 10 ** 10")
    with pytest.raises(SandboxDied, match="closed"):
        environment.execute("1")
    environment._pool = pool
    environment.close()


def test_bubblewrap_around_monty_that_does_not_start(monkeypatch, tmp_path):
    need_bwrap()
    monkeypatch.setattr(bwrap, "WALLS", ["--no-such-flag"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="under bubblewrap, Monty does not start: .* needs no privileges"):
        environments.make("monty+bwrap").start({}, {})
    assert not [*tmp_path.iterdir()]


def test_bubblewrap_around_monty_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="needs bubblewrap.* install it with"):
        environments.make("monty+bwrap").start({}, {})


def test_every_module_that_the_hint_names_exists():
    environment = opened()
    for name in monty.MODULES.split():
        assert environment.execute(f"import {name}").error is None, name
    assert monty.MODULES in environment.execute("import numpy").error
    environment.close()


def test_constructs_that_monty_lacks_are_named():
    environment = opened()
    for code, word in (("def g():\n    yield 1", "yield"), ("x = 1\ndel x", "del"), ("class A(dict): pass", "class")):
        error = environment.execute(code).error
        assert word in error
        assert "Hint: write it another way" in error
    environment.close()


def test_more_calls_than_a_session_has_do_not_end_it(monkeypatch):
    monkeypatch.setattr(host, "MAX_CALLS", 20)
    monkeypatch.setattr(monty, "SUSPENSIONS", 80)
    environment = opened()
    for i in range(12):
        assert environment.execute(f"for i in range(15): llm_query('q')\nx = {i}").error is None
    assert environment.execute("x").stdout == "11\n"
    cell = environment.execute("for i in range(100): llm_query('q')")
    assert "more than 20 calls of the host in one cell" in cell.error
    cell = environment.execute("y = 1\nwhile True:\n    try:\n        llm_query('q')\n    except:\n        pass")
    assert "before it" in cell.error
    assert environment.execute("x").stdout == "11\n"
    environment.close()
