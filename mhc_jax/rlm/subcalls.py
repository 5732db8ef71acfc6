"""What code in an environment can call: models, recursion, tools, and what is left of the budget."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhc_jax.rlm.calls import FAULTS, Calls
from mhc_jax.rlm.environments.base import ToolError
from mhc_jax.rlm.ledger import Exhausted, Ledger
from mhc_jax.rlm.memo import Memo
from mhc_jax.rlm.models import Model
from mhc_jax.rlm.program import Path, Request

# Variables that the loop binds.
VARIABLES = ("context", "history")

# Runs a child: its path, account, memory, question and context; raises ModelFailed if there is no answer.
Recurse = Callable[[Path, Ledger, Memo | None, str | None, Any], str]


class Subcalls:
    """The sub-calls of one level: their places in the trace, their shares of its account.

    Args:
        model: that is asked.
        recurse: runs a child; None at the last depth, where a recursive call is a plain one.
    """

    def __init__(
        self,
        model: Model,
        calls: Calls,
        ledger: Ledger,
        memo: Memo | None,
        recurse: Recurse | None,
    ):
        self._model, self._calls, self._ledger, self._memo = model, calls, ledger, memo
        self._recurse = recurse
        self.begin(())

    def begin(self, path: Path) -> list[str]:
        """A new block. The list returned is filled with what the model is to be told after its output."""
        self._path, self._count = path, 0
        self.notes: list[str] = []
        return self.notes

    def plain(self, prompts: Sequence[str]) -> list[Any]:
        """Replies, and the faults of those that failed."""
        requests = [
            Request(self._model, [{"role": "user", "content": prompt}], path, {"prompt": prompt})
            for prompt, path in zip(prompts, self._paths(len(prompts)), strict=True)
        ]
        found = self._calls.ask_all(requests, self._ledger, self._memo)
        return [reply if isinstance(reply, Exception) else reply.text for reply in found]

    def recursive(self, questions: Sequence[tuple[str, Any]]) -> list[Any]:
        """Answers to questions with their contexts, each from an environment of its own, and faults."""
        recurse = self._recurse
        if recurse is None:
            return self.plain([_joined(prompt, context) for prompt, context in questions])
        if not questions:
            return []
        paths = self._paths(len(questions))
        try:
            shares = self._ledger.shares(len(questions))
        except Exhausted as fault:
            return [fault] * len(questions)
        memos = [None if self._memo is None else self._memo.fork() for _ in shares]

        def child(job: tuple[tuple[str, Any], Path, Ledger, Memo | None]) -> Any:
            (prompt, context), path, ledger, memo = job
            question, held = (None, prompt) if context is None else (prompt, context)
            try:
                return recurse(path, ledger, memo, question, held)
            except FAULTS as fault:
                return fault

        found = self._calls.in_threads(child, [*zip(questions, paths, shares, memos, strict=False)])
        for share, memo in zip(shares, memos, strict=True):
            share.close()
            if self._memo is not None and memo is not None:
                self._memo.merge(memo)
        return found + [Exhausted("calls", "no call is left for it (max_llm_calls)")] * (len(questions) - len(found))

    def _paths(self, count: int) -> list[Path]:
        first = self._count + 1
        self._count += count
        return [(*self._path, index) for index in range(first, first + count)]


def functions(
    subcalls: Subcalls, tools: Mapping[str, Any], left: Callable[[], dict[str, Any]]
) -> dict[str, Callable[..., Any]]:
    """The host's functions, by their names inside.

    A fault is an error where one reply is asked for, and None in the place of its reply where several are: neither can
    be mistaken for an answer.

    Args:
        tools: those of the user.
        left: what is left of the budget.
    """

    def llm_query(prompt: str) -> str:
        return _only(subcalls.plain([_text(prompt, "prompt")]))

    def llm_query_batched(prompts: list[str]) -> list[str | None]:
        return _several(subcalls, subcalls.plain(_texts(prompts, "prompts")))

    def rlm_query(prompt: str, context: str | list[str] | None = None) -> str:
        return _only(subcalls.recursive([(_text(prompt, "prompt"), _context(context))]))

    def rlm_query_batched(prompts: list[str], contexts: list[Any] | None = None) -> list[str | None]:
        texts = _texts(prompts, "prompts")
        held = [None] * len(texts) if contexts is None else [_context(one) for one in _list(contexts, "contexts")]
        if len(held) != len(texts):
            raise ToolError(f"there are {len(texts)} prompts and {len(held)} contexts")
        return _several(subcalls, subcalls.recursive([*zip(texts, held, strict=True)]))

    def budget() -> dict[str, Any]:
        return left()

    own = {
        "llm_query": llm_query,
        "llm_query_batched": llm_query_batched,
        "llm_batch": llm_query_batched,
        "rlm_query": rlm_query,
        "rlm_query_batched": rlm_query_batched,
        "budget": budget,
    }
    return own | {name: _tool(name, tool) for name, tool in tools.items() if callable(tool)}


# Names that a tool cannot have; an environment refuses those of its own.
RESERVED = (*VARIABLES, "llm_query", "llm_query_batched", "llm_batch", "rlm_query", "rlm_query_batched", "budget")


def _only(replies: Sequence[Any]) -> str:
    (reply,) = replies
    if isinstance(reply, Exception):
        raise ToolError(str(reply))
    return reply


def _several(subcalls: Subcalls, replies: Sequence[Any]) -> list[str | None]:
    faults: dict[str, list[int]] = {}
    for index, reply in enumerate(replies):
        if isinstance(reply, Exception):
            faults.setdefault(str(reply), []).append(index)
    for fault, places in faults.items():
        subcalls.notes.append(f"No reply to prompts[{_ranges(places)}], which is None there: {fault}")
    return [None if isinstance(reply, Exception) else reply for reply in replies]


def _ranges(places: Sequence[int]) -> str:
    """``"0, 3 to 9"``; rising places."""
    known = {*places}
    firsts = [place for place in places if place - 1 not in known]
    lasts = [place for place in places if place + 1 not in known]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(firsts, lasts, strict=True))


def _tool(name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
    """The function; its errors reach the code with their message, as the user wrote it for whoever calls it."""

    @functools.wraps(tool)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return tool(*arguments, **options)
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(f"{name} failed: {type(error).__name__}: {str(error)[:500]}") from error

    return call


def _joined(prompt: str, context: Any) -> str:
    """A prompt with its context, for a model that has no environment."""
    if context is None:
        return prompt
    return f"{prompt}\n\n{context}" if isinstance(context, str) else "\n\n".join([prompt, *context])


# What comes from an environment is looked at by type alone: a list that holds itself would never be done printing.
def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise ToolError(f"{name} must be a text, not {type(value).__name__}")
    return value


def _list(values: Any, name: str) -> list[Any]:
    if type(values) not in (list, tuple):
        raise ToolError(f"{name} must be a list, not {type(values).__name__}")
    return list(values)


def _texts(values: Any, name: str) -> list[str]:
    return [_text(value, f"{name}[{index}]") for index, value in enumerate(_list(values, name))]


def _context(value: Any) -> str | list[str] | None:
    return value if value is None or type(value) is str else _texts(value, "context")
