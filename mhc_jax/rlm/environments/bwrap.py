"""bubblewrap: full CPython in namespaces of its own, behind a filter of system calls and bounds of the process.

What holds code back: namespaces without network, processes or files of the host, and none that could be written; no
capabilities; an empty environment; an allow list of system calls; bounds of memory and time. Before the first cell six
attempts to break out are made inside, and one that succeeds refuses the environment. Code shares its process with the
program that answers, so that every message from there is taken for the code's own: texts of bounded size, of which
nothing is unpickled.
"""

import base64
import json
import os
import pickle
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mhc_jax.rlm import prelude
from mhc_jax.rlm.environments import host, monty, seccomp
from mhc_jax.rlm.environments.base import GONE, Cell, SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.limits import Limits

OTHERWISE = "the default environment, monty, needs no privileges"
INSTALL = f"install it with: apt install bubblewrap (or the like); {OTHERWISE}"
WORKER = Path(__file__).with_name("worker.py")
INSTANT = monty.FROZEN["datetime"].timestamp()
# Seconds for a start, and for variables to go in or out.
START_S = 20.0
# Bytes of the interpreter itself.
INTERPRETER = 64 << 20
VARIABLES = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8", "PWD": "/"}
# Namespaces of its own, and of the host's files the shared libraries.
WALLS = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv"),
    *(
        word
        for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
        for word in ("--ro-bind-try", path, path)
    ),
)
HINTS = {
    "ModuleNotFoundError": "the standard library is there and nothing else",
    "NameError": "SHOW_VARS() gives the variables",
    "FileNotFoundError": "there are no files; what there is to read is in the variables, see SHOW_VARS()",
    "PermissionError": "files, processes and the network are closed; use the variables, see SHOW_VARS()",
    "RuntimeError: can't start new thread": "there are no threads; llm_query_batched asks in parallel",
    "MemoryError": "go through the text in parts, see chunk()",
}


class _Failed(Exception):
    """The end of a worker, or of the time that it was given."""


