"""A kind of data from outside, and a run on it: the target is the token ``delay`` places earlier."""

import dataclasses

from mhc_jax.models import mhc_ssm
from mhc_jax.registry import register
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.generated import GeneratedConfig
from train.data.kind import IGNORE
from train.objectives.cross_entropy import CrossEntropyConfig


@register("data", "delayed_copy")
@dataclasses.dataclass(frozen=True)
class DelayedCopyConfig(GeneratedConfig):
    """Uniformly drawn tokens; the first targets of a row are unknowable and do not count."""

    tokens: int = 8
    delay: int = 3

    def validate(self):
        super().validate()
        self.require_counts(1, "tokens", "delay")
        self.require(self.delay < self.seq_len, f"delay {self.delay} leaves no target in seq_len {self.seq_len}")

    def vocab_size(self):
        return self.tokens

    def draw(self, random, rows):
        inputs = random.integers(self.tokens, size=(rows, self.seq_len))
        targets = inputs.copy()
        targets[:, self.delay :] = inputs[:, : -self.delay]
        targets[:, : self.delay] = IGNORE
        return {"inputs": inputs, "targets": targets}


@register("config", "delayed_copy")
def delayed_copy() -> RunConfig:
    """The token three places back, with diagonal SSMs over four streams."""
    return RunConfig(
        name="delayed_copy",
        model=mhc_ssm("mhc", vocab_size=None, max_len=None, width=32, layers=2),
        data=DelayedCopyConfig(seq_len=32, batch_size=32),
        objective=CrossEntropyConfig(errors=True),
        optim=OptimConfig(lr=1e-2, warmup_steps=20),
        train=TrainConfig(steps=300, eval_every=100),
    )
