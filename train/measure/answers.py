"""Answers of a model to tasks with known truth, alone and in the scaffold of a recursive language model."""

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

from mhc_jax.rlm import RLM, Limits, PromptTooLong
from mhc_jax.rlm.models import Messages, Model, as_reply, tokens_of
from mhc_jax.rlm.tasks import Task

TOO_LONG = "too long"
# The model with as much of the beginning of a context as fits, and in the scaffold.
Mode = Literal["alone", "scaffold"]
# Most characters of a token, to begin a search with.
WIDEST = 16


@dataclasses.dataclass(frozen=True)
class Answered:
    """How a task went.

    Attributes:
        task: its kind.
        length: characters of the context, as a table groups them.
        seed: it was generated from, or its number in a data set.
        mode: how the model was asked.
        score: of the answer.
        status: ``"answered"``, or why it is none or was forced.
        question, truth, answer: texts.
        calls, tokens: of the model.
        seconds: that it took.
    """

    task: str
    length: int
    seed: int
    mode: Mode
    score: float
    status: str
    question: str
    truth: tuple[str, ...]
    answer: str | None
    calls: int
    tokens: int
    seconds: float


def alone(model: Model, task: Task) -> tuple[str | None, str, int, int]:
    """Answer, status, calls and tokens of one prompt with all of the context, or its beginning if it does not fit."""
    messages = prompt(model, task)
    if messages is None:
        return None, TOO_LONG, 0, 0
    reply = as_reply(model(messages))
    read, _ = tokens_of(model, messages)
    written, _ = tokens_of(model, [{"role": "assistant", "content": reply.text or ""}])
    return reply.text, "answered" if reply.text else "silent", 1, read + written


def scaffolded(model: Model, task: Task, environment: str, limits: Limits) -> tuple[str | None, str, int, int]:
    """The same of a completion of :class:`mhc_jax.rlm.RLM`."""
    try:
        result = RLM(model, environment=environment, limits=limits).completion(task.context, task.question)
    except PromptTooLong:
        return None, TOO_LONG, 0, 0
    return result.answer, result.status, result.usage.calls, result.usage.tokens


def prompt(model: Model, task: Task) -> Messages | None:
    """Context and question as one message that fits the model; None if not even the question does."""

    def cut(size: int) -> Messages:
        return [{"role": "user", "content": f"{task.context[:size]}\n\n{task.question}"}]

    room = getattr(model, "context_length", None)
    if room is None:
        return cut(len(task.context))
    room -= getattr(model, "max_completion_tokens", None) or 0
    fits, too_many = -1, min(len(task.context), WIDEST * room) + 1
    while too_many - fits > 1:
        size = (fits + too_many) // 2
        if tokens_of(model, cut(size))[0] <= room:
            fits = size
        else:
            too_many = size
    return None if fits < 0 else cut(fits)


def answered(task: Task, length: int, seed: int, mode: Mode, answer: Callable) -> Answered:
    """What ``answer()`` gives, scored."""
    begun = time.perf_counter()
    text, status, calls, tokens = answer()
    seconds = round(time.perf_counter() - begun, 3)
    score = task.score(text)
    return Answered(
        task.kind, length, seed, mode, score, status, task.question, task.truth, text, calls, tokens, seconds
    )
