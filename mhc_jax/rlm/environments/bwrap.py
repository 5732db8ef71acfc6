"""bubblewrap: full CPython in namespaces of its own, behind a filter of system calls and bounds of the process.

What holds code back: namespaces without network, processes or files of the host, and none that could be written; no
capabilities; an empty environment; an allow list of system calls; bounds of memory and time. Before the first cell six
attempts to break out are made inside, and one that succeeds refuses the environment. Code shares its process with the
program that answers, so that every message from there is taken for the code's own: a few parts of bounded size, of
which nothing is unpickled.
"""

import base64
import json
import os
import pickle
import platform
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
from mhc_jax.rlm.environments.base import GONE, LOST, Cell, SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.limits import Limits

OTHERWISE = "the default environment, monty, needs no privileges"
INSTALL = f"install it with: apt install bubblewrap (or the like); {OTHERWISE}"
WORKER = Path(__file__).with_name("worker.py")
INSTANT = monty.FROZEN["datetime"].timestamp()
# Seconds for a start, and for what the host gives to go in.
START_S = 20.0
# Seconds beyond those of a cell for its variables, whose own code runs then, to be saved or loaded.
SAVE_S = 2.0
# Parts of a message, and how a length is written.
PARTS = 16
LENGTH = struct.Struct(">I")
# Bytes of the interpreter itself.
INTERPRETER = 64 << 20
VARIABLES = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8", "PWD": "/"}
_BY_MACHINE = f"/usr/lib/{platform.machine()}-linux-gnu"
# Where the host has its shared libraries: in folders of the machine's, beside which other things lie, or in /usr/lib.
SHARED = (
    *("/usr/lib64", "/lib64", "/lib/ld-linux-aarch64.so.1"),
    *((_BY_MACHINE, _BY_MACHINE.removeprefix("/usr")) if os.path.isdir(_BY_MACHINE) else ("/usr/lib", "/lib")),
)
# Folders of packages that may lie there.
PACKAGES = ("python*", "node_modules")
# Namespaces of its own, and of the host's files the shared libraries.
WALLS = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv"),
    *(word for path in (*SHARED, "/etc/ld.so.cache") for word in ("--ro-bind-try", path, path)),
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


