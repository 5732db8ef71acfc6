"""Monty: an interpreter of a subset of Python, without files, processes or network, in a worker process of its own.

The worker starts with an empty environment and answers through a pipe that its code cannot reach; the interpreter
bounds time and memory, and the pool kills a worker that overruns. The package moves fast: all of it that is used
stands in this file, with a test of each property.
"""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mhc_jax.rlm import prelude
from mhc_jax.rlm.environments import host
from mhc_jax.rlm.environments.base import GONE, Cell, SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.limits import Limits


def _package() -> Any:
    try:
        import pydantic_monty

        return pydantic_monty
    except ImportError:
        return None


monty = _package()

INSTALL = "install it with: pip install 'pydantic-monty>=1.4,<2'"
# The same instant in every session, and a sleep that takes no time.
FROZEN = {
    "datetime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "sleep": "zero",
}
# Calls of the host and look-ups of names in one session, which is renewed when a half is gone.
SUSPENSIONS = 4 * host.MAX_CALLS
RECURSION = 500
MODULES = (
    "base64 bisect collections copy csv dataclasses datetime decimal functools hashlib itertools json math random re"
    " time typing unicodedata"
)
# What helps, by how an error begins; the first that fits.
HINTS = {
    "ModuleNotFoundError": f"modules that exist: {MODULES}",
    "NotImplementedError": "write it another way: this Python has no yield, del or base classes",
    "NameError: name 'dir'": "SHOW_VARS() gives the variables",
    "NameError: name 'globals'": "SHOW_VARS() gives the variables",
    "NameError: name 'vars'": "SHOW_VARS() gives the variables",
    "NameError": "SHOW_VARS() gives the variables",
    "PermissionError": "there are no files; what there is to read is in the variables, see SHOW_VARS()",
    "MemoryError": "go through the text in parts, see chunk()",
    "TimeoutError": "do less in one cell",
}


