"""Selective state spaces: Mamba, and the student of SHC, over one stream and over several."""

from collections.abc import Iterator

from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from parity_tests.systems.base import System
from parity_tests.systems.gpt import tiny_gpt


def systems() -> Iterator[System]:
    plain = {"positions": "none", "mlp": None}
    mamba = SelectiveSSMConfig(state=3, chunk=3, form="chunked")
    yield System("mamba", tiny_gpt(mixer=mamba, norm=RMSNormConfig(), **plain), decoded=True)
    student = SelectiveSSMConfig(state=2, expand=1, dt_rank=3, bias=True, conv_bias=False, init="original")
    yield System("mamba over mhc, other sizes", tiny_gpt("mhc", mixer=student, norm=LayerNormConfig(), **plain))
