"""Replays the published hyper-connections' own numbers in JAX, in float64; works without PyTorch.

The file of golden numbers describes itself under ``"about"``: each case names our configuration, the published
parameters as sines of their flat index, and how they become ours.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mhc_jax import registry
from mhc_jax.nn.init import Init
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.ops import projections, sinkhorn
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy
from mhc_jax.tree import flatten, unflatten
from parity_tests import tolerances
from parity_tests.compare import Row, error
from parity_tests.replays.base import summary

Values = dict[str, Any]


def load() -> dict[str, Any]:
    """The golden numbers."""
    return summary("hyper_connections")


def fill(shape: list[int] | tuple[int, ...], k: int, a: float = 1.0) -> np.ndarray:
    """``a sin(0.9 i + 0.1 k + 0.3)`` of the flat index i."""
    return (a * np.sin(0.9 * np.arange(math.prod(shape)) + 0.1 * k + 0.3)).reshape(shape)


def rows() -> list[Row]:
    """All cases that our topologies express, and all projections."""
    golden = load()
    found = [row for name, case in golden["cases"].items() if "config" in case for row in replay(name, case)]
    return found + list(replay_projections(golden["projections"]))


def replay(name: str, case: dict[str, Any]) -> list[Row]:
    """A site's reading, the streams after it, and every gradient of the golden loss; or the output of stream ends."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        module = _build(case)
        graph, state = nnx.split(module, nnx.Param)
        shapes = {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(state)).items()}
        params = {path: jnp.asarray(_ours(case, case["ours"][path], shape)) for path, shape in shapes.items()}
        x = jnp.asarray(fill(case["x"], 50))

        def objective(params, x):
            nnx.replace_by_pure_dict(state, unflatten(params))
            outputs = (_site if case["axis"] == "residual" else _ends)(nnx.merge(graph, state), case, x)
            weighted = {"out": 70, "read": 80}
            loss = sum(jnp.sum(x * fill(x.shape, weighted[key])) for key, x in outputs.items() if key in weighted)
            return loss, outputs

        (loss, outputs), (by_param, by_x) = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, x)
    found: Values = {**outputs, "loss": loss, "dx": by_x}
    result = [_row(name, key, _digest(found[key]), case["golden"][key], case["rtol"]) for key in found]
    theirs = {published: by_param[path] for path, (published, _) in case["ours"].items()}
    for published, size in case["golden"]["grads"].items():
        result.append(_row(name, f"gradient {published}", np.abs(theirs[published]).sum(), size, case["rtol"]))
    return result


def _build(case: dict[str, Any]) -> nnx.Module:
    """The module of the case in float64, with parameters that are still to be replaced."""
    config = registry.get(case["axis"], case["config"]["kind"]).from_dict(case["config"])
    init = Init(jax.random.key(0), index=case.get("site", 0), sites=8)
    width = case["x"][-1]
    if case["axis"] == "residual":
        return config.build(width, policy("float64"), init)
    return config.build(width, case["streams"], policy("float64"), init)


def _ours(case: dict[str, Any], source: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """Our parameter that equals the published one; the source is its name and how its layout changes."""
    published, layout = source
    spec = case["parameters"][published]
    filled = fill(spec["shape"], spec["k"], spec["a"])
    value = np.asarray(spec["init"]) + (np.abs(filled) if spec.get("abs") else filled)
    if layout == "transpose":
        return np.swapaxes(value, -1, -2)
    if layout == "swap_res":  # rows 2n.. are a flat n x n matrix, stored with source and destination exchanged
        n = case["streams"]
        res = np.swapaxes(value[2 * n :].reshape(n, n, *value.shape[1:]), 0, 1)
        return np.concatenate([value[: 2 * n], res.reshape(n * n, *value.shape[1:])])
    return value.reshape(shape)


def _site(module: Any, case: dict[str, Any], x: jax.Array) -> Values:
    packed, n = case["layout"] == "packed", case["streams"]
    # Fractions of one stream are the only state without an axis of streams.
    h_BTND = _from_packed(x, n) if packed else x
    h = Streams.unstack(h_BTND) if h_BTND.ndim == 4 else h_BTND
    recorded: Values = {}
    scope = Scope.over(h_BTND.shape[1], taps=Taps(values=recorded))
    u, ctx = module.pre(h, scope)
    y = jnp.asarray(fill(case["y"], 60))
    state = module.post(h, y.reshape(module.branches, -1, *y.shape[1:]) if module.branches > 1 else y, ctx, scope)
    out = streams_of(state)
    out = out.stack() if isinstance(out, Streams) else out
    values = {"read": u.reshape(-1, *u.shape[2:]) if module.branches > 1 else u}
    values["out"] = _to_packed(out) if packed else out
    if "post" in case["golden"]:
        values["post"] = recorded["h_post"]
    if "res" in case["golden"]:
        values["res"] = jnp.swapaxes(recorded["h_res"], -1, -2)
    return values


def _ends(module: Any, case: dict[str, Any], x: jax.Array) -> Values:
    return {"out": module.collapse(Streams.unstack(x))}


def _from_packed(x: jax.Array, n: int) -> jax.Array:
    """(B, T, N, D) of rows b * N + s."""
    return jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 2)


def _to_packed(h: jax.Array) -> jax.Array:
    return jnp.moveaxis(h, 2, 1).reshape(-1, h.shape[1], h.shape[3])


def _digest(x: jax.Array) -> np.ndarray:
    """Sum, sum of magnitudes, and three entries; a scalar as it is."""
    flat = np.asarray(x).ravel()
    return flat[0] if np.ndim(x) == 0 else np.array([flat.sum(), np.abs(flat).sum(), flat[0], flat[7], flat[-1]])


def replay_projections(golden: dict[str, Any]) -> Iterator[Row]:
    for name, case in golden["cases"].items():
        spec, transposed = case["logits"], case["transposed"]
        logits = np.asarray(golden["L"]) if spec == "L" else fill(spec["shape"], spec["k"], spec["a"])
        with jax.enable_x64(True):
            found = np.asarray(_operation(case)(jnp.asarray(logits.T if transposed else logits)))
        yield _row(name, "matrix", found.T if transposed else found, case["value"], tolerances.GOLDEN_DIGITS)


def _operation(case: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    op, arguments = case["op"], dict(case["arguments"])
    if op == "spectral_sphere":
        return lambda z: projections.spectral_sphere(*jnp.split(z, 3), **arguments)
    if op == "orthostochastic":
        arguments["coefficients"] = tuple(map(tuple, arguments["coefficients"]))
    if op == "identity_mix":
        return lambda z: projections.identity_mix(z, jnp.asarray(arguments["alpha"]))
    function = getattr(projections, op, None) or getattr(sinkhorn, op)
    return lambda z: function(z, **arguments)


def _row(case: str, tap: str, found: Any, golden: Any, rtol: float) -> Row:
    """Entries may differ by ``rtol`` of the largest, or of one: small numbers were printed with fewer digits."""
    found, golden = np.asarray(found), np.asarray(golden, np.float64)
    if found.shape != golden.shape:
        return Row("golden", case, tap, golden.shape, fault=f"JAX's shape is {found.shape}")
    distance, allowed = np.abs(found - golden).max(), rtol * max(np.abs(golden).max(), 1)
    fault = "" if distance <= allowed else f"differs by {distance:.1e} > {allowed:.1e}"
    return Row("golden", case, tap, golden.shape, err_float64=error(found, golden), fault=fault)
