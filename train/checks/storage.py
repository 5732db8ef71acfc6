"""Saving: a model that is written and read again gives the same logits, bit by bit."""

import tempfile
from pathlib import Path

import mhc_jax
from train.checks.finding import Finding
from train.checks.subject import Subject


def saved(subject: Subject) -> list[Finding]:
    """The configuration and the logits after :func:`mhc_jax.save` and :func:`mhc_jax.load`."""
    with tempfile.TemporaryDirectory() as folder:
        mhc_jax.save(Path(folder, "model"), subject.model, subject.params)
        model, params = mhc_jax.load(Path(folder, "model"))
    again = subject.logits(params, subject.tokens_BT)
    wrong, same = int((again != subject.output.logits_BTV).sum()), model == subject.model
    return [
        Finding("saved, configuration", "the same" if same else "another", "the same", same),
        Finding("saved, logits", f"{wrong} of {again.size:,} differ", "bitwise equal", wrong == 0),
    ]
