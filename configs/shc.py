"""SHC on FineWeb10B: repaired, without streams, the published network, which learns to see the future; its student.

The published network is trained because its name asks for that, with its rank selection off, which has it fail. What it
minimises is not the loss of a language model: score it by the loss of the last token of every prefix.
"""

import itertools

from configs.base import fineweb10b, offer
from mhc_jax.models import shc
from mhc_jax.models.shc import SIZES, Form, Size
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.stack import Execution
from train.config import RunConfig

# Sequences in an update, updates, peak rate.
_BUDGETS: dict[Size, tuple[int, int, float]] = {
    "500m": (128, 19073, 4e-4),
    "1b": (256, 50000, 2e-4),
    "3b": (512, 50000, 2e-4),
    "7b": (1024, 50000, 3e-4),
}
_FORMS: dict[Form, tuple[str, str]] = {
    "default": ("", "streams that sparse mixtures of orthogonal matrices mix"),
    "plain": ("_plain", "without streams, a LLaMA"),
    "original": ("_original", "as published, without rank selection; its tokens see later ones"),
}


def _run(name: str, size: Size, form: Form) -> RunConfig:
    batch, updates, rate = _BUDGETS[size]
    changes = {"max_len": None, "execution": Execution(policy="bfloat16", remat="block")}
    if form == "original":
        # Its 32,000 token ids belong to a tokenizer that is not free.
        changes |= {"vocab_size": None, "adaptive_rank": False, "see_future": True}
    return fineweb10b(name, shc(size, form, **changes), batch, updates, rate, warmup=2000)


def _student(name: str) -> RunConfig:
    """The size and the budget of the published student, with time steps that remember; any teacher's vocabulary."""
    sizes = {"vocab_size": None, "max_len": None, "width": 768, "layers": 12}
    parts = {"positions": "none", "norm": LayerNormConfig(), "mixer": SelectiveSSMConfig(), "mlp": None}
    config = fineweb10b(name, LMConfig(**sizes, **parts), 32, 10000, rate=1e-4, warmup=500)
    return config.replace(data=config.data.replace(seq_len=1024))


offer(
    "shc_student",
    "The student of SHC's distillation, a selective state-space model: python -m train.distill.",
    _student,
)
for _size, _form in itertools.product(SIZES, _FORMS):
    _suffix, _what = _FORMS[_form]
    offer(f"shc_{_size}{_suffix}", f"SHC {_size.upper()}: {_what}.", _run, _size, _form)
