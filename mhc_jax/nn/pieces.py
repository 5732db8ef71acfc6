"""The parts of a model as functions of their own, so that each can run alone on an input like those it gets."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.block import Site
from mhc_jax.nn.residual.base import State
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution, layer_of, run_stack


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a model, in all layers together.

    Attributes:
        parameters: the beginnings of the dotted names of its parameters; it needs no others.
        given: its input, from token ids (B, T) and their scope; this may need all parameters.
        run: ``run(x, states, scope)``: its output, and the mixers' states after the last token.
        remembers: whether it has the mixers' states; other pieces take None for them and give it back.
    """

    parameters: tuple[str, ...]
    given: Callable[[jax.Array, Scope], Any]
    run: Callable[[Any, Any, Scope], tuple[Any, Any]]
    remembers: bool = False


class _OfLayer(nnx.Module):
    """One part of a block in the place of the block."""

    def __init__(self, part: nnx.Module, call: Callable[[Any, Any, Any, Scope], tuple[Any, Any]], layers: int):
        self.part, self.call = part, call
        # Layers are counted by parameters, of which a plain residual has none.
        self.counted = nnx.Param(jnp.zeros(layers))

    def __call__(self, carry: Any, memory: Any, scope: Scope) -> tuple[Any, Any]:
        return self.call(self.part, carry, memory, scope)


class PassingMixer(nnx.Module):
    """A mixer that gives back what it takes, of which the compiler knows nothing."""

    views: int = 1

    def __call__(self, x: jax.Array, memory: Any, scope: Scope) -> tuple[jax.Array, Any]:
        return jax.lax.optimization_barrier(x), memory


class PassingChannelMixer(nnx.Module):
    """A channel mixer of that kind."""

    def __call__(self, x: jax.Array, scope: Scope) -> jax.Array:
        return jax.lax.optimization_barrier(x)


def in_all_layers(
    part: nnx.Module, call: Callable[[Any, Any, Any, Scope], tuple[Any, Any]], layers: int, execution: Execution
) -> Callable[[Any, Any, Scope], tuple[Any, Any]]:
    """:attr:`Piece.run` of a part of every block, ``call(part, x, memory, scope)`` in each of them.

    Args:
        part: with the parameters of all layers.
    """
    return lambda x, states, scope: run_stack(_OfLayer(part, call, layers), x, states, scope / "blocks", execution)


def add_mixed(mixer: Any, x: jax.Array, memory: Any, scope: Scope) -> tuple[jax.Array, Any]:
    """``x`` and what a mixer makes of it, so that it keeps its size from layer to layer; the state after it."""
    y, memory = mixer(x, memory, scope)
    return (x + y).astype(x.dtype), memory


def add_transformed(channel_mixer: Any, x: jax.Array, memory: Any, scope: Scope) -> tuple[jax.Array, Any]:
    """:func:`add_mixed` for a channel mixer."""
    return (x + channel_mixer(x, scope)).astype(x.dtype), memory


def of_site(
    name: str, site: Site, kind: str, layers: int, execution: Execution, begin: Callable[[jax.Array, Scope], State]
) -> Iterator[tuple[str, Piece]]:
    """The pieces of one kind of site, by name: its topology, its norm if it has one, and its branch.

    Args:
        name: of the site in a block.
        site: with the parameters of all layers.
        kind: of the branch.
        layers: their number.
        begin: the residual state before the first site, from token ids.
    """
    prefix = f"blocks.{name}"
    bare = Site(site.residual, PassingMixer(), None, site.rate, site.policy)

    def passed(bare, state, memory, scope):
        return bare(state, lambda x, inside: bare.branch(x, memory, inside), scope)

    def read(tokens_BT, scope):
        u = layer_of(bare, 0).residual.pre(begin(tokens_BT, scope), scope)[0]
        return u.astype(site.policy.accumulate)

    def normalise(norm, u, memory, scope):
        return norm(u).astype(u.dtype), memory

    def branch_input(tokens_BT, scope):
        return layer_of(site, 0).branch_input(read(tokens_BT, scope))

    def piece(of: str, given: Callable, part: nnx.Module, call: Callable, *, remembers: bool = False) -> Piece:
        return Piece((f"{prefix}.{of}",), given, in_all_layers(part, call, layers, execution), remembers)

    yield f"{name}: topology", piece("residual", begin, bare, passed)
    if site.norm is not None:
        yield f"{name}: norm", piece("norm", read, site.norm, normalise)
    mixes = name == "mixer"
    call = add_mixed if mixes else add_transformed
    yield f"{name}: {kind}", piece("branch", branch_input, site.branch, call, remembers=mixes)
