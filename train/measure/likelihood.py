"""Log-probabilities of continuations, and continuations, of many texts of unequal lengths by few programs."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.decode import stream
from mhc_jax.functional import Params, bind, hidden, precision
from mhc_jax.nn.model import ModelConfig
from mhc_jax.sampling import Sampling

Tokens = tuple[int, ...]

# The shortest length that texts are padded to, and the factor from one number of scored tokens to the next.
SHORTEST, WIDER = 32, 8
# New tokens between two looks at the texts so far.
PIECE = 16


def lengths(limit: int) -> list[int]:
    """Lengths that texts are padded to: powers of two and 1.5 times them, so that a third is wasted at most."""
    found, n = {limit}, min(SHORTEST, limit)
    while n < limit:
        found |= {n, min(n * 3 // 2, limit)}
        n *= 2
    return sorted(found)


def fitting(size: int, sizes: Sequence[int]) -> int:
    """The least of the increasing ``sizes`` that is not below ``size``."""
    return next(s for s in sizes if s >= size)


def log_likelihoods(
    config: ModelConfig,
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, bool]]:
    """For each context and continuation, log p(continuation | context) in nats, and whether it is the greedy one.

    Of longer texts the last ``max_len + 1`` tokens count. Pairs that differ in their last token alone, as answers A to
    D do, are computed together.

    Args:
        pairs: neither part is empty.
        batch: rows that are computed at once.
        progress: told the number of pairs whenever some are done.
    """
    rows: dict[tuple[Tokens, int], list[int]] = defaultdict(list)
    ends = []
    for index, (context, continuation) in enumerate(pairs):
        tokens = tuple(context)[-config.max_len :] + tuple(continuation)
        tokens = tokens[-(config.max_len + 1) :]
        rows[tokens[:-1], min(len(continuation), len(tokens) - 1)].append(index)
        ends.append(tokens[-1])
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    choices = max(map(len, rows.values()), default=1)
    choices = choices if choices == 1 else -(-choices // 4) * 4
    for shape, group in _by_shape(config.max_len, list(rows)).items():
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            found = _scored(config, params, part, [[ends[i] for i in rows[row]] for row in part], batch, shape, choices)
            for row, values in zip(part, found):
                for index, value in zip(rows[row], values):
                    results[index] = value
                progress(len(rows[row]))
    return results


def _by_shape(max_len: int, rows: list[tuple[Tokens, int]]) -> dict[tuple[int, int], list[tuple[Tokens, int]]]:
    """The rows by padded length and number of scored places, longest first: memory runs out at once or never."""
    sizes, groups = lengths(max_len), defaultdict(list)
    for tokens, scored in sorted(rows, key=lambda row: -len(row[0])):
        T = fitting(len(tokens), sizes)
        places = 1
        while places < scored:
            places *= WIDER
        groups[T, min(places, T)].append((tokens, scored))
    return groups


def _scored(config, params, rows, ends, batch, shape, choices) -> Iterator[list[tuple[float, bool]]]:
    """For each row, the results with each of its last tokens."""
    T, K = shape
    inputs_BT, targets_BK = np.zeros((batch, T), np.int32), np.zeros((batch, K), np.int32)
    places_BK, counted_BK = np.zeros((batch, K), np.int32), np.zeros((batch, K), bool)
    ends_BC = np.zeros((batch, choices), np.int32)
    for b, ((tokens, scored), last) in enumerate(zip(rows, ends)):
        inputs_BT[b, : len(tokens)] = tokens
        # The places end with the row's last token, whose target is one of several.
        places_BK[b] = np.maximum(np.arange(len(tokens) - K, len(tokens)), 0)
        targets_BK[b, :-1] = inputs_BT[b, places_BK[b, 1:]]
        counted_BK[b, K - scored : K - 1] = True
        ends_BC[b, : len(last)] = last
    found = jax.device_get(_score(config, params, inputs_BT, places_BK, targets_BK, counted_BK, ends_BC))
    body_B, greedy_B, end_BC, greedy_BC = found
    for b, last in enumerate(ends):
        yield [(float(body_B[b] + end_BC[b, c]), bool(greedy_B[b] & greedy_BC[b, c])) for c in range(len(last))]


@functools.partial(jax.jit, static_argnums=0)
def _score(config, params, inputs_BT, places_BK, targets_BK, counted_BK, ends_BC):
    """Of each row: the sum of its targets' log-probabilities but the last, and whether all of those are greedy; and
    both for every choice of the last. Only these numbers leave the device.
    """
    hidden_BTD = hidden(config, params, inputs_BT).hidden_BTD
    with precision(config):
        logits_BKV = bind(config, params).logits(jnp.take_along_axis(hidden_BTD, places_BK[..., None], axis=1))
    norm_BK, best_BK = jax.nn.logsumexp(logits_BKV, axis=-1), jnp.argmax(logits_BKV, axis=-1)
    chosen_BK = jnp.take_along_axis(logits_BKV, targets_BK[..., None], axis=-1)[..., 0] - norm_BK
    end_BC = jnp.take_along_axis(logits_BKV[:, -1], ends_BC, axis=-1) - norm_BK[:, -1:]
    body_B = jnp.where(counted_BK, chosen_BK, 0).sum(-1)
    return body_B, jnp.all(~counted_BK | (best_BK == targets_BK), -1), end_BC, best_BK[:, -1:] == ends_BC


def continuations(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch: int,
    *,
    key: jax.Array | None = None,
    done: Callable[[Sequence[int]], bool] = lambda tokens: False,
) -> list[list[int]]:
    """New tokens of each prompt, up to an end of ``sampling``, which counts, or until all are ``done``.

    All are computed together, each as if it were alone.

    Args:
        prompts: at most ``batch``; none is empty, and each has room for the new tokens in ``max_len``.
        batch: rows that are computed.
        key: see :func:`mhc_jax.generate`.
        done: whether more tokens are of no use; asked every few tokens.
    """
    count = len(prompts)
    prompts = [*prompts, *[prompts[-1]] * (batch - count)]
    sizes = np.array([len(prompt) for prompt in prompts])
    # Padding, too, leaves room for the new tokens: a text beyond max_len would be computed anew for every token.
    T = fitting(sizes.max(), lengths(config.max_len - sampling.max_new_tokens))
    ids_BT = np.zeros((batch, T), np.int32)
    for b, prompt in enumerate(prompts):
        ids_BT[b, : len(prompt)] = prompt
    tokens = stream(config, params, ids_BT, sampling, lengths_B=sizes, key=key)
    new: list[list[int]] = [[] for _ in range(count)]
    while piece := list(itertools.islice(tokens, PIECE)):
        for token_B in jax.device_get(piece):
            for row, token in zip(new, token_B):
                row += [int(token)] if token >= 0 else []
        if all(map(done, new)):
            break
    return new
