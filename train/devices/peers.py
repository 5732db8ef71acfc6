"""The other processes of a run: all begin alike, each notices when one is gone, and all end together.

They talk through the key-value store of JAX's coordinator, which needs no device and which nothing else can block.
"""

import collections
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mhc_jax.config import ConfigError
from train.terminal.interrupt import Interrupted

BEAT = 3.0  # seconds between signs of life
SILENCE = 25.0  # seconds without one after which a process counts as dead
GRACE = 10.0  # seconds in which a process may end by itself after another one has failed
STATUS = 4  # exit status of a process that ends because another one is gone

_peers: "Peers | None" = None


class Peers:
    """The place of this process among those of a run; a separate thread watches the others."""

    def __init__(self, client: Any, index: int, count: int):
        """Args: ``client`` is JAX's, of the coordinator; ``index`` of ``count`` is this process."""
        self.client, self.index, self.count = client, index, count
        self.resume_command = ""
        self._leaving = threading.Event()
        self._fault_known = threading.Event()
        self._ending = threading.Lock()
        self._answers = 0  # of the coordinator to this process
        self._uses: collections.Counter[str] = collections.Counter()
        self._watching = threading.Thread(target=self._watch, name="watch-peers", daemon=True)
        self._watching.start()
        if index:
            threading.Thread(target=self._watch_coordinator, name="watch-coordinator", daemon=True).start()

    def put(self, key: str, value: Any) -> None:
        """Makes a JSON value known to all."""
        self.client.key_value_set(f"mhc_jax/{key}", json.dumps(value), allow_overwrite=True)

    def get(self, key: str, patience: float = float("inf")) -> Any:
        """A JSON value, as soon as a process has put it; None when ``patience``, in seconds, is at an end."""
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # not yet there
                return json.loads(self.client.blocking_key_value_get(f"mhc_jax/{key}", int(1000 * min(left, BEAT))))
        return None

    def use(self, name: str) -> str:
        """The key of this use of a name: a process that trains twice comes to the same places again."""
        self._uses[name] += 1
        return f"{name}/{self._uses[name]}"

    def meet(self, name: str, patience: float = float("inf")) -> bool:
        """Waits until all processes are here; whether they came."""
        self.put(f"{name}/{self.index}", True)
        if self.index == 0:
            if not all(self.get(f"{name}/{other}", patience) for other in range(1, self.count)):
                return False
            self.put(f"{name}/all", True)
        return bool(self.get(f"{name}/all", patience))

    def tell(self, text: str, status: int) -> None:
        """Tells the others why this process stops. The first message counts."""
        self._leaving.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set("mhc_jax/fault", json.dumps({"text": text, "status": status}))
        if self.index == 0:
            time.sleep(1)  # the store ends with this process

    def part(self) -> None:
        """Waits until all processes have come this far; from then on the end of another one is no fault."""
        self.meet("done")
        self._leaving.set()
        if self.index == 0:
            self.put("fault", None)  # wakes those who wait for one
        self._watching.join()

    def lost(self, index: int) -> None:
        """Ends this process because process ``index`` is gone, unless it is known to have stopped, or this one has."""
        if not self._fault_known.wait(1):
            self._end(f"process {index} of this run died or cannot be reached", STATUS)

    def _watch(self) -> None:
        heard = dict.fromkeys(range(self.count), (None, time.monotonic()))
        beats = 0
        while not self._leaving.is_set():
            beats += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # whoever has lost the coordinator is told by lost()
                self.put(f"alive/{self.index}", beats)
                self._answers += 1
                if self.index == 0:
                    self._check(heard)
            if fault := self.get("fault", BEAT):
                self._fault_known.set()
                self._leaving.wait(GRACE)
                self._end(fault["text"], fault["status"])

    def _watch_coordinator(self) -> None:
        """Ends this process when process 0 has not answered for too long: frozen, it closes no connection.

        What is counted are waits of this thread, which pass no faster than those of the one that asks.
        """
        answers, waits = 0, 0
        while not self._leaving.wait(BEAT):
            waits = waits + 1 if self._answers == answers else 0
            answers = self._answers
            if waits * BEAT > SILENCE:
                self.lost(0)

    def _check(self, heard: dict[int, tuple[Any, float]]) -> None:
        """Process 0 tells the others of the first one that has been silent for too long."""
        now = time.monotonic()
        for key, beats in self.client.key_value_dir_get("mhc_jax/alive/"):
            index = int(key.rpartition("/")[2])
            if heard[index][0] != beats:
                heard[index] = (beats, now)
        silent = [index for index, (_, since) in heard.items() if now - since > SILENCE]
        if silent:
            text = f"process {silent[0]} of this run died or cannot be reached"
            self.client.key_value_set("mhc_jax/fault", json.dumps({"text": text, "status": STATUS}))

    def _end(self, text: str, status: int) -> None:
        with self._ending:
            if self._leaving.is_set():
                return
            resume = f"; resume with: {self.resume_command}" if self.resume_command and status != 2 else ""
            print(f"error: {text}{resume}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(status)


def start(client: Any, index: int, count: int) -> Peers:
    """Begins to watch the other processes."""
    global _peers
    _peers = Peers(client, index, count)
    return _peers


def resume_with(command: str) -> None:
    """The message for when another process is gone."""
    if _peers:
        _peers.resume_command = command


def agree(name: str, mine: Mapping[str, Any]) -> None:
    """Waits for the others and compares what all must have alike.

    Args:
        name: name of this comparison; all processes make their comparisons in the same order.
        mine: JSON-compatible values by the names used in messages.

    Raises:
        ConfigError: this process differs from process 0; the first difference is named. The others are told.
    """
    if _peers is None:
        return
    name, mine = _peers.use(name), json.loads(json.dumps(mine))
    if _peers.index == 0:
        _peers.put(name, mine)
    first = _peers.get(name)
    if differing := [key for key in {**first, **mine} if first.get(key) != mine.get(key)]:
        key, *more = differing
        others = f" (and in {len(more)} more)" if more else ""
        raise ConfigError(
            f"processes 0 and {_peers.index} of this run differ in {key}: {first.get(key)!r} and {mine.get(key)!r}"
            f"{others}; start all of them alike"
        )
    _peers.meet(f"{name}/alike")


def follow(name: str) -> None:
    """Waits until process 0 has come this far, as often as it has."""
    if _peers is None:
        return
    name = _peers.use(name)
    if _peers.index == 0:
        _peers.put(name, True)
    _peers.get(name)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """A context that tells the other processes about any error that stops this one."""
    try:
        yield
    except Exception as error:
        if _peers and _by_another(error):
            time.sleep(SILENCE + GRACE + 2 * BEAT)  # the thread that watches ends this process when it knows which
        if _peers:
            status = 2 if isinstance(error, (ConfigError, OSError)) else 1
            _peers.tell(_reason(error, _peers.index), status)
        raise
    except Interrupted as stop:
        # Where all were asked to stop, all come; where one was, the others are told.
        if _peers and not _peers.meet("interrupted", SILENCE):
            _peers.tell(f"process {_peers.index} of this run was stopped by signal {stop.number}", STATUS)
        raise
    except SystemExit as stop:
        if _peers and stop.code:
            _peers.tell(f"process {_peers.index} of this run stopped with exit status {stop.code}", STATUS)
        raise
    if _peers:
        _peers.part()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends a process that has failed at once: JAX's own way out waits for all others."""
    try:
        yield
    except BaseException as stop:
        if _peers is None or (isinstance(stop, SystemExit) and not stop.code):
            raise
        if not isinstance(stop, SystemExit):
            sys.excepthook(type(stop), stop, stop.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 1)


def _reason(error: Exception, index: int) -> str:
    line = next(iter(str(error).splitlines()), "") if isinstance(error, (ConfigError, OSError)) else repr(error)
    return line if line.startswith("processes ") else f"process {index} of this run stopped: {line[:500]}"


def _by_another(error: BaseException | None) -> bool:
    """Whether another process that is gone may be the cause: the runtime has failed, here or further down."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
