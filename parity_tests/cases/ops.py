"""Every function of ``mhc_jax.ops`` with its derivatives, against the same function in ``torch_ref.ops``."""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mhc_jax.ops.streams import Streams
from parity_tests.compare import Case
from parity_tests.frameworks import Arrays, Function, vjp_jax, vjp_torch
from torch_ref.ops import loss as torch_loss

B, T, N, D = 2, 7, 3, 5


def draw(scale: float = 1.0, /, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal float32 arrays, the same on every call."""
    rng = np.random.default_rng(3)
    return {name: np.asarray(scale * rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def op(
    path: str,
    what: str,
    inputs: Arrays,
    *,
    torch: Function | None = None,
    mirror_options: Mapping[str, Any] | None = None,
    positional: bool = False,
    as_streams: str = "h_BTND",
    covers: frozenset[str] = frozenset(),
    **options: Any,
) -> Case:
    """A case of ``ops.<path>``, called with ``inputs`` and ``options`` by keyword.

    Args:
        torch: stands in for a function that the mirror does not have.
        mirror_options: options that the mirror alone takes.
        positional: inputs are given in their order instead, where the two frameworks' shape letters differ.
        as_streams: the input (B, T, N, D) that JAX takes as streams, under its name without the letters of its shape.
        covers: other ops that the case exercises.
    """
    ours = _function("mhc_jax", path, options, positional)
    mirror = _function("torch_ref", path, {**options, **(mirror_options or {})}, positional)

    def on_streams(arrays):
        held = {_named(name): x for name, x in arrays.items()}
        if as_streams in arrays:
            held[_named(as_streams)] = Streams.unstack(arrays[as_streams])
        return _stacked(ours(held))

    return Case(
        tier="ops",
        name=f"{path} {what}".strip(),
        jax=functools.partial(vjp_jax, on_streams, inputs),
        torch=functools.cache(functools.partial(vjp_torch, torch or mirror, inputs)),
        covers=covers | {f"op:{path}"},
    )


def _named(name: str) -> str:
    """The name of an input in JAX: streams have no letters of a shape."""
    return name.removesuffix("_BTND")


def _stacked(outputs: Any) -> Any:
    """Streams among the outputs as arrays (B, T, N, D)."""
    if isinstance(outputs, tuple):
        return tuple(_stacked(x) for x in outputs)
    return outputs.stack() if isinstance(outputs, Streams) else outputs


def _function(package: str, path: str, options: dict[str, Any], positional: bool) -> Callable:
    module, name = path.split(".")

    def call(arrays):
        # Looked up when called, so that a seeded fault in the module is seen.
        function = getattr(importlib.import_module(f"{package}.ops.{module}"), name)
        dtype = {"logits_dtype": arrays["head_VD"].dtype} if name.startswith("chunked_") else {}
        if positional:
            return function(*arrays.values(), **options, **dtype)
        return function(**arrays, **options, **dtype)

    return call


def cases() -> Iterator[Case]:
    for group in (_norm, _conv, _scan, _ssm, _sinkhorn, _streams, _adapter, _loss):
        yield from group()


def _norm():
    # At a standard deviation of 1e-3 the squares are as small as the epsilons.
    for what, scale in (("", 1.0), ("of small values", 1e-3)):
        x = draw(scale, x=(B, T, D))
        yield op("norm.rms_norm", what, x | draw(scale_D=(D,)))
        yield op("norm.layer_norm", what, x | draw(scale_D=(D,), bias_D=(D,)))


def _conv():
    segments = np.array([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 5, 5]])
    for taps in (1, 3, 4):
        inputs = draw(u_BTD=(B, T, D), filter_KD=(taps, D), bias_D=(D,))
        yield op("conv.causal_depthwise_conv", f"of {taps}", inputs)
    inputs = draw(u_BTD=(B, T, D), filter_KD=(4, D), bias_D=(D,), history_BJD=(B, 3, D))
    yield op("conv.causal_depthwise_conv", "after a history", inputs)
    yield op("conv.causal_depthwise_conv", "in segments", inputs | {"segment_ids": segments})


def _scan():
    def decays(shape):
        return {"a": np.random.default_rng(5).uniform(0.1, 0.99, shape).astype(np.float32)}

    path = "diag_scan.diagonal_scan"
    inputs, state = draw(x_BTD=(B, T, D)), draw(s0_BD=(B, D))
    for form in ("sequential", "associative", "chunked"):
        yield op(path, f"{form}, constant", decays((D,)) | inputs, form=form, chunk=3)
        yield op(path, f"{form}, varying", decays((B, T, D)) | inputs | state, form=form, chunk=3)
        yield op("diag_scan.states_before", f"{form}, constant", decays((D,)) | inputs | state, form=form, chunk=3)
    yield op(path, "chunked, one token", decays((D,)) | draw(x_BTD=(B, 1, D)) | state, form="chunked")
    yield op(path, "associative, long", decays((D,)) | draw(x_BTD=(1, 130, D)), form="associative")
    yield op(path, "chunked, long", decays((D,)) | draw(x_BTD=(1, 130, D)), form="chunked", chunk=16)


def _ssm():
    vectors = draw(b_D=(6,), c_D=(6,), d_D=(6,))
    # The first and the last pole are clipped: their gradient is zero.
    logits = {"logit_a_D": np.array([-20, -2, 0, 2, 8, 20], np.float32)}
    reset = np.zeros((B, T), bool)
    reset[0, 3] = reset[1, 5] = True
    inputs = draw(u_BTD=(B, T, 6)) | logits | vectors
    yield op("diag_ssm.diag_ssm", "", inputs)
    resumed = inputs | draw(s0_BD=(B, 6)) | {"reset_BT": reset}
    for form in ("sequential", "associative", "chunked"):
        yield op("diag_ssm.diag_ssm", f"{form}, resumed and reset", resumed, form=form, chunk=3)
    yield op("diag_ssm.pole", "", logits)


def _sinkhorn():
    logits = draw(logits_NN=(2, 4, 4))
    extreme = draw(logits_NN=(3, 3))
    extreme["logits_NN"][0] = -200
    extreme["logits_NN"][1, 1] = 60
    for name in ("sinkhorn_rows_then_columns", "log_sinkhorn"):
        path = f"sinkhorn.{name}"
        yield op(path, "of 1", logits, iters=1)
        yield op(path, "of 2", logits, iters=2)
        yield op(path, "of 8, cold", logits, iters=8, temperature=0.25)
        yield op(path, "of 8, extreme", extreme, iters=8)
    yield op("sinkhorn.sinkhorn_rows_then_columns", "of 0", logits, iters=0)
    huge = {"logits_NN": 1e4 * np.eye(4, dtype=np.float32)[[1, 0, 3, 2]] + logits["logits_NN"][0]}
    yield op("sinkhorn.log_sinkhorn", "of 8, huge", huge, iters=8)


def _streams():
    state = draw(h_BTND=(B, T, N, D))
    yield op("streams.split_streams", "", draw(x_BTM=(B, T, N * D)), streams=N)
    yield op("streams.diversity", "", state)
    yield op("streams.project", "", state | draw(phi_KM=(4, N * D)))
    for what, lead in (("static", ()), ("per token", (B, T))):
        weights = draw(weight_N=(*lead, N))
        yield op("streams.read", what, state | weights)
        yield op("streams.mix", what, state | draw(mix_MN=(*lead, N, N)))
        per_stream = {"as_streams": "y", "mirror_options": {"per_stream": True}}
        yield op("streams.write", f"{what}, per stream", draw(y=(B, T, N, D)) | weights, **per_stream)
        yield op("streams.write", f"{what}, shared", draw(y=(B, T, D)) | weights, mirror_options={"per_stream": False})


def _adapter():
    parts = draw(gamma_NR=(N, 4), down_DR=(D, 4), down_bias_R=(4,), up_RD=(4, D), up_bias_D=(D,))
    shared, per_stream = draw(x=(B, T, D)) | parts, draw(x=(B, T, N, D)) | parts
    yield op("adapter.stream_adapter", "shared", shared, mirror_options={"per_stream": False})
    yield op("adapter.stream_adapter", "per stream", per_stream, as_streams="x", mirror_options={"per_stream": True})


def _loss():
    targets = np.random.default_rng(11).integers(0, 9, (B, T))
    targets[0, :3] = targets[1, -1] = -100
    for what, scale in (("", 1.0), ("of confident logits", 50.0)):
        yield op("loss.cross_entropy", what, draw(scale, logits_BTV=(B, T, 9)) | {"targets_BT": targets})
    nothing = {"targets_BT": np.full((B, T), -100)}
    yield op("loss.cross_entropy", "of nothing", draw(logits_BTV=(B, T, 9)) | nothing)
    inputs = draw(hidden_BTD=(B, T, D), head_VD=(9, D)) | {"targets_BT": targets}
    for chunk in (1, 3, 64):
        yield op(
            "loss.chunked_cross_entropy",
            f"by {chunk}",
            inputs,
            torch=_whole_cross_entropy,
            chunk=chunk,
        )


def _whole_cross_entropy(arrays):
    return torch_loss.cross_entropy(arrays["hidden_BTD"] @ arrays["head_VD"].T, arrays["targets_BT"])
