"""The forward pass: its shape, its first loss, and that no token sees a later one."""

import math

import numpy as np

from train.checks.finding import Finding
from train.checks.subject import Subject

# Of the first loss, beyond what the spread of the first logits explains.
SLACK = 0.15


def logits(subject: Subject) -> list[Finding]:
    """Shape and finiteness of the logits."""
    found, wanted = subject.output.logits_BTV, (*subject.tokens_BT.shape, subject.model.vocab_size)
    finite = int((~np.isfinite(found)).sum())
    return [
        Finding("logits, shape", str(found.shape), str(wanted), found.shape == wanted),
        Finding("logits, finite", f"{finite} are not", "all", finite == 0),
    ]


def first_loss(subject: Subject) -> list[Finding]:
    """The loss of fresh parameters on random targets, which knows nothing: ln V, and what the logits' spread adds."""
    logits_BTV, targets_BT = subject.logits(subject.initial, subject.tokens_BT), subject.batch["targets"]
    logits_BTV = logits_BTV.astype(np.float64)
    taken_BT1 = np.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
    with np.errstate(invalid="ignore"):  # a loss of NaN is the finding
        loss = float((np.logaddexp.reduce(logits_BTV, axis=-1) - taken_BT1[..., 0]).mean())
    least, std = math.log(subject.model.vocab_size), subject.model.first_logit_std
    slack = SLACK + 3 * std / math.sqrt(targets_BT.size)
    low, high = least - slack, least + std**2 / 2 + slack
    return [Finding("first loss, near ln V", f"{loss:.3f}", f"{low:.2f} to {high:.2f}", low <= loss <= high)]


def causality(subject: Subject) -> list[Finding]:
    """Later tokens replaced: all outputs before them stay bitwise as they are, and those after them change."""
    if not subject.model.causal:
        return [Finding.unchecked("causality", "by its configuration tokens see later ones")]
    tokens_BT, place = subject.tokens_BT, subject.tokens_BT.shape[1] // 2
    other_BT = np.array(tokens_BT)
    other_BT[:, place:] = (other_BT[:, place:] + 1) % subject.model.vocab_size
    before, after = (subject.logits(subject.params, x) for x in (tokens_BT, other_BT))
    changed_T = (before != after).any(axis=(0, 2))
    early, late = int(changed_T[:place].sum()), int(changed_T[place:].sum())
    return [
        Finding("causality, before a change", f"{early} of {place} differ", "bitwise equal", early == 0),
        Finding(
            "causality, from it on", f"{late} of {len(changed_T) - place} differ", "all", bool(changed_T[place:].all())
        ),
    ]
