"""Models as plain functions: messages in, a text out. What is known about one beside that is looked up on it."""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Messages = Sequence[dict[str, str]]

# Characters of a token, where nothing counts them.
TYPICAL = 4
# Tokens kept for a reply of a model that does not say how long its replies may be.
REPLY = 1024


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model says.

    Attributes:
        text: of the reply; None or empty where a model said nothing.
        prompt_tokens, completion_tokens: as the model counts them, None if it does not.
        cost: in the currency of whoever charges it, None if unknown.
    """

    text: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None


# Optional attributes of a model:
#   name                       for traces and for what is remembered
#   batch(list of messages)    a list of replies, of which those that failed are exceptions
#   parallel                   False if it must not be called by several threads at once
#   count_tokens(text), count_messages(messages)
#   context_length             tokens of a prompt and its reply
#   max_completion_tokens      tokens of a reply
Model = Callable[[Messages], "str | Reply | None"]


class ModelFailed(RuntimeError):
    """A call that gave no reply: the model raised. The message names it and the fault."""


class PromptTooLong(ValueError):
    """A prompt that a model or a limit has no room for; nothing was cut and nothing was asked."""


def name_of(model: Model) -> str:
    """For traces."""
    return str(getattr(model, "name", None) or getattr(model, "__name__", None) or type(model).__name__)


def as_reply(value: Any) -> Reply:
    """A reply, whatever a model gave. Raises ModelFailed if it is neither a text nor a reply."""
    reply = value if isinstance(value, Reply) else Reply(value)
    if not (reply.text is None or isinstance(reply.text, str)):
        raise ModelFailed(f"the model returned {type(reply.text).__name__}, not a text")
    return reply


def tokens_of(model: Model, messages: Messages) -> tuple[int, bool]:
    """Tokens of a prompt, and whether they are estimated."""
    if count := getattr(model, "count_messages", None):
        return count(messages), False
    return tokens_of_text(model, "\n".join(message["content"] for message in messages))


def tokens_of_text(model: Model, text: str) -> tuple[int, bool]:
    """Tokens of a text, and whether they are estimated."""
    if count := getattr(model, "count_tokens", None):
        return count(text), False
    return math.ceil(len(text) / TYPICAL), True


def longest_reply(model: Model) -> int:
    """Tokens that a call may add to its prompt."""
    return getattr(model, "max_completion_tokens", None) or REPLY


def fitted(model: Model, messages: Messages, max_chars: int) -> tuple[list[dict[str, str]], int]:
    """What fits of a conversation: all of it, or all but its oldest turns with a line that says how many.

    Args:
        messages: as the loop builds them: instructions, the opening, then reply and answer to it in turn.
        max_chars: of all of them together.

    Returns:
        The messages that the model is sent, and how many turns are left out.

    Raises:
        PromptTooLong: what must stay does not fit.
    """
    room = getattr(model, "context_length", None)
    room = None if room is None else room - (getattr(model, "max_completion_tokens", None) or 0)
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    start, turns = list(messages[: first + 1]), list(messages[first + 1 :])
    for dropped in range(0, len(turns) + 1, 2):
        sent = [*start, *turns]
        if dropped:
            line = f"[{dropped // 2} earlier turns are left out: the conversation no longer fits.]"
            parts = [start[-1]["content"], line]
            if dropped == len(turns):  # what the model was told last stays without the reply before it
                parts.append(turns[-1]["content"])
            sent = [*start[:-1], {"role": "user", "content": "\n\n".join(parts)}, *turns[dropped:]]
        length = sum(len(message["content"]) for message in sent)
        if length <= max_chars and (room is None or tokens_of(model, sent)[0] <= room):
            return sent, dropped // 2
    if length > max_chars:
        raise PromptTooLong(f"the prompt has {length:,} characters, and max_prompt_chars is {max_chars:,}")
    raise PromptTooLong(
        f"the prompt has {tokens_of(model, sent)[0]:,} tokens, and {name_of(model)} takes {max(room, 0):,}"
    )


class Scripted:
    """A model that says what it is told to, for tests, demonstrations and replays.

    Args:
        replies: one after another, or a function of the messages. An exception among them is raised.
        name: for traces.

    Attributes:
        seen: the messages of every call.
    """

    def __init__(self, replies: Iterable[Any] | Callable[[Messages], Any], *, name: str = "scripted"):
        self.name = name
        self.seen: list[list[dict[str, str]]] = []
        self._replies = replies if callable(replies) else iter(replies)
        self._lock = threading.Lock()

    def __call__(self, messages: Messages) -> Any:
        with self._lock:
            self.seen.append([dict(message) for message in messages])
            reply = None if callable(self._replies) else next(self._replies, IndexError("the script has ended"))
        if callable(self._replies):
            reply = self._replies(messages)
        if isinstance(reply, BaseException):
            raise reply
        return reply
