"""RLM-mHC on FineWeb10B, repaired, without streams, and with the published network, schedule and batch.

The published trainer counts its 50,000 steps in micro-batches of eight sequences, four to an update, but decays the
rate by updates: it ends after 12,500 updates, long before its cosine does. The repaired runs count updates in both.
"""

import itertools

from configs.base import fineweb10b, offer
from mhc_jax.models import rlm
from mhc_jax.models.rlm import SIZES, Form, Size
from mhc_jax.nn.stack import Execution
from train.config import RunConfig

_EXECUTION = Execution(policy="bfloat16", remat="block")
# Parameters of the repaired model, sequences in an update, updates, peak rate.
_BUDGETS: dict[Size, tuple[str, int, int, float]] = {
    "small": ("125M", 128, 19073, 6e-4),
    "base": ("1.3B", 256, 50000, 2e-4),
    "large": ("7B", 1024, 50000, 3e-4),
}
_FORMS: dict[Form, tuple[str, str]] = {
    "default": ("", "streams through depth by dynamic mHC"),
    "plain": ("_plain", "without streams, a LLaMA"),
    "original": ("_original", "as published, one linear mHC layer before each branch"),
    "folded": ("_folded", "as published, with each mHC layer computed as one matrix"),
}


def _run(name: str, size: Size, form: Form) -> RunConfig:
    _, batch, updates, rate = _BUDGETS[size]
    model = rlm(size, form, max_len=None, execution=_EXECUTION)
    config = fineweb10b(name, model, batch, updates, rate, warmup=1000)
    if form in ("default", "plain"):
        return config
    return config.replace(
        model=config.model.replace(vocab_size=None),  # its 32,000 token ids belong to a tokenizer that is not free
        data=config.data.replace(batch_size=32),
        optim=config.optim.replace(lr=1e-4, warmup_end="after_zero", schedule="cosine_floored", decay_steps=50000),
        train=config.train.replace(steps=12500, accumulate=4),
    )


for _size, _form in itertools.product(SIZES, _FORMS):
    _suffix, _what = _FORMS[_form]
    _of = "" if _form in ("original", "folded") else f" of {_BUDGETS[_size][0]} parameters"
    offer(f"rlm_{_size}{_suffix}", f"RLM-mHC {_size}{_of}: {_what}.", _run, _size, _form)