class _Late(_Failed):
    """The end of the time."""


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
        self._first: tuple[bytes, set[str]] = b"", set()  # what is loaded where a later state cannot be
        self._calls = host.Calls({})

    def start(self, names: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names({**names, **functions})
        host.check_data(names)
        self.close()
        self._calls = host.Calls(functions)
        self._given, self._names, self._state = {}, set(), b""
        self._spawn()
        self.bind(names)
        self._first = self._state, set(names)

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
            if self._process is None and not self._restore():
                return Cell(error=LOST)
            error, answer = self._run(code, output)
            self._save()
        except _Failed as failed:
            self._names = before
            error = f"{failed}\n{GONE if self._restore() else LOST}"
        except BaseException:  # a cell half done; the next one begins with the state from before
            self._names = before
            self._kill()
            raise
        return self._calls.cell(output, error, answer)

    def dump(self) -> bytes:
        self._check_open()
        try:
            state = self._taken(whole=True)
        except _Failed:
            self._restore()
            try:
                state = self._taken(whole=True)
            except _Failed as error:
                raise SandboxDied(f"the sandbox is gone: {error}") from error
        return json.dumps({"names": sorted(self._names), "state": base64.b64encode(state).decode()}).encode()

    def load(self, dump: bytes, functions: Mapping[str, Callable[..., Any]]) -> None:
        host.check_names(functions)
        self.close()
        try:
            kept = json.loads(dump)
            self._names, self._state = set(kept["names"]), base64.b64decode(kept["state"], validate=True)
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxDied(f"the sandbox does not load its last state: {error}") from error
        self._calls, self._given = host.Calls(functions), {}
        self._first = self._state, self._names
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
            kind, *texts = (part.decode(errors="replace") for part in self._receive(deadline))
            if kind == "out":
                output.write("".join(texts))
            elif kind == "call":
                name, told, *_ = [*texts, "", ""]
                try:
                    arguments = host.arguments(told)
                except ToolError as error:
                    reply = "error", str(error)
                else:
                    begun = time.monotonic()
                    reply = self._reply(name, *arguments)
                    deadline += time.monotonic() - begun
                self._send(*reply, deadline=deadline, new=False)
            elif kind == "done":
                error, answer, *_ = [*(text[: host.MAX_CHARS] for text in texts), None, None]
                error = error[: host.MAX_ERROR] if error and self._calls.answer is None else None
                if error and error.startswith("MemoryError"):
                    raise _Failed(error)
                return error, answer

    def _reply(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[str, Any]:
        """What a function of the host has to say to a call, of which every word may be made up."""
        try:
            return "value", self._calls.call(name, args, kwargs)
        except ToolError as error:
            return "error", str(error)[: host.MAX_ERROR]
        except host.Ended as end:
            return "end", str(end)

    def _save(self) -> None:
        """Takes the state that a later cell falls back to; an empty one is that of before."""
        try:
            self._state = self._taken(whole=False) or self._state
        except _Late:
            hint = "Hint: keep plain data in variables"
            raise _Failed(f"TimeoutError: saving the variables took too long\n{hint}") from None

    def _taken(self, *, whole: bool) -> bytes:
        """The state as the worker tells it."""
        most = (self._limits.memory_mb << 20) + INTERPRETER
        return b"".join(self._ask("state", whole, seconds=self._seconds, most=most)[:1])

    @property
    def _seconds(self) -> float:
        return min(START_S, self._limits.cell_timeout + SAVE_S)

    def _restore(self) -> bool:
        """A new worker with the last state; with the first one, and False, if that one does not load."""
        try:
            try:
                self._load()
                return True
            except _Failed:
                if self._state == self._first[0]:
                    raise
            self._state, self._names = self._first[0], self._first[1] | set(self._given)
            self._load()
            return False
        except (SandboxUnavailable, _Failed) as error:
            self.close()
            raise SandboxDied(f"the sandbox does not load its last state: {error}") from error
        except BaseException:  # Ctrl-C: a state half loaded
            self._kill()
            raise

    def _load(self) -> None:
        self._spawn()
        self._ask("bind", self._given, prelude.EMPTY_ANSWER)
        self._ask("restore", self._state, seconds=self._seconds)

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
                managed = [part.decode(errors="replace") for part in self._ask(settings)]
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
        home = Path(sys.base_prefix, sys.platlibdir)
        library = home / f"python{sys.version_info.major}.{sys.version_info.minor}"
        beside = [path for folder in SHARED for name in PACKAGES for path in Path(folder).glob(name)]
        if own := home.parent != Path("/usr"):
            beside += [path for path in home.iterdir() if path.is_dir() and path != library]
        within = [path for path in library.glob("*-packages") if path.is_dir()]
        return [
            *WALLS,
            *(word for name, value in VARIABLES.items() for word in ("--setenv", name, value)),
            *(("--ro-bind", str(home), str(home)) if own else ()),
            *(word for path in beside for word in ("--tmpfs", str(path))),
            *(("--ro-bind", str(library), str(library)) if not own else ()),
            *(word for path in within for word in ("--tmpfs", str(path))),
            *("--ro-bind", str(python), str(python), "--ro-bind", str(WORKER), "/worker.py"),
            *("--chdir", "/", "--remount-ro", "/"),
            *("--", str(python), "-sSP", "/worker.py"),
        ]

    def _ask(self, *message: Any, seconds: float = START_S, most: int = host.MAX_BYTES) -> list[bytes]:
        """What the worker answers to a message, in time and of at most so many bytes."""
        deadline = time.monotonic() + seconds
        self._send(*message, deadline=deadline)
        return self._receive(deadline, most)[1:]

    def _send(self, *message: Any, deadline: float, new: bool = True) -> None:
        """Writes a message; a new one has a number that its answers repeat, so that what came late is told apart."""
        if new:
            self._cell += 1
            message = (str(self._cell), *message)
        body = pickle.dumps(message)
        left = memoryview(LENGTH.pack(len(body)) + body)
        while left:
            self._wait("stdin", select.POLLOUT, deadline)
            try:
                left = left[os.write(self._pipe("stdin"), left) :]
            except OSError as error:
                raise _Failed("The sandbox ended") from error

    def _receive(self, deadline: float, most: int = host.MAX_BYTES) -> list[bytes]:
        """The next message that belongs to the present one of the host, without its number."""
        while True:
            kind, number, *parts = [*self._message(deadline, most), b"", b""]
            if number == str(self._cell).encode():
                return [kind, *parts[:-2]]

    def _message(self, deadline: float, most: int) -> list[bytes]:
        """The parts of the next message, each behind its length."""
        (size,) = LENGTH.unpack(self._bytes(LENGTH.size, deadline))
        if size > most:
            raise _Failed("The sandbox ended: a message is too large")
        body, parts, at = self._bytes(size, deadline), [], 0
        while at + LENGTH.size <= size and len(parts) < PARTS:
            (length,) = LENGTH.unpack_from(body, at)
            at += LENGTH.size + length
            parts.append(body[at - length : at])
        if at != size:
            raise _Failed("The sandbox ended: what it sent is no message")
        return parts

    def _bytes(self, count: int, deadline: float) -> bytes:
        self._check_time(deadline)
        while len(self._received) < count:
            self._wait("stdout", select.POLLIN, deadline)
            more = os.read(self._pipe("stdout"), 1 << 20)
            if not more:
                raise _Failed("The sandbox ended")
            self._received += more
        with memoryview(self._received) as received:
            taken = bytes(received[:count])
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
            raise _Late(f"{spent}\nHint: do less in one cell")

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
