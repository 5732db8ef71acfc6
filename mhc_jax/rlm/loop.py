"""The recursive language model: a question about a context of any length (Zhang et al., arXiv 2512.24601)."""

import contextlib
import copy
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

from mhc_jax.config import ConfigError
from mhc_jax.rlm import environments, protocol, saved
from mhc_jax.rlm.callbacks import Callback, CallbackRaised
from mhc_jax.rlm.calls import Calls
from mhc_jax.rlm.document import Document
from mhc_jax.rlm.environments.base import Environment
from mhc_jax.rlm.environments.host import check_data, check_names
from mhc_jax.rlm.ledger import Exhausted, Ledger
from mhc_jax.rlm.level import Level
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.memo import Memo
from mhc_jax.rlm.models import Model, ModelFailed, name_of
from mhc_jax.rlm.program import Conversation, Outcome, Program, Request, Result
from mhc_jax.rlm.saved import Keeper, State
from mhc_jax.rlm.subcalls import RESERVED
from mhc_jax.rlm.trace import Event, Trace, digest

CLOCK = time.monotonic


class RLM:
    """A model with an environment in which it works on its context.

    Several threads may ask at once. As a context manager it keeps one environment for completions after each other:
    ``context_0``, ``context_1`` and so on hold their contexts, ``history`` the questions and answers so far.

    Args:
        model: a function from messages to a text or a :class:`mhc_jax.rlm.Reply`.
        sub_model: for everything below the root; ``model`` if omitted.
        environment: ``"monty"``, ``"monty+bwrap"``, ``"bwrap"``, or a function of limits that makes one.
        limits: of each completion, whole trees of calls counted.
        tools: functions and values that code finds under these names, at every depth.
        system_prompt: instead of :data:`mhc_jax.rlm.protocol.SYSTEM`, with the same fields in braces.
        memo: answer sub-calls of the same model and prompt from memory, over completions too.
        seed: of random numbers in an environment that is named.
        compaction: characters of a conversation above which the model is asked to summarise it; None for never.
        on_iteration_start, on_iteration_complete: called with the ``path`` of each turn of each level, and at its end
            with its ``reply``, ``error`` and ``answer``.
        on_subcall_start, on_subcall_complete: called with the event of each sub-call, in the thread that makes it. What
            a callback raises ends the completion.

    Raises:
        ConfigError: limits, tools, callbacks or an environment that cannot be.
    """

    def __init__(
        self,
        model: Model,
        sub_model: Model | None = None,
        environment: str | Callable[[Limits], Environment] = "monty",
        limits: Limits = Limits(),
        tools: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        memo: bool = False,
        seed: int = 0,
        compaction: int | None = None,
        on_iteration_start: Callback | None = None,
        on_iteration_complete: Callback | None = None,
        on_subcall_start: Callback | None = None,
        on_subcall_complete: Callback | None = None,
    ):
        limits.validate()
        self._on_subcall = on_subcall_start, on_subcall_complete
        if not callable(model) or not (sub_model is None or callable(sub_model)):
            raise ConfigError("a model must be a function of messages; see mhc_jax.rlm.adapters for others")
        if taken := [name for name in RESERVED if name in (tools or {})]:
            raise ConfigError(f"a tool cannot be called {taken[0]!r}, which is a name of the scaffold")
        try:
            check_names(tools or {})
            check_data({name: tool for name, tool in (tools or {}).items() if not callable(tool)})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a tool must be a function or data under a name of its own: {error}") from None
        for callback in (on_iteration_start, on_iteration_complete, *self._on_subcall):
            if callback is not None and (not callable(callback) or inspect.iscoroutinefunction(callback)):
                raise ConfigError(f"a callback must be a function, and not an async one, which {callback!r} is not")
        if compaction is not None and compaction < 1:
            raise ConfigError(f"compaction must be at least 1 character, got {compaction}")
        self._limits, self._seed = limits, seed
        self._environment_name = environment if isinstance(environment, str) else name_of(environment)
        if isinstance(environment, str):
            make = functools.partial(environments.make, environment, limits, seed)
            make()  # names one that does not exist
        else:
            make = functools.partial(environment, limits)
        self._memo = Memo() if memo else None
        self._program = Program(
            model,
            model if sub_model is None else sub_model,
            make,
            limits,
            dict(tools or {}),
            system_prompt,
            compaction,
            on_iteration_start,
            on_iteration_complete,
        )
        self._keeps = False
        self._environment: Environment | None = None
        self._history: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._keeps, self._history = True, []
        return self

    def __exit__(self, *_: object) -> None:
        self._keeps = False
        environment, self._environment = self._environment, None
        if environment is not None:
            environment.close()

    def completion(
        self, context: Any, question: str | None = None, *, state: str | PathLike[str] | None = None
    ) -> Result:
        """The answer to a question about a context.

        Args:
            context: a text, a list, a dictionary or a :class:`mhc_jax.rlm.Document`. A text is never taken for a path.
            question: if None, it is part of the context.
            state: file that the run is saved to after each turn, for :meth:`resume`; an answer removes it.

        Raises:
            ConfigError: a context of another type, or a state file that exists or cannot be written.
            SandboxUnavailable: the environment cannot be had; nothing was asked.
            SandboxDied: the environment is gone; ``trace`` of the exception holds what happened.
            PromptTooLong: the model has no room for the first turn.
        """
        context = checked(context)
        if state is not None:
            saved.check_free(state)
        return self.run(question, context, path=state)

    def resume(self, state: str | PathLike[str]) -> Result:
        """Goes on with a completion that was interrupted, from its state file. What was replied is not asked again.

        Raises:
            ConfigError: not such a file, or one of other settings.
            SandboxUnavailable, SandboxDied, PromptTooLong: as :meth:`completion`.
        """
        if self._environment is not None:
            raise ConfigError("a saved run goes on as the first completion of a session")
        found = saved.read(state)
        for name, value in self._settings().items():
            if found.settings.get(name) != value:
                raise ConfigError(f"{state} was saved with {name} {found.settings.get(name)!r}; this one has {value!r}")
        self._history = found.history
        return self.run(found.question, found.context, path=state, found=found)

    def _settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on; limits may be raised in between."""
        program = self._program
        return {
            "environment": self._environment_name,
            "seed": self._seed,
            "model": name_of(program.model),
            "sub_model": name_of(program.sub_model),
            "tools": sorted(program.tools),
        }

    def run(
        self,
        question: str | None,
        context: Any,
        *,
        path: str | PathLike[str] | None = None,
        found: State | None = None,
        recorded: Mapping[tuple[int, ...], Event] | None = None,
    ) -> Result:
        """A completion from its start, from ``found``, or with the replies that are recorded."""
        trace, talk, replies = Trace(), Conversation(), dict(recorded or {})
        ledger = Ledger.of(self._limits, CLOCK, elapsed=found.elapsed if found else 0.0)
        if found:
            replies = found.replies()
            if found.has_session:
                trace, talk = found.trace(), found.talk
                ledger.settle(ledger.reserve(0), calls=trace.usage().calls, tokens=trace.usage().tokens)
                if self._memo:
                    self._memo.recall(trace.events)
        level = Level(self._program, Calls(self._limits, trace, replies, *self._on_subcall), (), ledger, self._memo)
        try:
            if self._limits.max_depth == 0:
                outcome = self._plain(level, question, context)
            else:
                outcome = self._turns(level, question, context, talk, path, found)
        except CallbackRaised as raised:
            raise raised.error from None
        except Exception as error:
            error.trace = trace
            raise
        if self._keeps:
            self._history.append({"question": question, "answer": outcome.answer})
        return Result(outcome.answer, outcome.status, trace.usage(), trace, outcome.reason)

    def _plain(self, level: Level, question: str | None, context: Any) -> Outcome:
        """No environment at all: the context is in the prompt."""
        level.begin(question, context, limits=self._limits.to_dict(), **self._settings())
        text = context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)
        messages = [{"role": "user", "content": text if question is None else f"{question}\n\n{text}"}]
        try:
            shown = {"role": "plain", "messages": messages}
            reply = level.calls.ask(Request(level.model, messages, (1,), shown, "turn"), level.ledger)
            return level.end(Outcome("answered", reply.text))
        except ModelFailed as fault:
            return level.end(Outcome("errors", None, str(fault)))
        except Exhausted as refused:
            return level.end(Outcome(refused.status, None, str(refused)))

    def _turns(
        self,
        level: Level,
        question: str | None,
        context: Any,
        talk: Conversation,
        path: str | PathLike[str] | None,
        found: State | None,
    ) -> Outcome:
        """Opens the environment and runs the level in it."""
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(self._opened(level, context, found))
            about = found.about if found else self._about(context)
            if not (found and found.has_session):
                level.begin(question, context, limits=self._limits.to_dict(), **self._settings())
            keeper = None
            if path is not None:
                state = found or State(self._settings(), question, context, about, list(self._history), [])
                keeper = stack.enter_context(Keeper(Path(path), state, level.calls.trace, environment, new=not found))
                keeper.keep(talk)
                level.saved = keeper.keep
            outcome = level.end(level.run(environment, question, about, talk))
            if keeper:
                keeper.done = outcome.answer is not None
            return outcome

    @contextlib.contextmanager
    def _opened(self, level: Level, context: Any, found: State | None) -> Iterator[Environment]:
        """The environment, with the context and the functions of this completion; closed at the end, unless kept."""
        functions, names = level.functions, {"context": context}
        if self._keeps:
            self._level, names = level, names | {"history": copy.deepcopy(self._history)}
            functions = {name: self._passed(name, function) for name, function in functions.items()}
        environment = self._environment
        try:
            if environment is not None:
                environment.bind(names)
            else:
                environment = self._program.environment()
                if found and found.has_session:
                    environment.load(found.dump, functions)
                else:
                    environment.start({**level.values, **names}, functions)
                self._environment = environment if self._keeps else None
            if self._keeps and not (found and found.has_session):
                environment.execute(f"context_{len(self._history)} = context")
            yield environment
        finally:
            if environment is not None and environment is not self._environment:
                environment.close()

    def _passed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of whichever completion runs; an environment that is kept is given functions once."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            return self._level.functions[name](*arguments, **options)

        return call

    def _about(self, context: Any) -> str:
        """The context in words, and those before it."""
        count = len(self._history) if self._keeps else 0
        earlier = f"; those before it are context_0 to context_{count - 1}, and history holds what was answered"
        return protocol.described(context) + (earlier if count else "")


def checked(context: Any) -> Any:
    """A context that can be bound. Raises ConfigError for another."""
    if isinstance(context, Document):
        return context.text
    if not isinstance(context, str | list | dict):
        raise ConfigError(f"a context is a text, a list, a dictionary or a Document, not {type(context).__name__}")
    try:
        check_data({"context": context})
        digest(context)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a context holds Unicode texts, numbers, lists and dictionaries: {error}") from None
    return context
