"""What a run is made of, where it stands, and how it ends."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhc_jax.rlm.callbacks import Callback
from mhc_jax.rlm.environments.base import Environment
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.models import Messages, Model
from mhc_jax.rlm.trace import Trace, Usage

# The place of an event in the tree, see :mod:`mhc_jax.rlm.trace`.
Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What all levels of a tree share.

    Attributes:
        model, sub_model: of the root, and of what it calls.
        environment: makes one.
        tools: by name, functions and values.
        system_prompt: instead of the default.
        compaction: characters of a conversation above which it is summarised; None for never.
        on_iteration_start, on_iteration_complete: called with the place of a turn, and also with
            its reply, error and answer.
    """

    model: Model
    sub_model: Model
    environment: Callable[[], Environment]
    limits: Limits
    tools: Mapping[str, Any]
    system_prompt: str | None
    compaction: int | None
    on_iteration_start: Callback | None
    on_iteration_complete: Callback | None


@dataclasses.dataclass(frozen=True)
class Request:
    """A call to be made.

    Attributes:
        model: to be asked.
        messages: all of them.
        path: of its event.
        shown: what the event holds beside the reply.
        kind: of the event, ``"turn"`` or ``"call"``.
    """

    model: Model
    messages: Messages
    path: Path
    shown: Mapping[str, Any]
    kind: str = "call"


@dataclasses.dataclass
class Conversation:
    """Where a level stands between two turns; what a saved run is continued from.

    Attributes:
        turn: the next one.
        messages: so far.
        errors: consecutive turns that failed.
        sent: messages that are in the trace already.
    """

    turn: int = 1
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
    errors: int = 0
    sent: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a level ended: with an answer, or for a reason."""

    status: str
    answer: str | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """A block of a turn as the model is told about it."""

    stdout: str
    error: str | None
    notes: Sequence[str]
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Result:
    """How a completion ended.

    Attributes:
        answer: None if there is none.
        status: ``"answered"`` by the model's own decision; ``"forced"`` when turns or calls were used up and the model
            was asked for an answer at once; otherwise the limit that ended the run: ``"iterations"``, ``"calls"``,
            ``"tokens"``, ``"timeout"`` or ``"errors"``.
        usage: of the whole tree of calls.
        trace: of the whole tree of calls.
        reason: in words, unless it was answered.
    """

    answer: str | None
    status: str
    usage: Usage
    trace: Trace
    reason: str | None = None
