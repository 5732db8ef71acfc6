"""Models of other makes as functions of messages: our own, pipelines of transformers, clients of the kind of OpenAI.

What they adapt is imported when they are used.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.rlm.models import Messages, PromptTooLong, Reply

# A prompt is padded to a multiple of so many tokens: programs are compiled once for each.
PADDED = 64


def chat(messages: Messages) -> str:
    """A conversation as plain text, which the next reply goes on from."""
    return "".join(f"{message['role'].capitalize()}: {message['content']}\n\n" for message in messages) + "Assistant:"


# What a model that goes on by itself writes next.
STOP = ("\nUser:", "\nSystem:", "\nAssistant:")


class FromGenerate:
    """A model of this project, by :func:`mhc_jax.generate`. See :func:`from_generate`."""

    parallel = False

    def __init__(
        self,
        config: Any,
        params: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 256,
        template: Callable[[Messages], str] = chat,
        stop: Sequence[str] = STOP,
        key: Any = None,
        name: str | None = None,
        **options: Any,
    ):
        from mhc_jax.sampling import Sampling

        self._eos = getattr(tokenizer, "eos_id", getattr(tokenizer, "eos_token_id", None))
        known = {"temperature": 0.0, "eos_id": self._eos, "vocab_size": getattr(tokenizer, "vocab_size", None)}
        self._sampling = Sampling.from_dict(known | options | {"max_new_tokens": max_new_tokens})
        self._sampling.validate()
        if max_new_tokens >= config.max_len:
            raise ConfigError(
                f"max_new_tokens {max_new_tokens} leaves no room for a prompt in max_len {config.max_len}"
            )
        self._config, self._params, self._tokenizer = config, params, tokenizer
        self._template, self._stop, self._key = template, tuple(stop), key
        self.name = name or type(config).__name__
        self.context_length, self.max_completion_tokens = config.max_len, max_new_tokens

    def __call__(self, messages: Messages) -> Reply:
        (found,) = self.batch([messages])
        if isinstance(found, Exception):
            raise found
        return found

    def batch(self, conversations: Sequence[Messages]) -> list[Reply | PromptTooLong]:
        """The reply to each, computed together; each is what it is alone."""
        rows = [self._tokenizer.encode(self._template(messages)) for messages in conversations]
        room = self.context_length - self.max_completion_tokens
        fits = [index for index, row in enumerate(rows) if 0 < len(row) <= room]
        found: list[Any] = [
            PromptTooLong(f"the prompt has {len(row):,} tokens, and {self.name} takes 1 to {room:,}") for row in rows
        ]
        if fits:
            for index, reply in zip(fits, self._replies([rows[index] for index in fits]), strict=True):
                found[index] = reply
        return found

    def _replies(self, rows: list[list[int]]) -> list[Reply]:
        import jax
        import numpy as np

        from mhc_jax.decode import generate_with_lengths

        lengths = [len(row) for row in rows]
        width = min(-(-max(lengths) // PADDED) * PADDED, self.context_length - self.max_completion_tokens)
        ids_BT = np.zeros((len(rows), width), np.int32)
        for row, ids in zip(ids_BT, rows, strict=True):
            row[: len(ids)] = ids
        key = jax.random.key(0) if self._key is None else self._key
        keys = jax.numpy.stack([jax.random.fold_in(key, zlib.crc32(np.int32(row).tobytes())) for row in rows])
        ids_BT, ends_B = generate_with_lengths(
            self._config, self._params, ids_BT, self._sampling, lengths_B=np.asarray(lengths), key=keys
        )
        ids_BT, ends_B = np.asarray(ids_BT), np.asarray(ends_B)
        return [self._reply(ids_BT[row, start:end], start) for row, (start, end) in enumerate(zip(lengths, ends_B))]

    def _reply(self, new: Any, prompt_tokens: int) -> Reply:
        ids = [int(token) for token in new]
        text = self._tokenizer.decode(ids[:-1] if ids and ids[-1] == self._eos else ids)
        for stop in self._stop:
            text = text.split(stop, 1)[0]
        return Reply(text.strip(), prompt_tokens, len(ids))

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def count_messages(self, messages: Messages) -> int:
        return self.count_tokens(self._template(messages))


def from_generate(config: Any, params: Any, tokenizer: Any, **options: Any) -> FromGenerate:
    """A model of this project.

    Args:
        config, params: the model, as from :func:`mhc_jax.load`.
        tokenizer: anything with ``encode`` and ``decode``; its ``eos_id`` or ``eos_token_id`` ends a reply and is no
            part of it, and no id beyond its ``vocab_size`` is produced.
        options: ``max_new_tokens`` (256), ``template`` (messages to a text; :func:`chat`), ``stop`` (texts that end a
            reply), ``key`` (of the draws, which depend on it and on the prompt alone), ``name``, and fields of
            :class:`mhc_jax.Sampling`; the temperature is 0 if nothing is said.

    Returns:
        A model that raises PromptTooLong for prompts that leave no room for ``max_new_tokens`` in ``config.max_len``.

    Raises:
        ConfigError: options out of range.
    """
    return FromGenerate(config, params, tokenizer, **options)


@dataclasses.dataclass
class FromPipeline:
    """A text-generation pipeline of transformers. See :func:`from_pipeline`."""

    pipe: Any
    options: dict[str, Any]
    parallel = False

    def __post_init__(self):
        self.name = str(getattr(self.pipe.model, "name_or_path", "") or "pipeline")
        self.context_length = getattr(self.pipe.model.config, "max_position_embeddings", None)
        self.max_completion_tokens = self.options.get("max_new_tokens")
        self._chats = bool(getattr(self.pipe.tokenizer, "chat_template", None))

    def __call__(self, messages: Messages) -> Reply:
        prompt = list(messages) if self._chats else chat(messages)
        (found,) = self.pipe(prompt, return_full_text=False, **self.options)
        text = found["generated_text"]
        text = text if isinstance(text, str) else text[-1]["content"]
        if not self._chats:
            for stop in STOP:
                text = text.split(stop, 1)[0]
        return Reply(text.strip(), self.count_messages(messages), self.count_tokens(text))

    def count_tokens(self, text: str) -> int:
        return len(self.pipe.tokenizer.encode(text))

    def count_messages(self, messages: Messages) -> int:
        if self._chats:
            text = self.pipe.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        else:
            text = chat(messages)
        return self.count_tokens(text)


def from_pipeline(pipe: Any, **options: Any) -> FromPipeline:
    """A text-generation pipeline of transformers.

    Args:
        pipe: ``transformers.pipeline("text-generation", ...)``; its tokenizer's chat template is used if there is one.
        options: of its call, as ``max_new_tokens=256``.
    """
    return FromPipeline(pipe, options)


@dataclasses.dataclass
class FromOpenAI:
    """A model behind a client of OpenAI's kind. See :func:`from_openai`."""

    client: Any
    name: str
    options: dict[str, Any]

    def __post_init__(self):
        self.max_completion_tokens = self.options.get("max_completion_tokens", self.options.get("max_tokens"))

    def __call__(self, messages: Messages) -> Reply:
        answer = self.client.chat.completions.create(model=self.name, messages=list(messages), **self.options)
        usage = getattr(answer, "usage", None)
        counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens", "cost"))
        return Reply(answer.choices[0].message.content, *counts)


def from_openai(client: Any, model: str, **options: Any) -> FromOpenAI:
    """A model behind anything with ``client.chat.completions.create``, with the counts that it reports.

    Args:
        client: which knows its address and key, and gives up by itself: a call under way is waited for.
        model: its name there.
        options: of each call, as ``temperature=0`` and ``max_completion_tokens=1000``.
    """
    return FromOpenAI(client, model, options)
