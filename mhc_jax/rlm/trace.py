"""What happened in a completion: a flat list of events whose paths make the tree of calls.

A path holds whole numbers. The root has the path ``()``; its turn t has ``(t,)``, block c of that turn ``(t, c)``, and
the sub-call s that the block made ``(t, c, s)``, which is the root of a child where the call was recursive. Paths are
handed out before anything runs at the same time, so that two runs of the same program have the same trace.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from mhc_jax.config import ConfigError, parse_json
from mhc_jax.registry import shown
from mhc_jax.rlm.environments.base import CUT

Event = dict[str, Any]

# Contexts up to so many characters of JSON travel with the trace.
KEPT = 100_000
# What the events in a file must have, and of the root's more; and what they may have.
_FIELDS: dict[str, dict[str, Any]] = {
    "run": {"question": str | None, "about": str, "digest": str, "depth": int, "model": str},
    "turn": {"role": str, "model": str, "messages": list},
    "cell": {"code": str, "stdout": str, "error": str | None, "notes": list, "answer": str | None},
    "call": {"model": str, "prompt": str, "memo": bool},
    "end": {"status": str, "answer": str | None, "reason": str | None},
}
_OF_ROOT: dict[str, Any] = {"context": object, "limits": dict, "environment": str, "seed": int, "sub_model": str}
_OPTIONAL: dict[str, Any] = {
    "reply": str | None,
    "error": str | None,
    "refused": str,
    "memo": bool,
    "prompt_tokens": int,
    "completion_tokens": int,
    "estimated": bool,
    "cost": int | float | None,
}
# What differs between two runs that are the same.
VARIES = ("seconds",)


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a completion took, with all that it called.

    Attributes:
        calls: of models, those that failed included.
        memoised: calls that were answered from memory.
        prompt_tokens, completion_tokens: sums.
        estimated: whether some of them are estimates.
        cost: sum of what models reported; None if none did.
        models: calls by name of the model.
    """

    calls: int = 0
    memoised: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    cost: float | None = None
    models: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of prompts and replies."""
        return self.prompt_tokens + self.completion_tokens


class Trace:
    """Events, added by any thread, read in the order of their paths. Equal to another apart from the time they took.

    Kinds of events, beside ``path``:

    =====  =============================================================================================================
    run    question, context (itself if short), about, digest, depth, model; of the root also limits, environment, seed
    turn   role ("turn", "final" or "compaction"), model, messages (those that are new), left_out, reply, tokens
    cell   code, stdout, error, notes, answer
    call   model, prompt, reply, tokens, memo
    end    status, answer, reason
    =====  =============================================================================================================

    A turn or a call that failed has an ``error``, and ``refused`` if a limit refused it.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self._events = list(events)
        self._lock = threading.Lock()

    def add(self, kind: str, path: tuple[int, ...], **fields: Any) -> Event:
        """Adds an event and returns it."""
        event = {"kind": kind, "path": list(path), **fields}
        with self._lock:
            self._events.append(event)
        return event

    @property
    def events(self) -> list[Event]:
        """All events: a run before its turns, a turn before its blocks, a block before what it called."""
        with self._lock:
            return sorted(self._events, key=_place)

    def under(self, path: tuple[int, ...]) -> Iterator[Event]:
        """The events of a run and of all that it called."""
        return (event for event in self.events if tuple(event["path"][: len(path)]) == path)

    def usage(self, path: tuple[int, ...] = ()) -> Usage:
        """Of a run with all that it called."""
        asked = [event for event in self.under(path) if event["kind"] in ("turn", "call") and "refused" not in event]
        paid = [event for event in asked if not event.get("memo")]
        costs = [event["cost"] for event in paid if event.get("cost") is not None]
        return Usage(
            calls=len(paid),
            memoised=len(asked) - len(paid),
            prompt_tokens=sum(event.get("prompt_tokens", 0) for event in paid),
            completion_tokens=sum(event.get("completion_tokens", 0) for event in paid),
            estimated=any(event.get("estimated", False) for event in paid),
            cost=math.fsum(costs) if costs else None,
            models={name: sum(event["model"] == name for event in paid) for name in sorted({e["model"] for e in paid})},
        )

    def replies(self) -> dict[tuple[int, ...], Event]:
        """The events that hold replies, and what cells had printed when a clock ended them, by path."""
        return {
            tuple(event["path"]): event
            for event in self.events
            if event["kind"] in ("turn", "call") or (event.get("error") or "").endswith(CUT)
        }

    def difference(self, other: "Trace") -> str | None:
        """Where two traces part, in words; None if they are the same."""
        mine, others = [*map(same, self.events)], [*map(same, other.events)]
        for first, second in zip(mine, others, strict=False):
            if first != second:
                keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
                return f"event {first['kind']} at {tuple(first['path'])} differs in {', '.join(keys)}"
        return None if len(mine) == len(others) else f"{len(mine)} events against {len(others)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.difference(other) is None

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the events as lines of JSON."""
        write(Path(path), "".join(json.dumps(event, ensure_ascii=True) + "\n" for event in self.events).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` has written. Raises ConfigError for a file that is not a trace or cannot be read."""
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        try:
            events = [*map(_parsed, lines)]
            runs = collections.Counter(tuple(event["path"]) for event in events if event["kind"] == "run")
            if twice := [path for path, times in runs.items() if times > 1]:
                raise ConfigError(f"two runs at {twice[0]}")
            return cls(events)
        except ConfigError as error:
            raise ConfigError(f"{path} is not a trace: {error}") from None

    def __str__(self) -> str:
        return "\n".join(lines(self.events))


