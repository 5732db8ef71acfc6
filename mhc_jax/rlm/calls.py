"""Calls of models, one after another or at the same time: limits first, then memory, then the model, then the trace."""

import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mhc_jax.rlm.callbacks import Callback, report
from mhc_jax.rlm.environments.base import CUT, Cell
from mhc_jax.rlm.ledger import Exhausted, Grant, Ledger
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.memo import Memo, key_of
from mhc_jax.rlm.models import (
    Model,
    ModelFailed,
    PromptTooLong,
    Reply,
    as_reply,
    fitted,
    longest_reply,
    name_of,
    tokens_of,
    tokens_of_text,
)
from mhc_jax.rlm.program import Path, Request
from mhc_jax.rlm.protocol import shorten
from mhc_jax.rlm.trace import Event, Trace

# What an event says of a prompt that nobody was asked; other refusals are the status of their limit.
TOO_LONG = "prompt"
# Characters that a trace holds of a prompt that cost nothing.
FREE = 300
FAULTS = (ModelFailed, PromptTooLong, Exhausted)


class Calls:
    """Asks models on behalf of one tree of calls.

    Args:
        limits: of the tree.
        trace: that the calls are written to.
        recorded: events with replies, by path; a call that has one is not made again.
        on_start, on_end: called with the event of each sub-call, in the thread that makes it.
    """

    def __init__(
        self,
        limits: Limits,
        trace: Trace,
        recorded: Mapping[Path, Event],
        on_start: Callback | None = None,
        on_end: Callback | None = None,
    ):
        self.trace = trace
        self._limits, self._recorded = limits, dict(recorded)
        self._on_start, self._on_end = on_start, on_end
        self._gate = threading.BoundedSemaphore(limits.max_concurrent_subcalls)
        self._turns: dict[int, threading.Lock] = {}
        self._interrupt: BaseException | None = None

    def ask(self, request: Request, ledger: Ledger, memo: Memo | None = None) -> Reply:
        """The reply to one request.

        Raises:
            ModelFailed: the model raised, or said nothing to a sub-call.
            PromptTooLong: it does not fit.
            Exhausted: a limit would be passed.
        """
        (found,) = self.ask_all([request], ledger, memo)
        if isinstance(found, Exception):
            raise found
        return found

    def ask_all(
        self, requests: Sequence[Request], ledger: Ledger, memo: Memo | None = None
    ) -> list[Reply | ModelFailed | PromptTooLong | Exhausted]:
        """The reply to each request, or the fault that it ended in; none of them sinks the others."""
        found: list[Any] = [None] * len(requests)
        keys = ["" if memo is None else key_of(name_of(request.model), request.messages) for request in requests]
        first = {key: index for index, key in reversed([*enumerate(keys)]) if key}
        asked, repeats = [], []
        for index, (request, key) in enumerate(zip(requests, keys, strict=True)):
            if self._is_recorded(request):
                found[index] = self._again(request, ledger)
            elif memo is not None and (known := memo.get(key)):
                found[index] = self._remembered(request, known)
            elif key and first[key] != index:
                repeats.append(index)
            else:
                ready = self._prepared(request, ledger)
                if isinstance(ready, Exception):
                    found[index] = ready
                else:
                    asked.append((index, *ready))
        for (index, *_), reply in zip(asked, self._asked(requests, asked, ledger), strict=True):
            found[index] = reply
        for reply, key in zip(found, keys, strict=True):
            if memo is not None and isinstance(reply, Reply):
                memo.put(key, reply)
        for index in repeats:
            reply = found[first[keys[index]]]
            found[index] = (
                self._remembered(requests[index], reply)
                if isinstance(reply, Reply)
                else self._failed(requests[index], reply, memo=True)
            )
        return found

    def in_threads(self, work: Callable[[Any], Any], items: Sequence[Any], *, parallel: bool = True) -> list[Any]:
        """The result for each item, at the same time as far as the limits allow.

        An interrupt waits for the replies that are under way, which are paid for, and lets no other call begin.
        """
        workers = min(len(items), self._limits.max_concurrent_subcalls) if parallel else 1
        if workers <= 1:
            return [work(item) for item in items]
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        try:
            return [future.result() for future in [pool.submit(work, item) for item in items]]
        except BaseException as interrupt:
            self._interrupt = self._interrupt or interrupt
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepared(self, request: Request, ledger: Ledger) -> Any:
        """Messages that fit, turns left out and the grant; or the fault, when it is in the trace."""
        try:
            sent, left_out = fitted(request.model, request.messages, self._limits.max_prompt_chars)
            tokens = tokens_of(request.model, sent)[0] + longest_reply(request.model)
            return sent, left_out, ledger.reserve(1, tokens if self._limits.max_tokens is not None else 0)
        except (PromptTooLong, Exhausted) as fault:
            return self._failed(request, fault)

    def _asked(self, requests: Sequence[Request], asked: list[Any], ledger: Ledger) -> list[Any]:
        """Replies and faults, from a batch of the model, from threads, or one by one."""
        if not asked:
            return []
        models = {id(requests[index].model): requests[index].model for index, *_ in asked}
        (model, *others) = models.values()
        batch = getattr(model, "batch", None)
        if len(asked) > 1 and batch and not others:
            return self._batch(requests, asked, ledger, batch)

        def one(item):
            index, sent, left_out, grant = item
            return self._one(requests[index], sent, left_out, grant, ledger)

        return self.in_threads(one, asked, parallel=getattr(model, "parallel", True))

    def _batch(self, requests, asked, ledger, batch):
        for index, *_ in asked:
            self._begin(requests[index])
        start = time.monotonic()
        try:
            with self._turn(requests[asked[0][0]].model, ledger):
                values = list(batch([sent for _, sent, *_ in asked]))
            if len(values) != len(asked):
                raise ModelFailed(f"the batch has {len(values)} replies to {len(asked)} prompts")
        except Exception as error:
            values = [error] * len(asked)
        seconds = (time.monotonic() - start) / len(asked)
        return [
            self._settled(requests[index], sent, left_out, grant, ledger, value, seconds)
            for (index, sent, left_out, grant), value in zip(asked, values, strict=True)
        ]

    def _one(self, request, sent, left_out, grant, ledger):
        self._begin(request)
        start = time.monotonic()
        try:
            with self._turn(request.model, ledger):
                value = request.model(sent)
        except Exception as error:
            value = error
        return self._settled(request, sent, left_out, grant, ledger, value, time.monotonic() - start)

    @contextlib.contextmanager
    def _turn(self, model: Model, ledger: Ledger) -> Iterator[None]:
        """One of the places of the tree, and of a model that is not to be called by several threads its only one.

        Raises:
            Exhausted: time ran out in the queue.
        """
        with contextlib.ExitStack() as places:
            if not getattr(model, "parallel", True):
                places.enter_context(self._turns.setdefault(id(model), threading.Lock()))
            places.enter_context(self._gate)
            ledger.check_time()
            if self._interrupt:
                raise self._interrupt
            try:
                yield
            except BaseException as fault:
                if not isinstance(fault, Exception):  # Ctrl-C in one of several threads ends them all
                    self._interrupt = fault
                raise

    def _settled(self, request, sent, left_out, grant: Grant, ledger, value, seconds):
        """Books a call and writes it down."""
        extra = {"seconds": seconds} | ({"left_out": left_out} if request.kind == "turn" else {})
        try:
            if isinstance(value, Exception):
                raise value
            reply = as_reply(value)
        except (PromptTooLong, Exhausted) as fault:
            ledger.settle(grant)
            return self._failed(request, fault, **extra)
        except Exception as error:
            ledger.settle(grant, calls=1)
            return self._failed(request, _failure(request.model, error), **extra)
        prompt, guessed = _or(reply.prompt_tokens, lambda: tokens_of(request.model, sent))
        said, guessed_too = _or(reply.completion_tokens, lambda: tokens_of_text(request.model, reply.text or ""))
        ledger.settle(grant, calls=1, tokens=prompt + said)
        extra |= {"prompt_tokens": prompt, "completion_tokens": said, "estimated": guessed or guessed_too}
        extra |= {} if reply.cost is None else {"cost": reply.cost}
        if request.kind == "call" and not (reply.text or "").strip():
            return self._failed(request, ModelFailed("the model gave no text"), **extra)  # which may have cost much
        self._write(request, reply=reply.text, **extra)
        return reply

    def _remembered(self, request: Request, reply: Reply) -> Reply:
        self._write(request, reply=reply.text, memo=True)
        return reply

    def _failed(self, request: Request, fault: Exception, **extra: Any) -> Exception:
        if not isinstance(fault, ModelFailed):
            extra["refused"] = fault.status if isinstance(fault, Exhausted) else TOO_LONG
        self._write(request, error=str(fault), **extra)
        return fault

    def as_recorded(self, path: Path, cell: Cell) -> Cell:
        """A cell that a clock ended with what it had printed by then in the recorded run; any other as it is."""
        event = self._recorded.get(path)
        if event is None or not (cell.error or "").endswith(CUT):
            return cell
        return dataclasses.replace(cell, stdout=event["stdout"])

    def _is_recorded(self, request: Request) -> bool:
        event = self._recorded.get(request.path)
        return event is not None and all(event[name] == value for name, value in _held(request, event).items())

    def _again(self, request: Request, ledger: Ledger) -> Any:
        """What a recorded event says; it is booked and written down once more."""
        event = self._recorded[request.path]
        kept = {key: value for key, value in event.items() if key not in {"kind", "path", "model", *request.shown}}
        if "refused" not in event and not event.get("memo"):
            tokens = event.get("prompt_tokens", 0) + event.get("completion_tokens", 0)
            ledger.settle(Grant(0, 0), calls=1, tokens=tokens)  # it was paid when there was room for it
        self._write(request, **kept)
        if "refused" in event:
            too_long = event["refused"] == TOO_LONG
            return PromptTooLong(event["error"]) if too_long else Exhausted(event["refused"], event["error"])
        return ModelFailed(event["error"]) if "error" in event else Reply(event["reply"])

    def _begin(self, request: Request) -> None:
        if request.kind == "call":
            report(self._on_start, {"kind": request.kind, "path": list(request.path), **request.shown})

    def _write(self, request: Request, **fields: Any) -> None:
        memo = {"memo": False} if request.kind == "call" else {}
        fields = {**memo, "model": name_of(request.model), **fields}
        event = self.trace.add(request.kind, request.path, **_held(request, fields), **fields)
        if request.kind == "call":
            report(self._on_end, dict(event))


def _held(request: Request, event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an event shows of its request: little of a call that cost nothing, of which there is no end."""
    if request.kind == "call" and ("refused" in event or event.get("memo")):
        return {name: shorten(value, FREE) for name, value in request.shown.items()}
    return request.shown


def _failure(model: Model, error: Exception) -> ModelFailed:
    if isinstance(error, ModelFailed):
        return error
    failed = ModelFailed(f"{name_of(model)} failed: {type(error).__name__}: {str(error)[:500]}")
    failed.__cause__ = error
    return failed


def _or(count: int | None, otherwise: Callable[[], tuple[int, bool]]) -> tuple[int, bool]:
    return otherwise() if count is None else (count, False)
