"""The one account of a tree of calls: calls and tokens are reserved before they are spent, time runs for all."""

import dataclasses
import threading
import time
from collections.abc import Callable

from mhc_jax.rlm.limits import Limits


class Exhausted(RuntimeError):
    """A limit that a call would pass; nothing was asked.

    Attributes:
        status: ``"calls"``, ``"tokens"`` or ``"timeout"``.
    """

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Grant:
    """What was reserved, until :meth:`Ledger.settle` says what was used."""

    calls: int
    tokens: int


class Ledger:
    """An account, or the share of it that a child may use.

    What is reserved counts as spent until it is settled, so that calls at the same time cannot pass a limit together. A
    share is reserved from its parent when it is made, which is why nothing in a child can raise a limit, and what it
    leaves returns to the parent when it is closed.

    Args:
        calls, tokens: that may be spent; None for no bound.
        deadline: as the clock tells it, None for none.
        clock: seconds.
    """

    def __init__(
        self,
        calls: int,
        tokens: int | None,
        deadline: float | None,
        clock: Callable[[], float] = time.monotonic,
        parent: "Ledger | None" = None,
    ):
        self._calls, self._tokens, self._deadline, self._clock, self._parent = calls, tokens, deadline, clock, parent
        self._lock = threading.Lock()
        self._spent = Grant(0, 0)
        self._reserved = Grant(0, 0)
        self._whole = Grant(calls, tokens or 0)

    @classmethod
    def of(cls, limits: Limits, clock: Callable[[], float] = time.monotonic, *, elapsed: float = 0.0) -> "Ledger":
        """A whole account, of whose time so many seconds have passed."""
        deadline = None if limits.max_timeout is None else clock() + limits.max_timeout - elapsed
        return cls(limits.max_llm_calls, limits.max_tokens, deadline, clock)

    def reserve(self, calls: int = 1, tokens: int = 0) -> Grant:
        """Sets calls and tokens aside. Raises Exhausted if there are not as many, or no time."""
        if calls:
            self.check_time()
        with self._lock:
            if calls > self._free_calls():
                raise Exhausted("calls", f"no calls are left: {self._calls} were allowed (max_llm_calls)")
            free = self._free_tokens()
            if free is not None and tokens > free:
                raise Exhausted("tokens", f"the call may take {tokens:,} tokens and {free:,} are left (max_tokens)")
            grant = Grant(calls, tokens)
            self._reserved = _plus(self._reserved, grant)
            return grant

    def settle(self, grant: Grant, *, calls: int = 0, tokens: int = 0) -> None:
        """Spends what was used of a grant and returns the rest; a reply longer than was reserved counts in full."""
        with self._lock:
            self._reserved = _plus(self._reserved, Grant(-grant.calls, -grant.tokens))
            self._spent = _plus(self._spent, Grant(calls, tokens))

    def check_time(self) -> None:
        """Raises Exhausted after the deadline."""
        if self._deadline is not None and self._clock() >= self._deadline:
            raise Exhausted("timeout", "no time is left (max_timeout)")

    def shares(self, count: int) -> "list[Ledger]":
        """Equal parts of what is free, for children that run at the same time: none takes from another.

        Returns:
            As many as get a call each, at most ``count``.

        Raises:
            Exhausted: no call is left, or no time.
        """
        free_calls, free_tokens = self.left()
        calls = max(free_calls // count, 1)
        served = min(count, max(free_calls // calls, 1))
        tokens = None if free_tokens is None else free_tokens // served
        self.reserve(served * calls, served * (tokens or 0))
        return [Ledger(calls, tokens, self._deadline, self._clock, self) for _ in range(served)]

    def close(self) -> None:
        """Returns what a share has left to its parent."""
        if self._parent:
            spent = self.spent
            self._parent.settle(self._whole, calls=spent.calls, tokens=spent.tokens)
            self._parent = None

    @property
    def spent(self) -> Grant:
        """So far, without what is reserved."""
        with self._lock:
            return self._spent

    def left(self) -> tuple[int, int | None]:
        """Calls and tokens that can still be reserved; None for no bound."""
        with self._lock:
            return self._free_calls(), self._free_tokens()

    def _free_calls(self) -> int:
        return self._calls - self._spent.calls - self._reserved.calls

    def _free_tokens(self) -> int | None:
        return None if self._tokens is None else max(self._tokens - self._spent.tokens - self._reserved.tokens, 0)


def _plus(first: Grant, second: Grant) -> Grant:
    return Grant(first.calls + second.calls, first.tokens + second.tokens)
