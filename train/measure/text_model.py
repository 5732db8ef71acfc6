"""A model over texts, as benchmarks ask one: for the likelihood of continuations, and for answers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.sampling import Sampling
from train.data.tokenizer import Tokenizer
from train.measure.likelihood import continuations, log_likelihoods

Pair = tuple[list[int], list[int]]
Progress = Callable[[int], None]


class TextModel:
    """A model and its tokenizer.

    Args:
        batch: texts that are computed at once.
    """

    def __init__(self, config: ModelConfig, params: Params, tokenizer: Tokenizer, batch: int):
        self.config, self.tokenizer = config, tokenizer
        self._params, self._batch = params, batch

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of both, cut where those of the context end; blanks at its end belong to the continuation, as in text."""
        encode, start = self.tokenizer.encode, self.tokenizer.start_id
        if not context:
            ids = encode(continuation)
            return (ids[:1], ids[1:]) if ids[:1] == [start] else ([start], ids)
        before = context.rstrip()
        if not before:
            return [start], encode(context + continuation)
        first = encode(before)
        return first, encode(context + continuation)[len(first) :]

    def loses(self, pair: Pair) -> bool:
        """Whether the context is too long, so that its beginning is not read."""
        return sum(map(len, pair)) > self.config.max_len + 1

    def log_likelihoods(self, pairs: Sequence[Pair], progress: Progress) -> list[tuple[float, bool]]:
        """See :func:`train.measure.likelihood.log_likelihoods`."""
        return log_likelihoods(self.config, self._params, pairs, self._batch, progress)

    def answers(
        self, prompts: Sequence[str], sampling: Sampling, until: Sequence[str], progress: Progress
    ) -> list[tuple[str, bool]]:
        """For each prompt its continuation up to the end of a text or any of ``until``, and whether the prompt was cut.

        Args:
            sampling: of which ``max_new_tokens``, fewer than ``max_len``, leave room for the prompt.
        """
        tokenizer = self.tokenizer
        size = min(tokenizer.vocab_size, self.config.vocab_size)
        sampling = sampling.replace(eos_id=tokenizer.eos_id, vocab_size=size)
        room = self.config.max_len - sampling.max_new_tokens
        whole = [tokenizer.encode(prompt) or [tokenizer.start_id] for prompt in prompts]
        found: list[tuple[str, bool]] = [("", False)] * len(prompts)

        def text(ids: Sequence[int]) -> str:
            return before(tokenizer.decode([i for i in ids if i != tokenizer.eos_id]), until)

        def done(ids: Sequence[int]) -> bool:
            said = tokenizer.decode([i for i in ids if i != tokenizer.eos_id])
            return tokenizer.eos_id in ids or len(before(said, until)) < len(said)

        order = sorted(range(len(prompts)), key=lambda index: -len(whole[index]))
        for at in range(0, len(order), self._batch):
            part = order[at : at + self._batch]
            ids = [whole[index][-room:] for index in part]
            key = self._keys(part) if sampling.temperature else None
            new = continuations(self.config, self._params, ids, sampling, self._batch, key=key, done=done)
            for index, row in zip(part, new):
                found[index] = text(row), len(whole[index]) > room
            progress(len(part))
        return found

    def _keys(self, indices: Sequence[int]) -> jax.Array:
        """One for each prompt, and more to fill the batch."""
        filled = [*indices, *[indices[-1]] * (self._batch - len(indices))]
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.asarray(filled))


def before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of those that stop it."""
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
