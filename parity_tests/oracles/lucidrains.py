"""The package ``hyper-connections`` of the Python package index: hyper-connections, fractions, views, branches, mHC."""

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import hyper_connections
import jax.numpy as jnp
from hyper_connections import hyper_connections_with_multi_branch_inputs as multi_branch
from hyper_connections import mHCv2

from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.projections import ClampedSinkhornConfig, SinkhornConfig
from mhc_jax.nn.residual import HyperConnectionsConfig, MultiBranchHCConfig, PerStreamMHCConfig, ResidualConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.streams import Streams
from parity_tests.compare import Case
from parity_tests.oracles.modules import BATCH, TIME, beside, ours

WIDTH = 8
NAME = f"hyper-connections {importlib.metadata.version('hyper-connections')}"


def cases() -> Iterator[Case]:
    yield from _hyper_connections()
    yield from _multi_branch()
    yield from _mhc()
    yield from _ends()


def _hyper_connections():
    grid = [(4, 1, 1, True), (4, 1, 1, False), (1, 1, 1, True), (2, 2, 1, True), (1, 4, 1, True), (2, 2, 3, False)]
    for streams, fractions, views, tanh in grid:
        config = HyperConnectionsConfig(streams=streams, fractions=fractions, views=views, tanh=tanh)
        published = hyper_connections.HyperConnections(
            streams, dim=WIDTH, num_fracs=fractions, num_input_views=views, tanh=tanh
        )
        what = f"HC of {streams} streams, {fractions} fractions, {views} views, tanh {tanh}"
        yield beside(f"{NAME} {what}", published, _packed(streams), _site(config, _alpha_beta), **_inputs(streams))


def _multi_branch():
    streams, branches = 4, 2
    published = multi_branch.HyperConnections(streams, dim=WIDTH, num_branch_inputs=branches)
    config = MultiBranchHCConfig(streams=streams, branches=branches)
    inputs = _inputs(streams) | {"y": (branches, BATCH, TIME, WIDTH)}
    name = f"{NAME} HC of {branches} branches"
    yield beside(name, published, _packed(streams, branches), _site(config, _alpha_beta), **inputs)


def _mhc():
    n = 4
    clamped = PerStreamMHCConfig(streams=n, projection=ClampedSinkhornConfig(iters=20))
    log = clamped.replace(projection=SinkhornConfig(iters=20, order="rows_then_columns"))
    for version, module, run in ((1, hyper_connections.mHC, _packed(n)), (2, mHCv2.mHC, _streams_last)):
        for domain, config in (("linear", clamped), ("log", log)):
            published = module(n, dim=WIDTH, log_domain_sinkhorn=domain == "log")
            yield beside(
                f"{NAME} mHC version {version}, {domain} domain",
                published,
                run,
                _site(config, _per_stream),
                **_inputs(n),
            )


def _ends():
    n = 4
    embed = CopyEndsConfig(stream_embed=True)
    yield beside(
        f"{NAME} StreamEmbed",
        mHCv2.StreamEmbed(n, WIDTH, expand_to_streams=True),
        lambda module, arrays: module(arrays["x"]),
        lambda arrays: (
            _copy_ends(embed, n, {"stream_embed": arrays["stream_embed"]}, arrays).expand(arrays["x"]).stack()
        ),
        x=(BATCH, TIME, WIDTH),
    )
    pool = CopyEndsConfig(collapse="pool")
    yield beside(
        f"{NAME} AttentionPoolReduceStream",
        mHCv2.AttentionPoolReduceStream(WIDTH),
        lambda module, arrays: module(arrays["x"]),
        lambda arrays: _copy_ends(pool, n, {"pool": arrays["to_attn_logits.weight"]}, arrays).collapse(
            Streams.unstack(arrays["x"])
        ),
        x=(BATCH, TIME, n, WIDTH),
    )


def _inputs(streams: int) -> dict[str, tuple[int, ...]]:
    return {"x": (BATCH, TIME, streams, WIDTH), "y": (BATCH, TIME, WIDTH)}


def _packed(streams: int, branches: int = 1) -> Callable:
    """Runs a module whose streams, and branches, are folded into the batch: row b * S + s, and i * B + b."""

    def run(module, arrays):
        read, write = module(arrays["x"].movedim(2, 1).flatten(0, 1))
        if branches == 1:
            state = write(arrays["y"])
        else:
            read, state = read.unflatten(0, (branches, -1)), write(arrays["y"].flatten(0, 1))
        return {"read": read, "state": state.unflatten(0, (-1, streams)).movedim(1, 2)}

    return run


def _streams_last(module, arrays):
    read, write = module(arrays["x"])
    return {"read": read, "state": write(arrays["y"])}


def _site(config: ResidualConfig, translate: Callable[[Any, Any], dict[str, Any]]) -> Callable:
    """Runs our residual with the published weights."""

    def run(arrays):
        x, h, y = arrays["x"], Streams.unstack(arrays["x"]), arrays["y"]
        residual = ours(lambda policy, init: config.build(WIDTH, policy, init), translate(config, arrays), x.dtype)
        scope = Scope.over(x.shape[1])
        read, ctx = residual.pre(h, scope)
        return {"read": read, "state": residual.post(h, y, ctx, scope).stack()}

    return run


def _copy_ends(config: CopyEndsConfig, streams: int, params: dict[str, Any], arrays: Any) -> Any:
    return ours(lambda policy, init: config.build(WIDTH, streams, policy, init), params, arrays["x"].dtype)


def _alpha_beta(config: Any, arrays: Any) -> dict[str, Any]:
    """Our parameters of ``hc`` and ``multi_branch_hc``: the same names, one shape apart."""
    names = ("static_alpha", "static_beta", "dynamic_alpha_fn", "dynamic_alpha_scale", "dynamic_beta_scale")
    beta_fn = arrays["dynamic_beta_fn"].reshape(len(arrays["dynamic_beta_fn"]), -1)
    same = {name: arrays[name] for name in names}
    return same | {"dynamic_beta_fn": beta_fn, "norm": {"gamma": arrays["norm.gamma"]}}


def _per_stream(config: PerStreamMHCConfig, arrays: Any) -> dict[str, Any]:
    return {
        "alpha_fn": arrays["dynamic_alpha_fn"][0],
        "alpha_static": arrays["static_alpha"],
        "beta_fn": arrays["dynamic_beta_fn"].reshape(-1),
        "beta_static": arrays["static_beta"].reshape(-1),
        "pre_scale": jnp.squeeze(arrays["pre_branch_scale"]),
        "res_scale": jnp.squeeze(arrays["residual_scale"]),
        "post_scale": arrays["h_post_scale"],
        "norm": {"gamma": arrays["norm.gamma"]},
    }
