"""The program inside bubblewrap: runs cells for :mod:`mhc_jax.rlm.environments.bwrap`. Nothing in the host imports it.

It speaks over standard input and output in messages of four bytes of length and a body. The host sends pickles; back
go parts, each with a length of its own, the first two of which are the kind of the message and the number of the cell.
Code of a model shares this process, so that whatever comes back may be its own.
"""

import ast
import builtins
import contextlib
import json
import os
import pickle
import random
import struct
import sys
import traceback
import types
from time import monotonic as clock  # before it is frozen

TO_HOST, FROM_HOST = sys.stdout.buffer, sys.stdin.buffer
SETTLED = "settled"
# Characters that wait until they are sent, and for how long.
BUFFERED, BUFFERED_S = 1 << 16, 0.01
# What a cell may replace, and everything here needs.
BUILTINS = dict(builtins.__dict__)

MAIN = types.ModuleType("__main__")
cell = "0"
given: dict = {}  # variables as the host set them
sources: list = []  # statements that define what cannot be pickled: functions, classes, modules


def send(kind: str, *texts: str) -> None:
    write([text.encode("utf-8", "replace") for text in (kind, cell, *texts)])


def send_state(whole: bool, last: int) -> int:
    """Sends the state, or nothing in its place if it is the last one.

    Returns:
        The hash of the state, which has taken the place of its bytes.
    """
    kept = state(whole)
    found = hash(kept)
    write([b"state", cell.encode(), b"" if found == last and not whole else kept])
    return found


def write(parts: list) -> None:
    TO_HOST.write(struct.pack(">I", sum(4 + len(part) for part in parts)))
    for part in parts:
        TO_HOST.write(struct.pack(">I", len(part)))
        TO_HOST.write(part)
    TO_HOST.flush()


def receive():
    head = FROM_HOST.read(4)
    if len(head) < 4:
        os._exit(0)
    return pickle.loads(FROM_HOST.read(struct.unpack(">I", head)[0]))


class Out:
    """Standard output of a cell."""

    encoding, errors = "utf-8", "replace"

    def __init__(self):
        self.parts, self.size, self.sent = [], 0, 0.0

    def write(self, text: str) -> int:
        self.parts.append(text)
        self.size += len(text)
        if self.size > BUFFERED or (text[-1:] == "\n" and clock() - self.sent > BUFFERED_S):
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.parts:
            text, self.parts, self.size, self.sent = "".join(self.parts), [], 0, clock()
            send("out", text)

    def isatty(self) -> bool:
        return False


def function(name: str):
    """A function of the host."""

    def call(*args, **kwargs):
        out.flush()
        send("call", name, json.dumps([args, kwargs], ensure_ascii=False, default=refuse))
        kind, value = receive()
        if kind == "end":
            raise SystemExit(value)
        if kind == "error":
            raise RuntimeError(value)
        return value

    call.__name__ = call.__qualname__ = name
    call.__module__ = "host"
    return call


def refuse(value):
    raise TypeError("only texts, numbers, lists and dictionaries are passed; convert with str()")


def run(code: str, before: str, after: str, functions: list, hints: dict) -> None:
    """One cell, reported with its error and its answer."""
    space, error, answer, tree = MAIN.__dict__, "", None, ast.Module([], [])
    sys.stdout = sys.stderr = out
    sys.setrecursionlimit(1000)
    space.update({name: function(name) for name in functions})
    try:
        exec(compile(before, "<prelude>", "exec"), space)
        tree = ast.parse(code, "<cell>")
        last = tree.body.pop().value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<cell>", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last), "<cell>", "eval"), space)
            if value is not None:
                out.write(f"{value if type(value) is str else repr(value)}\n")
    except BaseException as fault:
        mend()
        error = words(fault, code, hints)
    mend()
    remember(tree)
    try:
        answer = eval(after[0], space)
    except Exception:
        error = error or after[1]
    except BaseException as fault:
        error = words(fault, code, hints)
    sys.stdout = sys.stderr = out
    out.flush()
    send("done", error, *([answer] if type(answer) is str else []))


def mend() -> None:
    """Gives the builtins back that code has replaced."""
    builtins.__dict__.update(BUILTINS)
    MAIN.__dict__["__builtins__"] = builtins


def words(fault: BaseException, code: str, hints: dict) -> str:
    """An error: message, lines of the cell's own code, advice."""
    try:
        message = f"{type(fault).__name__}: {fault}".removesuffix(": ")
    except BaseException:
        message = type(fault).__name__
    lines, numbers = code.split("\n"), []
    if isinstance(fault, SyntaxError) and fault.filename == "<cell>":
        message, numbers = f"SyntaxError: {fault.msg}", [fault.lineno or 1]
    elif not isinstance(fault, MemoryError | RecursionError):
        numbers = [at.lineno for at in traceback.extract_tb(fault.__traceback__) if at.filename == "<cell>"]
    shown = [f"  line {n}: {lines[n - 1]}"[:200] for n in numbers[-5:] if n and n <= len(lines)]
    advice = next((f"Hint: {hint}" for start, hint in hints.items() if message.startswith(start)), None)
    return "\n".join([message, *shown, *([advice] if advice else [])])


