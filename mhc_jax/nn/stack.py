"""Layers with parameters stacked on a leading axis, walked by ``jax.lax.scan`` or unrolled."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init

LayersName = Literal["scan", "unroll"]
RematName = Literal["none", "block", "dots"]

_REMAT_POLICIES = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def build_stack(build: Callable[[Init], nnx.Module], layers: int, init: Init) -> nnx.Module:
    """One module whose parameters carry a leading layer axis (L, ...), each layer drawn with a key of its own."""

    def one(layer, key):
        return nnx.state(build(Init(key, init.path, layer, init.sites)), nnx.Param)

    keys = jax.vmap(lambda layer: jax.random.fold_in(init.key, layer))(jnp.arange(layers))
    module = build(init)
    nnx.update(module, jax.vmap(one)(jnp.arange(layers), keys))
    return module


class Prepared(nnx.Variable):
    """What a module has computed from its parameters alone.

    A module that has a method ``prepare`` sets such attributes in it; it is called for all layers at once before they
    run. What takes many tiny kernels, as Sinkhorn's iterations on one matrix do, then takes them once and not once a
    layer.
    """


def _prepared(graph: nnx.GraphDef, params: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """Stacked parameters, and beside them what their modules prepare."""

    def prepare(params):
        module = nnx.merge(graph, params)
        for _, part in nnx.iter_modules(module):
            if hasattr(part, "prepare"):
                part.prepare()
        return nnx.split(module)

    return jax.vmap(prepare)(params)


def sliced(tree: Any, batch_sharding: jax.sharding.Sharding | None) -> Any:
    """The arrays of ``tree``, (B, ...), in those slices of the batch, and so are their cotangents; as is if None."""
    return tree if batch_sharding is None else jax.lax.with_sharding_constraint(tree, batch_sharding)


def run_stack(
    module: nnx.Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any,
    *,
    layers: LayersName,
    remat: RematName,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> tuple[Any, Any]:
    """``carry, out = body(layer_module, carry, inputs[l])`` for every layer l, as ``lax.scan`` would.

    Args:
        module: from :func:`build_stack`.
        body: pure in its arguments.
        inputs: pytree with a leading layer axis.
        layers: ``"scan"`` compiles one layer, ``"unroll"`` all of them; the values are the same.
        remat: what the backward pass keeps of a layer: ``"none"`` recomputes nothing, ``"block"``
            everything inside a layer, ``"dots"`` all but the matrix products.
        batch_sharding: how the carry, arrays (B, ...), lies on the devices before and after every layer. Left to
            itself XLA slices it as the parameters are, and every device then computes the rows of others.

    Returns:
        The last carry and the stacked outputs.
    """
    graph, params = _prepared(*nnx.split(module, nnx.Param))

    def step(carry, xs):
        layer_params, layer_inputs = xs
        carry, out = body(nnx.merge(graph, layer_params), sliced(carry, batch_sharding), layer_inputs)
        return sliced(carry, batch_sharding), out

    if remat != "none":
        # prevent_cse is only needed where XLA could merge the recomputation with the forward pass.
        step = jax.checkpoint(step, policy=_REMAT_POLICIES[remat], prevent_cse=layers == "unroll")
    if layers == "scan":
        return jax.lax.scan(step, carry, (params, inputs))
    outputs = []
    for layer in range(len(jax.tree.leaves(params)[0])):
        carry, out = step(carry, jax.tree.map(lambda x, layer=layer: x[layer], (params, inputs)))
        outputs.append(out)
    return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)