class Monty:
    """Code in a worker of Monty; methods as :class:`mhc_jax.rlm.environments.base.Environment` says.

    Args:
        limits: ``cell_timeout``, ``memory_mb`` and ``max_output_chars`` count here.
        binary: program to start as the worker; None for the one that is installed.
        seed: of random numbers.
    """

    name = "monty"

    def __init__(self, limits: Limits = Limits(), binary: Path | None = None, *, seed: int = 0):
        self._limits, self._binary, self._seed = limits, binary, seed
        self._pool: Any = None
        self._session: Any = None
        self._state = b""
        self._names: set[str] = set()
        self._calls = host.Calls({})

    def start(self, names: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names({**names, **functions})
        host.check_data(names)
        self.close()
        self._open(functions)
        self._names = set()
        self.bind(names)

    def bind(self, names: Mapping[str, Any]) -> None:
        host.check_names(names)
        host.check_data(names)
        self._names |= set(names)
        try:
            self._feed(f"{prelude.EMPTY_ANSWER}{self._known()}", inputs=dict(names))
            self._state = self._session.dump()
        except monty.MontyError as error:
            raise SandboxDied(f"the variables do not fit into the sandbox: {error}") from error

    def execute(self, code: str) -> Cell:
        if fault := host.too_long(code):
            return Cell(error=fault)
        if self._session is None:
            raise SandboxDied("the sandbox is closed")
        output = host.Output(self._limits.max_output_chars)
        before, self._names = self._names, self._names | host.assigned(code) - {*self._calls.names, *prelude.NAMES}
        self._calls.begin()
        if self._calls.total > 2 * host.MAX_CALLS:
            self._checkout(self._state)
        answer = error = None
        try:
            answer, error = self._run(code, output)
            self._state = self._session.dump()
        except monty.MontyError as fault:
            self._names = before
            self._checkout(self._state)
            error = f"{self._words(fault)}\n{GONE}"
        except BaseException:  # Ctrl-C: a cell half done
            self._names = before
            self._checkout(self._state)
            raise
        return self._calls.cell(output, error, answer)

    def dump(self) -> bytes:
        return self._state

    def load(self, dump: bytes, functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names(functions)
        self.close()
        self._open(functions, dump)
        self._state = dump
        known = self._feed("_assigned")
        self._names = {name for name in known if type(name) is str} if type(known) is list else set()

    def close(self) -> None:
        self._leave()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def _run(self, code: str, output: host.Output) -> tuple[str | None, str | None]:
        """The answer and the error of a cell; raises MontyError where its session is not to be used any longer."""
        functions = self._functions()
        self._feed(f"{self._known()}{prelude.SOURCE}{prelude.KEEP_ANSWER}", inputs=functions)
        error = None
        try:
            output.write(host.shown(self._feed(code, functions=functions, output=output)))
        except monty.MontyError as fault:
            if _spoils(fault):
                raise
            error = self._words(fault)
        try:
            answer = self._feed(prelude.ANSWERED)
        except monty.MontyError as fault:
            if _spoils(fault):
                raise
            return None, error or prelude.ANSWER_LOST
        return (answer if type(answer) is str else None), error

    def _open(self, functions: Mapping[str, Callable[..., Any]], dump: bytes | None = None) -> None:
        if monty is None:
            raise SandboxUnavailable(f"code of a model runs in Monty, which is not installed; {INSTALL}")
        self._calls = host.Calls(functions)
        try:
            self._pool = monty.Monty(binary_path=self._binary, min_processes=1, max_processes=1).__enter__()
            self._checkout()
        except (OSError, RuntimeError, monty.MontyError) as error:
            self.close()
            raise SandboxUnavailable(f"Monty does not start: {error}; {INSTALL}") from error
        if dump is not None:
            self._checkout(dump)

    def _checkout(self, state: bytes | None = None) -> None:
        """A new session in the pool, with the variables of a dump."""
        self._leave()
        limits = {
            "max_feed_duration_secs": self._limits.cell_timeout,
            "max_memory": self._limits.memory_mb << 20,
            "max_recursion_depth": RECURSION,
            "max_suspensions": SUSPENSIONS,
        }
        try:
            session = self._pool.checkout(limits=limits, os_policy=FROZEN | {"random_start": {"seed": self._seed}})
            self._session = session.__enter__()
            if state is not None:
                self._session.load_session(state)
        except (OSError, RuntimeError, monty.MontyError) as error:
            self._leave()
            raise SandboxDied(f"the sandbox does not load its last state: {error}") from error
        self._calls.total = 0

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(None, None, None)

    def _feed(self, code: str, *, inputs: Any = None, functions: Any = None, output: host.Output | None = None) -> Any:
        """The value of the last expression of ``code``."""

        def write(_stream: str, text: str) -> None:
            try:
                if output is not None:
                    output.write(text)
            except BaseException as fault:  # the same
                self._calls.fault = fault
                raise

        return self._session.feed_run(code, inputs=inputs, external_lookup=functions, print_callback=write)

    def _functions(self) -> dict[str, Callable[..., Any]]:
        """The functions of the host under their own names, by which Monty calls them."""

        def bridge(name: str) -> Callable[..., Any]:
            def function(*args: Any, **kwargs: Any) -> Any:
                try:
                    return self._calls.call(name, args, kwargs)
                except host.Ended as end:
                    raise SystemExit(str(end)) from None
                except ToolError as error:
                    raise RuntimeError(str(error)[: host.MAX_ERROR]) from None
                except BaseException as fault:  # Ctrl-C between the lines above, which Monty would hand to the code
                    self._calls.fault = fault
                    raise SystemExit("stopped by the host") from None

            function.__name__ = function.__qualname__ = name
            return function

        return {name: bridge(name) for name in self._calls.names}

    def _known(self) -> str:
        return f"_assigned = {sorted(self._names)}\n"

    def _words(self, fault: Any) -> str:
        """An error as the model is told it: message, lines of its own code, advice."""
        if isinstance(fault, monty.MontyCrashedError):
            return "The sandbox ended: one step took too much time or memory"
        message = f"{type(fault.exception()).__name__}: {fault.exception()}"[: host.MAX_ERROR]
        if message.startswith("TimeoutError: feed time limit"):
            message = f"TimeoutError: the cell ran for longer than {self._limits.cell_timeout:g} s"
        elif message.startswith(("MemoryError: memory limit", "MemoryError: the worker exceeded")):
            message = f"MemoryError: the cell took more than {self._limits.memory_mb} MiB"
        frames = fault.traceback()
        lines = [f"  line {f.line}: {f.source_line}"[:200] for f in frames if f.filename == frames[0].filename]
        hint = next((f"Hint: {hint}" for start, hint in HINTS.items() if message.startswith(start)), None)
        return "\n".join([message, *lines[-5:], *([hint] if hint else [])])


def _spoils(fault: Any) -> bool:
    """Whether a session is to be left after it: the worker is gone, or a limit has cut it short at any place."""
    cut = isinstance(fault.exception(), TimeoutError | MemoryError) or "suspension limit" in str(fault)
    return isinstance(fault, monty.MontyCrashedError) or cut
