"""Requests beyond all measure, refused by arithmetic."""

import pytest

from mhc_jax.accounting import summary
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from train.devices import memory

MODEL = mhc_ssm(vocab_size=300, max_len=16, width=8, layers=2)


@pytest.mark.parametrize("copies", [1, memory.TRAINING])
def test_a_model_is_refused_when_its_parameters_do_not_fit_and_not_before(copies, monkeypatch):
    needed = 4 * copies * summary(MODEL).parameters
    monkeypatch.setattr(memory, "memory", lambda: needed)
    memory.check_memory(MODEL, copies)
    monkeypatch.setattr(memory, "memory", lambda: needed - 1)
    with pytest.raises(ConfigError, match="the largest is embed.tokens: choose a smaller --model.vocab-size"):
        memory.check_memory(MODEL, copies)
