"""Layers with parameters stacked on a leading axis, walked by ``jax.lax.scan``, singly or in groups, or unrolled."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mhc_jax.backend import target_backend
from mhc_jax.config import Config
from mhc_jax.nn.columns import joined, split
from mhc_jax.nn.deferred import computed, is_deferred
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.value_residual import FirstValues
from mhc_jax.precision import PolicyName
from mhc_jax.registry import required

RematName = Literal["none", "block", "dots"]

# The deepest network that accelerators unroll where nothing is stated.
UNROLLED = 24

_REMAT_POLICIES = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclasses.dataclass(frozen=True)
class Execution(Config):
    """Execution settings. None of them changes the parameters or, beyond rounding, the values.

    Attributes:
        policy: dtypes; see :mod:`mhc_jax.precision`.
        layers: ``"scan"`` over stacked layers (compile time constant in depth), ``"unroll"``, ``"groups:K"``: a scan
            over groups of K layers (compile time as of K), the last perhaps smaller, or ``"auto"``: ``"unroll"``
            on TPUs and GPUs for up to 24 layers, ``"scan"`` for more and on CPUs.
        remat: recomputation in the backward pass: ``"none"`` recomputes nothing, ``"block"`` everything inside a
            layer, ``"dots"`` all but the matrix products, inside a layer or a group of layers: of groups only the first
            layer's input is kept beside the products (mHC, 2512.24880, section 4.3.2).
    """

    policy: PolicyName = "float32"
    layers: str = "auto"
    remat: RematName = "none"

    def validate(self):
        super().validate()
        known = self.layers in ("auto", "scan", "unroll") or re.fullmatch("groups:[1-9][0-9]{0,3}", self.layers)
        self.require(
            bool(known), f"layers must be auto, scan, unroll or groups:K such as groups:4, got {self.layers!r}"
        )

    def walk(self, depth: int) -> str:
        """``layers``, of ``"auto"`` what is chosen for that many layers on the target platform.

        Unrolled, a step of an accelerator takes less time, and minutes to compile. On a CPU it gains little, and most
        runs there are short.
        """
        if self.layers != "auto":
            return self.layers
        return "unroll" if target_backend() != "cpu" and depth <= UNROLLED else "scan"

    @property
    def group(self) -> int:
        """Layers in one step of the scan."""
        return int(self.layers.partition(":")[2] or 1)


def build_stack(build: Callable[[Init], nnx.Module], layers: int, init: Init) -> nnx.Module:
    """One module whose parameters carry a leading layer axis (L, ...), each layer drawn with a separate key."""

    def one(layer, key):
        return nnx.state(build(Init(key, init.path, layer, init.sites, init.repeats)), nnx.Param)

    keys = jax.vmap(lambda layer: jax.random.fold_in(init.key, layer))(jnp.arange(layers))
    module = build(init)
    nnx.update(module, jax.vmap(one)(jnp.arange(layers), keys))
    return module


def layer_of(blocks: nnx.Module, index: int) -> nnx.Module:
    """One layer of what :func:`build_stack` has made."""
    graph, params = nnx.split(blocks, nnx.Param)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], params))


class Prepared(nnx.Variable):
    """An array that a module has computed from its parameters alone.

    What takes many tiny kernels, as Sinkhorn's iterations on one matrix do, then takes them once and not once a site.
    """


class Preparing(nnx.Module):
    """A part of a layer that computes something from its parameters alone."""

    @required
    def prepare(self) -> dict[str, jax.Array]:
        """Arrays by the name of the attribute, a :class:`Prepared`, that is to hold them.

        Called before the layers run, once for all layers and all parts that are built alike.
        """


def _prepared(graph: nnx.GraphDef, params: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """Stacked parameters and the arrays that their modules prepare."""

    def prepare(params):
        module = nnx.merge(graph, params)
        alike = collections.defaultdict(list)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, Preparing):
                part_graph, part_params = nnx.split(part, nnx.Param)
                alike[part_graph].append((part, part_params))
        for part_graph, group in alike.items():
            _prepare_alike(part_graph, *zip(*group, strict=True))
        return nnx.split(module)

    return jax.vmap(prepare)(params)


def _prepare_alike(graph: nnx.GraphDef, parts: Sequence[Preparing], params: Sequence[nnx.State]) -> None:
    """Gives parts of one structure what they prepare, all of it computed by one call."""

    def prepare(params):
        return nnx.merge(graph, params).prepare()

    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *params)
    for name, arrays in jax.vmap(prepare)(stacked).items():
        for part, array in zip(parts, arrays, strict=True):
            setattr(part, name, Prepared(array))


def sliced(tree: Any, batch_sharding: jax.sharding.Sharding | None) -> Any:
    """The arrays of ``tree``, (B, ...), in those slices of the batch, and so are their cotangents; as is if None."""
    if batch_sharding is None:
        return tree

    def held(x):
        if is_deferred(x):  # whoever computes deferred streams holds them to the slices
            return x
        if isinstance(x, FirstValues) and isinstance(batch_sharding, NamedSharding):
            mesh, (rows, tokens, *_) = batch_sharding.mesh, (*batch_sharding.spec, None, None)
            if all(kind == AxisType.Auto for kind in mesh.axis_types):
                free = PartitionSpec(rows, tokens, PartitionSpec.UNCONSTRAINED)
                return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, free))
        return jax.lax.with_sharding_constraint(x, batch_sharding)

    return jax.tree.map(held, tree, is_leaf=lambda x: is_deferred(x) or isinstance(x, FirstValues))


def run_stack(blocks: nnx.Module, carry: Any, states: Any, scope: Scope, execution: Execution) -> tuple[Any, Any]:
    """``carry, states[l] = block_l(carry, states[l], scope_l)`` for every layer l.

    The carry, arrays (B, ...), is held to ``scope.batch_sharding`` before and after every layer: left to itself XLA
    slices it as the parameters are, and every device then computes the rows of others.

    Args:
        blocks: from :func:`build_stack`.
        states: pytree with a leading layer axis, or None.
        scope: of all layers. Each has a scope with its index, its own key and its own taps and penalties, whose means
            over the layers are handed on.

    Returns:
        The last carry, and the states after it, stacked.
    """
    graph, params = _prepared(*nnx.split(blocks, nnx.Param))
    taps, (columns, others) = scope.taps, split(states)

    def step(carry, xs):
        (carry, columns), (layer_params, layer, others, probes) = carry, xs
        state = joined(columns, others, layer)
        recorded = None if taps is None else taps.inside(probes)
        inside = scope.at(layer).replace(taps=recorded, penalties={})
        block = nnx.merge(graph, layer_params)
        carry, state = block(sliced(carry, scope.batch_sharding), state, inside)
        values = {} if recorded is None else recorded.values
        columns, others = split(state)
        return (sliced(carry, scope.batch_sharding), columns), (others, values, inside.mean_penalties())

    layers = len(jax.tree.leaves(params)[0])
    execution = execution.replace(layers=execution.walk(layers))
    group = min(execution.group, layers)
    if execution.layers == "scan":
        step = _closed(step)
    by_group = execution.remat == "dots" and group > 1
    # XLA could merge the recomputation with the forward pass unless they are in separate loops.
    alone = execution.layers == "scan" or (by_group and layers > group and layers % group == 0)
    recomputed = functools.partial(jax.checkpoint, policy=_REMAT_POLICIES.get(execution.remat), prevent_cse=not alone)
    if execution.remat != "none" and not by_group:
        step = recomputed(step)
    carry = carry, columns
    xs = params, jnp.arange(layers), others, {} if taps is None else taps.probes_inside(layers)
    if execution.layers == "unroll":
        carry, outputs = _unrolled(step, carry, xs)
    elif group == 1:
        carry, outputs = jax.lax.scan(step, carry, xs)
    else:
        some = functools.partial(_unrolled, step)
        carry, outputs = _in_groups(_closed(recomputed(some) if by_group else some), carry, xs, layers, group)
    (carry, columns), (others, values, penalties) = carry, outputs
    if taps is not None:
        taps.record(values)
    for name, of_layers in penalties.items():
        scope.penalise(name, jnp.mean(of_layers))
    return computed(carry), joined(columns, others)


def _closed(step: Callable) -> Callable:
    """The step of a scan, which defers nothing to the next: a carry keeps its structure."""

    def closed(carry, xs):
        carry, outputs = step(carry, xs)
        return computed(carry), outputs

    return closed


def _unrolled(step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan(step, carry, xs)`` without a loop."""
    arrays, tree = jax.tree.flatten(xs)
    outputs = []
    # Split, so that gradients are concatenated: those of single slices are padded with zeros and added up.
    for each in zip(*map(jnp.unstack, arrays), strict=True):
        carry, out = step(carry, jax.tree.unflatten(tree, each))
        outputs.append(out)
    return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)


def _in_groups(step: Callable, carry: Any, xs: Any, layers: int, group: int) -> tuple[Any, Any]:
    """A scan of ``step``, which takes several layers, over groups; those that are left make one more step."""
    whole = layers - layers % group
    grouped = jax.tree.map(lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), xs)
    carry, outputs = jax.lax.scan(step, carry, grouped)
    outputs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs)
    if whole == layers:
        return carry, outputs
    carry, last = step(carry, jax.tree.map(lambda x: x[whole:], xs))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
