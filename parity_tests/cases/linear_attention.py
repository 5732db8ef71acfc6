"""Linear attention with a matrix state: forms, starts, resets, extreme gates, lengths beside chunks; and its mixers."""

from collections.abc import Iterator

import numpy as np

from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from parity_tests.cases.modules import mixer_in_segments
from parity_tests.cases.ops import draw, op
from parity_tests.compare import Case

B, H, K, V = 2, 2, 3, 4


def cases() -> Iterator[Case]:
    yield op("chunks.sums_between", "", draw(x_CK=(B, 6, K)))
    for form, length, chunk in (
        ("recurrent", 7, 3),
        ("chunked", 1, 64),
        ("chunked", 7, 4),
        ("chunked", 21, 64),
    ):
        what = f"{form}, {length} tokens, chunks of {chunk}"
        options = {"form": form, "chunk": chunk}
        yield op("gla.gated_linear_attention", what, gla_inputs(length), **options)
        yield op("delta_rule.gated_delta_rule", what, delta_inputs(length), **options)
    for path, inputs in (("gla.gated_linear_attention", gla_inputs), ("delta_rule.gated_delta_rule", delta_inputs)):
        yield op(path, "chunked beside recurrent, 11 tokens", inputs(11), mirror_options={"form": "recurrent"}, chunk=4)
    gla_mixer, delta_mixer = GLAConfig(conv_kernel=4).small(), GatedDeltaConfig().small()
    for form in ("recurrent", "chunked"):
        yield mixer_in_segments(f"gla, {form}", gla_mixer.replace(form=form))
        yield mixer_in_segments(f"gated_delta, {form}", delta_mixer.replace(form=form))


def gla_inputs(length: int) -> dict[str, np.ndarray]:
    """Gates of 0, of -1000 and between; a start, and resets."""
    shapes = {"q_BTHK": (B, length, H, K), "k_BTHK": (B, length, H, K), "v_BTHV": (B, length, H, V)}
    arrays = draw(**shapes, log_decay_BTHK=(B, length, H, K), s0_BHKV=(B, H, K, V))
    arrays["log_decay_BTHK"] = -np.abs(arrays["log_decay_BTHK"])
    arrays["log_decay_BTHK"][0, 1::5, 0] = -1000
    arrays["log_decay_BTHK"][1, 2::5] = 0
    return arrays | {"reset_BT": np.arange(length) == np.array([[2], [5]])}


def delta_inputs(length: int) -> dict[str, np.ndarray]:
    """The same with keys of length 1 and corrections up to twofold, none and whole ones among them."""
    arrays = gla_inputs(length)
    arrays["log_decay_BTH"] = arrays.pop("log_decay_BTHK")[..., 0]
    arrays["k_BTHK"] /= np.linalg.norm(arrays["k_BTHK"], axis=-1, keepdims=True)
    arrays["k_BTHK"][0, 3::4] = 0
    arrays["beta_BTH"] = 2 / (1 + np.exp(draw(x=(B, length, H))["x"]))
    arrays["beta_BTH"][0, ::3] = 2
    arrays["beta_BTH"][1, ::3], arrays["beta_BTH"][1, 1::3] = 0, 1
    return arrays