class Bwrap:
    """Code in CPython under bubblewrap; methods as :class:`mhc_jax.rlm.environments.base.Environment` says.

    After a limit functions and data are as before the cell; what cannot be pickled, as an open file, is lost.

    Args:
        limits: ``cell_timeout``, ``memory_mb`` and ``max_output_chars`` count here.
        seed: of random numbers.
    """

    name = "bwrap"
    variables: Mapping[str, str] = {}  # of bubblewrap itself, whose memory code might read

    def __init__(self, limits: Limits = Limits(), *, seed: int = 0):
        self._limits, self._seed = limits, seed
        self._process: Any = None
        self._open = False
        self._received, self._cell = bytearray(), 0
        self._given: dict[str, Any] = {}
        self._names: set[str] = set()
        self._state = b""
        self._calls = host.Calls({})

    def start(self, names: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names({**names, **functions})
        host.check_data(names)
        self.close()
        self._calls = host.Calls(functions)
        self._given, self._names, self._state = {}, set(), b""
        self._spawn()
        self.bind(names)

    def bind(self, names: Mapping[str, Any]) -> None:
        host.check_names(names)
        host.check_data(names)
        self._given |= names
        self._names |= set(names)
        try:
            self._ask("bind", dict(names), prelude.EMPTY_ANSWER)
            self._save()
        except _Failed as error:
            raise SandboxDied(f"the variables do not fit into the sandbox: {error}") from error

    def execute(self, code: str) -> Cell:
        if fault := host.too_long(code):
            return Cell(error=fault)
        self._check_open()
        output = host.Output(self._limits.max_output_chars)
        before, self._names = self._names, self._names | host.assigned(code) - {*self._calls.names, *prelude.NAMES}
        self._calls.begin()
        answer = error = None
        try:
            if self._process is None:
                self._restore()
            error, answer = self._run(code, output)
            self._save()
        except _Failed as failed:
            self._names = before
            self._restore()
            error = f"{failed}\n{GONE}"
        except BaseException:  # a cell half done; the next one begins with the state from before
            self._names = before
            self._kill()
            raise
        return self._calls.cell(output, error, answer)

    def dump(self) -> bytes:
        self._check_open()
        try:
            state = "".join(self._ask("state", True)[:1])
        except _Failed as error:
            raise SandboxDied(f"the sandbox is gone: {error}") from error
        return json.dumps({"names": sorted(self._names), "state": state}).encode()

    def load(self, dump: bytes, functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names(functions)
        self.close()
        try:
            kept = json.loads(dump)
            self._names, self._state = set(kept["names"]), base64.b64decode(kept["state"], validate=True)
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxDied(f"the sandbox does not load its last state: {error}") from error
        self._calls, self._given = host.Calls(functions), {}
        self._spawn()
        self._restore()

    def close(self) -> None:
        self._kill()
        self._open = False

    def _run(self, code: str, output: host.Output) -> tuple[str | None, str | None]:
        """The error and the answer of a cell."""
        before = f"_assigned = {sorted(self._names)}\n{prelude.SOURCE}{prelude.KEEP_ANSWER}"
        after = (prelude.ANSWERED, prelude.ANSWER_LOST)
        deadline = time.monotonic() + self._limits.cell_timeout
        self._send("run", code, before, after, self._calls.names, HINTS, deadline=deadline)
        while True:
            kind, *texts = self._receive(deadline)
            if kind == "out":
                output.write("".join(texts))
            elif kind == "call":
                begun = time.monotonic()
                reply = self._reply(*texts[:2])
                deadline += time.monotonic() - begun
                self._send(*reply, deadline=deadline, new=False)
            elif kind == "done":
                error, answer, *_ = [*(text[: host.MAX_CHARS] for text in texts), None, None]
                error = error[: host.MAX_ERROR] if error and self._calls.answer is None else None
                if error and error.startswith("MemoryError"):
                    raise _Failed(error)
                return error, answer

    def _reply(self, name: str = "", arguments: str = "") -> tuple[str, Any]:
        """What a function of the host has to say to a call, of which every word may be made up."""
        try:
            args, kwargs = json.loads(arguments)
            if type(args) is not list or type(kwargs) is not dict:
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            return "error", "that is no call of a function"
        try:
            return "value", self._calls.call(name, args, kwargs)
        except ToolError as error:
            return "error", str(error)[: host.MAX_ERROR]
        except host.Ended as end:
            return "end", str(end)

    def _save(self) -> None:
        """Takes the state that a later cell falls back to; an empty one is that of before."""
        state = "".join(self._ask("state", False)[:1])
        try:
            self._state = base64.b64decode(state, validate=True) if state else self._state
        except ValueError as error:
            raise _Failed("the sandbox gave no state") from error

    def _restore(self) -> None:
        """A new worker with the last state."""
        try:
            self._spawn()
            self._ask("bind", self._given, prelude.EMPTY_ANSWER)
            self._ask("restore", self._state)
        except (SandboxUnavailable, _Failed) as error:
            self.close()
            raise SandboxDied(f"the sandbox does not load its last state: {error}") from error

    def _spawn(self) -> None:
        """Starts the worker, and lets it try to break out.

        Raises:
            SandboxUnavailable: it does not start, or does not hold.
        """
        self._kill()
        if not seccomp.supported() or not (program := shutil.which("bwrap")):
            raise SandboxUnavailable(f"bwrap runs on Linux with bubblewrap, and is not to be had here; {INSTALL}")
        try:
            self._process = subprocess.Popen(
                [program, *self._arguments()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=self.variables, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxUnavailable(f"bwrap does not start: {error}; {INSTALL}") from error
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._open = True
        with tempfile.NamedTemporaryFile() as secret:
            settings = {
                "instant": INSTANT,
                "seed": self._seed,
                "program": self._filter(),
                "memory": (self._limits.memory_mb << 20) + INTERPRETER,
                "secret": secret.name,
                "variables": list(VARIABLES),
                "calls": seccomp.forbidden(),
            }
            try:
                managed = self._ask(settings)
            except _Failed as error:
                said = (self._process.stderr.read(2000) or b"").decode(errors="replace").strip()
                self.close()
                raise SandboxUnavailable(f"bwrap does not start: {said or error}; {OTHERWISE}") from error
        self._judge(managed)

    def _judge(self, managed: list[str]) -> None:
        """Refuses a sandbox from which an attempt to break out has managed to."""
        if managed:
            self.close()
            raise SandboxUnavailable(f"bwrap does not hold here, its code can {', '.join(managed)}; {OTHERWISE}")

    def _filter(self) -> bytes:
        return seccomp.program()

    def _arguments(self) -> list[str]:
        """Of the command bwrap: namespaces, folders and variables of the worker."""
        python = Path(sys._base_executable).resolve()
        library = Path(sys.base_prefix, sys.platlibdir, f"python{sys.version_info.major}.{sys.version_info.minor}")
        home = f"{sys.base_prefix}/{sys.platlibdir}"
        return [
            *WALLS,
            *(word for name, value in VARIABLES.items() for word in ("--setenv", name, value)),
            *("--ro-bind-try", home, home),
            *("--ro-bind", str(python), str(python), "--ro-bind", str(WORKER), "/worker.py"),
            *(["--tmpfs", f"{library}/site-packages"] if (library / "site-packages").is_dir() else []),
            *("--chdir", "/", "--remount-ro", "/"),
            *("--", str(python), "-sSP", "/worker.py"),
        ]

    def _ask(self, *message: Any) -> list[str]:
        """What the worker answers to a message."""
        deadline = time.monotonic() + START_S
        self._send(*message, deadline=deadline)
        return self._receive(deadline)[1:]

    def _send(self, *message: Any, deadline: float, new: bool = True) -> None:
        """Writes a message; a new one has a number that its answers repeat, so that what came late is told apart."""
        if new:
            self._cell += 1
            message = (str(self._cell), *message)
        body = pickle.dumps(message)
        left = memoryview(struct.pack(">I", len(body)) + body)
        while left:
            self._wait("stdin", select.POLLOUT, deadline)
            try:
                left = left[os.write(self._pipe("stdin"), left) :]
            except OSError as error:
                raise _Failed("The sandbox ended") from error

    def _receive(self, deadline: float) -> list[str]:
        """The next message that belongs to the present one of the host, without its number."""
        while True:
            parts = self._message(deadline)
            if len(parts) >= 2 and parts[1] == str(self._cell):
                return [parts[0], *parts[2:]]

    def _message(self, deadline: float) -> list[str]:
        (size,) = struct.unpack(">I", self._bytes(4, deadline))
        if size > self._limits.memory_mb << 21:
            raise _Failed("The sandbox ended: a message is too large")
        try:
            parts = json.loads(self._bytes(size, deadline).decode(errors="replace"))
        except (ValueError, RecursionError):
            parts = None
        if type(parts) is not list or any(type(part) is not str for part in parts):
            raise _Failed("The sandbox ended: what it sent is no message")
        return [part.encode(errors="replace").decode() for part in parts]  # no lone surrogates

    def _bytes(self, count: int, deadline: float) -> bytes:
        self._check_time(deadline)
        while len(self._received) < count:
            self._wait("stdout", select.POLLIN, deadline)
            more = os.read(self._pipe("stdout"), 1 << 20)
            if not more:
                raise _Failed("The sandbox ended")
            self._received += more
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _wait(self, pipe: str, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._pipe(pipe), event)
        while not poll.poll(max(0, 1000 * (deadline - time.monotonic()))):
            self._check_time(deadline)

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            spent = f"TimeoutError: the cell ran for longer than {self._limits.cell_timeout:g} s"
            raise _Failed(f"{spent}\nHint: do less in one cell")

    def _pipe(self, name: str) -> int:
        if self._process is None:
            raise _Failed("The sandbox ended")
        return getattr(self._process, name).fileno()

    def _check_open(self) -> None:
        if not self._open:
            raise SandboxDied("the sandbox is closed")

    def _kill(self) -> None:
        process, self._process = self._process, None
        self._received.clear()
        if process is not None:
            process.kill()  # and the kernel all that it holds
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()