def remember(tree: ast.Module) -> None:
    """Keeps the statements at the top level that have made functions, classes and modules."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made = node.name in MAIN.__dict__
        elif isinstance(node, ast.Assign):
            made = isinstance(node.value, ast.Lambda)
        else:
            made = isinstance(node, ast.Import | ast.ImportFrom)
        if made:
            sources.append(ast.unparse(node))


def state(whole: bool) -> bytes:
    """Definitions as source, values as pickles, without what neither holds; unless whole, without the host's texts."""
    kept = {}
    for name, value in MAIN.__dict__.items():
        made = isinstance(value, type | types.FunctionType | types.ModuleType)
        as_given = not whole and isinstance(value, str) and given.get(name) is value
        if not (name.startswith("__") or made or as_given):
            with contextlib.suppress(Exception):
                kept[name] = pickle.dumps(value)
    return pickle.dumps((sources, kept, random.getstate()))


def restore(dump: bytes) -> None:
    old, kept, drawn = pickle.loads(dump)
    random.setstate(drawn)
    sources[:] = old
    for source in sources:
        with contextlib.suppress(Exception):
            exec(compile(source, "<kept>", "exec"), MAIN.__dict__)
    for name, value in kept.items():
        with contextlib.suppress(Exception):
            MAIN.__dict__[name] = pickle.loads(value)


def freeze(instant: float, seed: int) -> None:
    """The same clock and random numbers in every session, and a sleep that takes no time."""
    import time

    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(time, name, lambda: instant)
        setattr(time, f"{name}_ns", lambda: int(instant) * 10**9)
    time.sleep = lambda seconds: None
    for name in ("gmtime", "localtime", "ctime"):
        setattr(
            time, name, lambda seconds=None, real=getattr(time, name): real(instant if seconds is None else seconds)
        )
    strftime, asctime = time.strftime, time.asctime
    time.strftime = lambda form, at=None: strftime(form, time.localtime() if at is None else at)
    time.asctime = lambda at=None: asctime(time.localtime() if at is None else at)

    import datetime as module

    class datetime(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(instant, tz)

        @classmethod
        def utcnow(cls):
            return cls.fromtimestamp(instant, module.UTC).replace(tzinfo=None)

        today = now

    class date(module.date):
        @classmethod
        def today(cls):
            return cls.fromtimestamp(instant)

    for frozen in (datetime, date):
        frozen.__module__, frozen.__qualname__ = "datetime", frozen.__name__
        setattr(module, frozen.__name__, frozen)

    random.seed(seed)
    source = random.Random(seed)
    os.urandom = random._urandom = lambda count: source.randbytes(count)


def settle() -> None:
    """Begins again at addresses that are not random, so that objects are printed and ordered the same every time."""
    import ctypes

    if SETTLED not in sys.argv:
        ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE
        os.execv(sys.executable, [*sys.orig_argv, SETTLED])


def confine(program: bytes, memory: int) -> None:
    """Bounds of the process, and the filter of system calls, for good."""
    import ctypes
    import resource

    for bound, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CPU, 3600),
    ):
        resource.setrlimit(bound, (value, value))
    if program:
        code = ctypes.create_string_buffer(program, len(program))
        head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if libc.prctl(22, 2, ctypes.create_string_buffer(head, len(head)), 0, 0):  # PR_SET_SECCOMP, a filter
            raise OSError(ctypes.get_errno(), "the kernel refuses the filter of system calls")


def canary(secret: str, variables: list, calls: dict) -> list:
    """What must not be possible and is: six attempts."""
    import ctypes
    import socket

    def reads():
        open(secret, "rb").close()

    def writes():
        for folder in ("", "/tmp", "/usr/lib"):
            with contextlib.suppress(OSError):
                open(f"{folder}/written", "wb").close()
                return
        raise OSError

    def sees():
        if set(os.environ) <= set(variables):
            os.listdir("/proc")

    def connects():
        socket.socket(socket.AF_UNIX).close()

    def starts():
        child = os.fork()
        if not child:
            os._exit(0)

    def escapes():
        libc = ctypes.CDLL(None)
        if all(libc.syscall(number, 0, 0, 0, 0, 0) == -1 for number in calls.values()):
            raise OSError

    attempts = {
        "read files of the host": reads,
        "write a file": writes,
        "see the environment of the host": sees,
        "open a socket": connects,
        "start a process": starts,
        f"make system calls such as {next(iter(calls))}": escapes,
    }
    managed = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        managed.append(name)
    return managed


def main() -> None:
    global cell
    settle()
    last = 0
    cell, settings = receive()
    freeze(settings["instant"], settings["seed"])
    confine(settings["program"], settings["memory"])
    send("ready", *canary(settings["secret"], settings["variables"], settings["calls"]))
    sys.modules["__main__"] = MAIN
    while True:
        cell, kind, *rest = receive()
        mend()  # what was saved may run code of a cell as well
        if kind == "run":
            run(*rest)
        elif kind == "bind":
            given.update(rest[0])
            MAIN.__dict__.update(rest[0])
            exec(rest[1], MAIN.__dict__)
            send("done", "")
        elif kind == "restore":
            restore(rest[0])
            send("done", "")
        else:
            last = send_state(rest[0], last)


out = Out()
main()
