"""The session of RLM-mHC: a program, not the model, looks into long texts and asks about them.

It has the methods of the original: load, peek, search, llm_query, llm_batch, reset. Its results are repaired (windows
are exact, each handle is its own text, what does not fit is retrieved or refused); ``original=True`` gives those that
the original gives. In both a text is never taken for a path.
"""

import concurrent.futures
import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from mhc_jax.config import Config, ConfigError
from mhc_jax.rlm.document import Document, windows
from mhc_jax.rlm.handles import Call, Handle, SearchResult
from mhc_jax.rlm.models import Model, ModelFailed, PromptTooLong, as_reply
from mhc_jax.rlm.nearest import Embed, Nearest, chosen, order

TAGS = ("<|context|>", "<|/context|>", "<|query|>", "<|/query|>", "<|response|>")
TEMPLATE = "<|context|>\n{context}\n<|/context|>\n\n<|query|>\n{query}\n<|/query|>\n\n<|response|>\n"
TOO_DEEP = "[MAX RECURSION DEPTH REACHED]"
# Tokens of the text that a result of a search shows.
SNIPPET = 100


class Tokenizer(Protocol):
    """What a session needs of one."""

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TooDeep(RuntimeError):
    """A query within queries, more than the session allows."""


@dataclasses.dataclass(frozen=True)
class SessionConfig(Config):
    """How a session cuts and how deep it goes.

    Attributes:
        max_recursion: queries within queries.
        context_window: tokens of a text that a query sees.
        chunk_size, overlap: tokens of a chunk, and of those that it shares with the one before.
        max_concurrent: queries of a batch at the same time.
    """

    max_recursion: int = 5
    context_window: int = 4096
    chunk_size: int = 4096
    overlap: int = 256
    max_concurrent: int = 4

    def validate(self):
        super().validate()
        self.require_counts(1, "max_recursion", "context_window", "max_concurrent")
        windows(0, self.chunk_size, self.overlap)