def same(event: Event) -> Event:
    """An event without what differs between two runs that are the same."""
    return {key: value for key, value in event.items() if key not in VARIES}


def _parsed(line: bytes) -> Event:
    """An event from a line of a file. Raises ConfigError for a line that holds none."""
    event = parse_json(line)
    if not isinstance(event, dict) or event.get("kind") not in [*_FIELDS]:
        raise ConfigError(f"{shown(event)} is no event")
    path = event.get("path")
    if not isinstance(path, list) or any(type(place) is not int for place in path):
        raise ConfigError(f"an event at {shown(path)}, which is no path")
    kind = event["kind"]
    if not path and kind not in ("run", "end"):
        raise ConfigError(f"an event {kind} outside of the run")
    needed = _FIELDS[kind] | (_OF_ROOT if kind == "run" and not path else {})
    if kind in ("turn", "call") and "error" not in event:
        needed = needed | {"reply": _OPTIONAL["reply"]}
    for name, types in {**{name: types for name, types in _OPTIONAL.items() if name in event}, **needed}.items():
        if name not in event:
            raise ConfigError(f"the event {kind} at {path} has no {name}")
        if not isinstance(event[name], types) or (isinstance(event[name], bool) and types not in (bool, object)):
            raise ConfigError(f"the event {kind} at {path} has the {name} {shown(event[name])}")
    return event


def _place(event: Event) -> tuple[float, ...]:
    """Sorts a run before and its end after all that is in it."""
    return (*event["path"], math.inf) if event["kind"] == "end" else (*event["path"], -1)


def about(context: Any) -> Event:
    """A context as a trace holds it: itself if it is short, and its digest."""
    short = (len(context) if isinstance(context, str) else len(json.dumps(context))) <= KEPT
    return {"context": context if short else None, "digest": digest(context)}


def digest(context: Any) -> str:
    """The same for the same context, in every process. Raises TypeError or ValueError for what JSON does not hold."""
    text = context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Puts a file in place whole, its folder too: whoever reads it meanwhile sees the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def lines(events: Iterable[Event], width: int = 80) -> Iterator[str]:
    """The tree in a terminal, one event a line."""
    for event in events:
        if text := _LINES.get(event["kind"], lambda _: "")(event):
            # What a model says does not command the terminal.
            plain = "".join(character if character.isprintable() else " " for character in text[: 2 * width])
            line = "  " * len(event["path"]) + " ".join(plain.split())
            yield line if len(line) <= width else line[: width - 3] + "..."


def _said(event: Event) -> str:
    return event.get("error") or event.get("reply") or "(nothing)"


_LINES: dict[str, Callable[[Event], str]] = {
    "run": lambda event: f"run: {event['question'] or '(the question is in the context)'} [{event['about']}]",
    "turn": lambda event: f"{event['role']} {event['path'][-1]}: {_said(event)}",
    "cell": lambda event: f"block: {event['error'] or event['stdout'] or '(no output)'}",
    "call": lambda event: f"call{' (memo)' if event['memo'] else ''}: {event['prompt']} -> {_said(event)}",
    "end": lambda event: f"{event['status']}: {event['answer'] if event['answer'] is not None else event['reason']}",
}
