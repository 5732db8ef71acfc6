"""The escape corpus: nothing of it gets out of an environment that is offered."""

import os
import socket
from pathlib import Path

import pytest

from mhc_jax.rlm import environments
from mhc_jax.rlm.environments import Cell, __main__, escape
from mhc_jax.rlm.environments.__main__ import Bare
from mhc_jax.rlm.environments.escape import ATTEMPTS, Arena, Attempt
from mhc_jax.tests.sandboxes import need_bwrap

# What bubblewrap alone does not stop: what the empty environment, and the filter of system calls, are for.
OUT_OF_BARE = ("read the environment of the host", "leave a daemon behind", "run a program", "system call unshare")


@pytest.fixture(scope="module")
def arena():
    with Arena() as arena:
        yield arena


@pytest.mark.parametrize("kind", ["monty", "bwrap"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_nothing_gets_out(arena, attempt, kind):
    if kind == "bwrap":
        need_bwrap()
    held, words = arena.run(attempt, lambda limits: environments.make(kind, limits))
    assert held, words


@pytest.mark.parametrize("name", OUT_OF_BARE)
def test_what_the_layers_beside_bubblewrap_are_for(arena, name):
    need_bwrap()
    (attempt,) = [attempt for attempt in ATTEMPTS if attempt.name == name]
    held, _ = arena.run(attempt, Bare)
    assert not held


class Open:
    """An environment that does what its cell says, without a sandbox: the harm is written here, not in the cell."""

    def __init__(self, harm):
        self.harm = harm
        self.cells = 0

    def start(self, names, functions):
        self.functions = functions

    def execute(self, code):
        self.cells += 1
        return self.harm(self) if self.cells == 1 else Cell("2\n")

    def dump(self):
        return b""

    def close(self):
        pass


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda arena, _: Cell(Path(arena.secret).read_text()), "a secret"),
        (lambda arena, _: Cell(error=os.environ[arena.variable]), "a secret"),
        (lambda arena, _: Cell(answer=str(os.listdir(arena.folder))), "a secret"),
        (lambda arena, _: (Path(arena.target).write_text("x"), Cell())[1], "a file was written"),
        (lambda arena, _: (socket.create_connection(("127.0.0.1", arena.port)).close(), Cell())[1], "a connection"),
        (lambda arena, _: Cell("ESCAPED"), "it was done"),
        (lambda arena, _: Cell("x" * 10**6), "kept all"),
        (lambda arena, open_: ([open_.functions["llm_query"]("x") for _ in range(3000)], Cell())[1], "answered 3000"),
        (lambda arena, open_: (setattr(open_, "execute", lambda code: Cell("stale")), Cell())[1], "does not go on"),
    ],
)
def test_harm_is_noticed(arena, harm, words):
    held, said = arena.run(Attempt("harm", ""), lambda limits: Open(lambda open_: harm(arena, open_)))
    assert not held
    assert words in said


def test_the_command_shows_whole_reasons_and_what_it_is_about(monkeypatch, capsys):
    monkeypatch.setattr(__main__, "ATTEMPTS", [Attempt("a long reason", "raise ValueError('so ' * 40 + 'end')")])
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit, match="^0$"):
        __main__.main(["monty"])
    out, err = capsys.readouterr()
    assert err.startswith("1 attempts in each of monty; up to 20 s each")
    assert "so end" in out
    assert max(map(len, out.splitlines())) <= 60
    with pytest.raises(SystemExit, match="^2$"):
        __main__.main(["mony"])
    assert "unknown environment 'mony'; did you mean 'monty'?" in capsys.readouterr().err


def test_a_process_that_ends_and_a_cell_that_takes_too_long_are_noticed(monkeypatch):
    monkeypatch.setattr(escape, "GRACE_S", -100.0)
    with Arena() as arena:
        held, said = arena.run(
            Attempt("harm", ""), lambda limits: Open(lambda _: (os.kill(arena.victim, 9), Cell())[1])
        )
        arena._process.wait()
        assert "waited" in said
        assert "has ended" in ", ".join(arena._reached(Cell()))
    assert not held
