"""Decoding: cached against whole passes, greedy against the likeliest tokens, draws against what they may be."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from mhc_jax import decode
from mhc_jax.sampling import Sampling
from train.checks.finding import Finding
from train.checks.subject import Subject, relative

# Of cached logits, over their root mean square.
ROUNDING = 1e-4
TOP_K, TOP_P = 5, 0.9
# By which a rounded logit, or sum of probabilities, may fall on the other side of a limit.
TIE = 1e-3


def decoding(subject: Subject) -> list[Finding]:
    """All of it, or why not."""
    if not subject.model.causal:
        return [Finding.unchecked("decoding", "by its configuration tokens see later ones")]
    length = subject.tokens_BT.shape[1]
    prompt_BT = subject.tokens_BT[:, : max(1, length // 2)]
    count = length + 1 - prompt_BT.shape[1]
    greedy = _continuing(subject, prompt_BT, Sampling(count, temperature=0.0))
    drawing = _continuing(subject, prompt_BT, Sampling(count, temperature=1.0, top_k=TOP_K, top_p=TOP_P))
    (ids_BL, lengths_B), (again_BL, _), (drawn_BL, _) = greedy(), greedy(), drawing()
    differ, new = int((ids_BL != again_BL).sum()), [int(x) - prompt_BT.shape[1] for x in lengths_B]
    whole = ids_BL.shape == (len(prompt_BT), length + 1) and (ids_BL[:, : prompt_BT.shape[1]] == prompt_BT).all()
    if not whole:
        return [Finding("generated, shape", str(ids_BL.shape), str((len(prompt_BT), length + 1)), False)]
    return [
        Finding("generated, new tokens", f"{min(new)} to {max(new)}", f"{count} in each row", {*new} == {count}),
        Finding("greedy, twice", f"{differ} ids differ", "the same ids", differ == 0),
        Finding.at_most("greedy, below likeliest", short_of_the_likeliest(*_seen(subject, ids_BL, count)), TIE),
        Finding.at_most("cached, off whole passes", _off_whole_passes(subject, prompt_BT.shape[1]), ROUNDING),
        _drawn(outside(*_seen(subject, drawn_BL, count))),
    ]


def _continuing(
    subject: Subject, prompt_BT: np.ndarray, sampling: Sampling
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """A program that gives prompts with their continuations, and the lengths of both."""
    program = subject.compiled(functools.partial(decode.generate_with_lengths, subject.model, sampling=sampling))
    return lambda: jax.device_get(program(subject.params, prompt_BT, key=jax.random.key(2)))


def _seen(subject: Subject, ids_BL: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that whole passes give for the last ``count`` tokens, (B, count, V), and those tokens (B, count)."""
    logits_BTV = subject.logits(subject.params, ids_BL[:, :-1]).astype(np.float64)
    return logits_BTV[:, -count:], ids_BL[:, -count:]


def _drawn(outside_BT: np.ndarray) -> Finding:
    wrong = int(outside_BT.sum())
    return Finding(
        f"drawn, top {TOP_K}, top-p {TOP_P}", f"{wrong} of {outside_BT.size} outside", "all inside", wrong == 0
    )


def short_of_the_likeliest(logits_BTV: np.ndarray, ids_BT: np.ndarray) -> float:
    """The most by which the logit of an id falls short of the greatest, in standard deviations of all."""
    taken_BT = np.take_along_axis(logits_BTV, ids_BT[..., None], axis=-1)[..., 0]
    return float((logits_BTV.max(-1) - taken_BT).max() / logits_BTV.std())


def outside(logits_BTV: np.ndarray, ids_BT: np.ndarray) -> np.ndarray:
    """Whether an id is none of the k likeliest, or none of the fewest of those that together reach p, (B, T)."""
    taken_BT1 = np.take_along_axis(logits_BTV, ids_BT[..., None], axis=-1)
    tie = TIE * logits_BTV.std()
    kth_BT1 = np.sort(logits_BTV, axis=-1)[..., -min(TOP_K, logits_BTV.shape[-1]), None]
    p_BTV = np.where(logits_BTV >= kth_BT1, np.exp(logits_BTV - logits_BTV.max(-1, keepdims=True)), 0)
    before_BT = np.where(logits_BTV > taken_BT1 + tie, p_BTV, 0).sum(-1) / p_BTV.sum(-1)
    return (taken_BT1 < kth_BT1 - tie)[..., 0] | (before_BT >= TOP_P + TIE)


def _off_whole_passes(subject: Subject, prompt: int) -> float:
    """Cached logits of a prompt and of single tokens after it, beside those of one pass."""
    tokens_BT = subject.tokens_BT
    extend = subject.compiled(functools.partial(decode.extend, subject.model))
    cache = decode.init_cache(subject.model, subject.params, len(tokens_BT), max_len=tokens_BT.shape[1])
    pieces = [tokens_BT[:, :prompt], *np.split(tokens_BT[:, prompt:], tokens_BT.shape[1] - prompt, axis=1)]
    found = []
    for piece in pieces:
        logits_BTV, cache = extend(subject.params, piece, cache)
        found.append(np.asarray(logits_BTV))
    return relative(np.concatenate(found, axis=1), subject.output.logits_BTV)