class Session:
    """Texts, and a model that is asked about them.

    Args:
        model: a function from messages to a text. Each query is one message, made from :data:`TEMPLATE`.
        tokenizer: with ``encode`` and ``decode``.
        embed: of tokens to a vector, for :meth:`search` and for texts longer than a query sees.
        config: sizes and bounds.
        original: give the results of the original: chunks that lie within others, windows in which overlaps are twice,
            the beginning of a text that is too long, a text in place of TooDeep, tags that are not escaped.

    Raises:
        ConfigError: a config that cannot be, no function for a model, or a tokenizer without these methods.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        embed: Embed | None = None,
        config: SessionConfig = SessionConfig(),
        *,
        original: bool = False,
    ):
        config.validate()
        if not callable(model):
            raise ConfigError(f"a model must be a function of messages, not {type(model).__name__}")
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise ConfigError(
                    f"a tokenizer must have the method {method}(), which {type(tokenizer).__name__} has not"
                )
        self._model, self._tokenizer, self._embed = model, tokenizer, embed
        self._config, self._original = config, original
        self._ids = itertools.count()
        self._depth = contextvars.ContextVar("depth", default=0)
        self.reset()

    def reset(self) -> None:
        """Forgets all texts and calls; handles from before are refused."""
        self._tokens: dict[int, list[int]] = {}
        self._nearest: dict[int, Nearest] = {}
        self._calls: list[Call] = []
        self._call_ids = itertools.count()

    @property
    def history(self) -> tuple[Call, ...]:
        """All queries since the last reset."""
        return tuple(self._calls)

    def load(self, source: str | Document) -> Handle:
        """Takes a text in, beside those that are loaded. Raises ConfigError for anything else."""
        text = (source if isinstance(source, Document) else Document(source)).text
        config, tokens = self._config, list(self._tokenizer.encode(text))
        handle = Handle(
            next(self._ids),
            len(tokens),
            len(self._cuts(len(tokens))),
            config.chunk_size,
            config.overlap,
            len(text),
        )
        self._tokens[handle.context_id] = tokens
        return handle

    def peek(self, ctx: Handle, start: int, end: int, decode: bool = True) -> str | list[int]:
        """The tokens from ``start`` to ``end``, as text or as they are; what lies outside of the text is empty."""
        tokens = self._of(ctx)
        start, end = max(start, 0), min(end, len(tokens))
        found = self._twice(tokens, start, end) if self._original else tokens[start : max(end, 0)]
        return self._tokenizer.decode(found) if decode else found

    def search(
        self, ctx: Handle, query: str, max_results: int = 10, similarity_threshold: float = 0.0
    ) -> list[SearchResult]:
        """The chunks nearest to a query, the nearest first. A text's vectors are computed once.

        Raises:
            ConfigError: a query of no tokens, or a session without ``embed``.
        """
        tokens, scores = self._of(ctx), self._scores(ctx, query)
        cuts = self._cuts(len(tokens))
        return [
            SearchResult(index, *cuts[index], scores[index], self._snippet(tokens, *cuts[index]))
            for index in order(scores)[: max(max_results, 0)]
            if scores[index] >= similarity_threshold
        ]

    def llm_query(self, ctx: Handle, prompt: str, context_window: int | None = None) -> str:
        """The reply of the model about a text.

        It sees the whole text where that has no more than ``context_window`` tokens, otherwise the chunks nearest to
        the prompt, in their order (in the original the beginning of the text).

        Raises:
            ConfigError: a text that is longer, in a session without ``embed``.
            PromptTooLong: the model has no room for the whole prompt.
            ModelFailed: it raised, or said nothing.
            TooDeep: the query was made within too many others.
        """
        with self._deeper() as reached:
            if reached > self._config.max_recursion:
                if self._original:
                    return TOO_DEEP
                raise TooDeep(f"{reached} queries within each other; max_recursion is {self._config.max_recursion}")
            return self._asked(self.prompt(ctx, prompt, context_window))

    def llm_batch(
        self, ctx: Handle, prompts: Sequence[str], context_window: int | None = None
    ) -> list[str | Exception]:
        """What :meth:`llm_query` gives for each prompt, at the same time; a fault in the place of its reply."""

        def one(prompt: str) -> str | Exception:
            try:
                return self.llm_query(ctx, prompt, context_window)
            except (ConfigError, PromptTooLong, ModelFailed, TooDeep) as fault:
                return fault

        workers = self._config.max_concurrent if getattr(self._model, "parallel", True) else 1
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            here = [contextvars.copy_context() for _ in prompts]  # a query of a batch is as deep as the batch
            return list(pool.map(lambda context, prompt: context.run(one, prompt), here, prompts))

    def prompt(self, ctx: Handle, prompt: str, context_window: int | None = None) -> str:
        """What the model is asked; see :meth:`llm_query`. Raises ConfigError."""
        tokens = self._of(ctx)
        window = self._config.context_window if context_window is None else context_window
        if window < 1:
            raise ConfigError(f"context_window must be at least 1, got {window}")
        if len(tokens) <= window or self._original:
            text = self._tokenizer.decode(tokens[:window])
        else:
            text = self._retrieved(ctx, prompt, window)
        return TEMPLATE.format(context=text, query=prompt) if self._original else prompt_of(text, prompt)

    def _retrieved(self, ctx: Handle, prompt: str, window: int) -> str:
        """The nearest chunks that fit together, in the order of the text."""
        if self._embed is None:
            raise ConfigError(
                f"the text has {ctx.total_tokens:,} tokens and a query sees {window:,}: give the session embed=, which"
                " chooses chunks, or a larger context_window"
            )
        tokens, cuts = self._of(ctx), self._cuts(ctx.total_tokens)
        near = chosen(self._scores(ctx, prompt), [end - start for start, end in cuts], window)
        if not near:
            raise ConfigError(f"a chunk has {self._config.chunk_size:,} tokens and a query sees {window:,}")
        return "\n[...]\n".join(self._tokenizer.decode(tokens[slice(*cuts[index])]) for index in near)

    def _asked(self, prompt: str) -> str:
        room = getattr(self._model, "context_length", None)
        if room is not None:
            room -= getattr(self._model, "max_completion_tokens", None) or 0
            if (length := len(self._tokenizer.encode(prompt))) > room:
                raise PromptTooLong(f"the prompt has {length:,} tokens and the model takes {room:,}")
        try:
            text = as_reply(self._model([{"role": "user", "content": prompt}])).text or ""
        except (PromptTooLong, ModelFailed, TooDeep):
            raise
        except Exception as error:
            raise ModelFailed(f"the model failed: {type(error).__name__}: {error}") from error
        if not text.strip():
            raise ModelFailed("the model gave no text")
        return text.strip()

    @contextlib.contextmanager
    def _deeper(self) -> Iterator[int]:
        """One query deeper; it is in the history from its beginning."""
        depth = self._depth.get() + 1
        before = self._depth.set(depth)
        call = Call(next(self._call_ids), depth, False)
        calls = self._calls
        calls.append(call)
        try:
            yield depth
            calls[calls.index(call)] = dataclasses.replace(call, completed=True)
        finally:
            self._depth.reset(before)

    def _of(self, ctx: Handle) -> list[int]:
        if ctx.context_id not in self._tokens:
            raise ConfigError("this handle is of another session, or from before a reset")
        return self._tokens[ctx.context_id]

    def _cuts(self, length: int) -> list[tuple[int, int]]:
        return windows(length, self._config.chunk_size, self._config.overlap, original=self._original)

    def _twice(self, tokens: list[int], start: int, end: int) -> list[int]:
        """The window as the original joins it: what two chunks share is there twice, and the end is cut."""
        found: list[int] = []
        for first, last in self._cuts(len(tokens)):
            found += tokens[max(start, first) : max(min(end, last), max(start, first))]
        return found[: max(end - start, 0)]

    def _snippet(self, tokens: list[int], start: int, end: int) -> str:
        return self._tokenizer.decode(tokens[start : min(end, start + SNIPPET)])

    def _scores(self, ctx: Handle, query: str) -> list[float]:
        """How near each chunk is to the query."""
        if self._embed is None:
            raise ConfigError("searching takes an embedding: give the session embed=")
        tokens, asked = self._of(ctx), list(self._tokenizer.encode(query))
        if not asked:
            raise ConfigError("the query is empty")
        if ctx.context_id not in self._nearest:
            chunks = [tokens[start:end] for start, end in self._cuts(len(tokens))]
            self._nearest[ctx.context_id] = Nearest(self._embed, chunks)
        return self._nearest[ctx.context_id].scores(asked)


def prompt_of(context: str, query: str) -> str:
    """The message of a query about a context: :data:`TEMPLATE`, whose tags neither of both can close."""
    return TEMPLATE.format(context=_escaped(context), query=_escaped(query))


def _escaped(text: str) -> str:
    """A text that does not end the part of the prompt in which it stands."""
    for tag in TAGS:
        text = text.replace(tag, f"< {tag[1:]}")
    return text
