"""The functional interface: parameters are a plain nested dict and every function is pure.

``jax.vmap`` over :func:`init` and :func:`apply` trains ensembles; ``jax.jvp``, ``jax.hessian`` and
``jax.linearize`` work on whole models.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from mhc_jax.config import ConfigError
from mhc_jax.nn.init import Init, Role
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.precision import policy
from mhc_jax.tree import flatten, listed, misfits

Params = dict[str, Any]
Integers = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Hidden:
    """A forward pass without its logits.

    Attributes:
        hidden_BTD: input of the head.
        head_VD: the head, in the compute dtype.
        penalties: auxiliary losses by name, already weighted.
        taps: named activations, if asked for; those inside the stack carry a leading layer axis.
    """

    hidden_BTD: jax.Array
    head_VD: jax.Array
    penalties: dict[str, jax.Array]
    taps: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Output:
    """The result of a forward pass.

    Attributes:
        logits_BTV: next-token logits in the accumulation dtype. Unused outputs cost nothing under jit.
        hidden_BTD, penalties, taps: see :class:`Hidden`.
    """

    logits_BTV: jax.Array
    hidden_BTD: jax.Array
    penalties: dict[str, jax.Array]
    taps: dict[str, jax.Array]


@functools.lru_cache(maxsize=256)
def _abstract(config: ModelConfig) -> tuple[Any, Any]:
    """Graph and parameter shapes of the model, without allocating it."""
    config.validate()
    return nnx.split(nnx.eval_shape(lambda: config.build(Init(jax.random.key(0)))), nnx.Param)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters as a plain nested dict; block parameters are stacked over layers.

    Raises:
        ConfigError: ``config`` is not a configuration, or contradicts itself, or ``key`` is not a key.
    """
    check_kind(config)
    config.validate()
    if not (isinstance(key, jax.Array) and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32)):
        raise ConfigError(
            f"init needs a key, such as jax.random.key({key if isinstance(key, int) else 0}), not {key!r}"
        )
    return _init(config, key)


def check_kind(config: ModelConfig) -> None:
    """Raises ConfigError for what is not a model's configuration."""
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"the model must be a ModelConfig, as from mhc_jax.models, not {type(config).__name__}")


@functools.partial(jax.jit, static_argnums=0)
def _init(config: ModelConfig, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(config.build(Init(key)), nnx.Param))


def param_shapes(config: ModelConfig) -> Params:
    """The parameters' shapes and dtypes as a nested dict of ``jax.ShapeDtypeStruct``; allocates nothing."""
    check_kind(config)
    shapes = nnx.to_pure_dict(_abstract(config)[1])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)


@dataclasses.dataclass(frozen=True)
class ParamInfo:
    """The description of a parameter, see :mod:`mhc_jax.nn.init`.

    Attributes:
        shape, dtype: shape and dtype of the array; layers are stacked on its first axis.
        role: its role in the computation.
        axes: a name for each dimension; ``"layer"`` for the layers, ``""`` for one without a name.
        uses: number of times that one token is multiplied by it.
    """

    shape: tuple[int, ...]
    dtype: Any
    role: Role
    axes: tuple[str, ...]
    uses: float


Infos = Mapping[str, ParamInfo]


def param_info(config: ModelConfig) -> dict[str, ParamInfo]:
    """The descriptions of all parameters by dotted name; allocates nothing.

    Raises:
        ConfigError: the configuration contradicts itself, or a part has made a parameter without :class:`Init`.
    """
    check_kind(config)
    born = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(_abstract(config)[1])}
    if bare := [name for name, leaf in born.items() if not leaf.has_metadata("role")]:
        raise ConfigError(f"parameters without a role, which mhc_jax.nn.init.Init gives them: {listed(bare)}")

    def info(name: str, shape: jax.ShapeDtypeStruct) -> ParamInfo:
        its = born[name].get_metadata()
        layer = ("layer",) if "blocks" in name.split(".") else ()
        return ParamInfo(shape.shape, shape.dtype, its["role"], layer + its["axes"], its["uses"])

    return {name: info(name, shape) for name, shape in flatten(param_shapes(config)).items()}


def parameter_count(config: ModelConfig) -> int:
    """Number of trained scalars; allocates nothing."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))


def bind(config: ModelConfig, params: Params) -> Model:
    """The module with these parameters. Runs at trace time only; costs nothing in a compiled function.

    Raises:
        ConfigError: a contradiction in the configuration, a policy that needs 64-bit mode, or parameters that are not
            those of the model: names, shapes, or values that are not floating point.
    """
    check_policy(config)
    graph, state = _abstract(config)
    check_params(config, params)
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def check_policy(config: ModelConfig) -> None:
    """Raises ConfigError if JAX is not in the mode that the numeric policy needs."""
    if config.execution.policy == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError(
            "policy 'float64' needs 64-bit mode: set JAX_ENABLE_X64=1, or jax.config.update('jax_enable_x64', True)"
        )


def check_params(config: ModelConfig, params: Params) -> None:
    """Raises ConfigError, naming the first few leaves at fault, unless these can be the parameters of the model."""
    if not isinstance(params, Mapping):
        raise ConfigError(f"the parameters must be a nested dict, as from mhc_jax.init, not {type(params).__name__}")
    expected, found = flatten(param_shapes(config)), flatten(params)
    if bare := [name for name, leaf in found.items() if not isinstance(leaf, jax.Array | np.ndarray)]:
        raise ConfigError(f"the parameters must be arrays, which these are not: {listed(bare)}")
    faults = misfits(*({name: leaf.shape for name, leaf in tree.items()} for tree in (expected, found)))
    if faults:
        raise ConfigError(f"the parameters do not fit the model: {faults}")
    wrong = [f"{name} is {x.dtype}" for name, x in found.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong:
        raise ConfigError(f"the parameters must be floating point: {listed(wrong)}")


def apply(
    config: ModelConfig,
    params: Params,
    tokens_BT: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    key: jax.Array | None = None,
    progress: ArrayLike | None = None,
    taps: bool = False,
    probes: Mapping[str, jax.Array] | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Output:
    """One forward pass.

    Ids and positions are checked where their values are known, which outside ``jax.jit`` means that they are copied to
    the host; in a compiled function only shapes and dtypes are checked, while it is traced.

    Args:
        config: the model.
        params: parameters, as returned by :func:`init`.
        tokens_BT: token ids, (B, T), T at most ``config.max_len``; an array or nested lists.
        positions: (B, T) absolute positions; 0 .. T-1 if omitted.
        segment_ids: (B, T); mixers keep tokens of different segments apart.
        key: switches dropout on.
        progress: training progress from 0 to 1, used by annealed quantities; 1 if omitted.
        taps: also return named activations.
        probes: arrays added to the activations of those names, of their shapes; the gradient with respect to a zero
            probe is that activation's cotangent.
        batch_sharding: sharding of arrays (B, ...) on several devices. Embedding, streams and hidden states are
            constrained to it, between layers and in the backward pass; other arrays are resharded.

    Raises:
        ConfigError: parameters that are not the model's, tokens that are not (B, T) integers inside the vocabulary or
            longer than ``max_len``, positions and segments of another shape, or a probe of no activation or of another
            shape than its activation.
    """
    recorded = Taps(probes or {}) if taps or probes else None
    options = positions, segment_ids, key, progress, recorded, batch_sharding
    model, found = _forward(config, params, tokens_BT, *options)
    with precision(config):
        logits_BTV = model.logits(found.hidden_BTD)
    if recorded is not None:
        logits_BTV = recorded("logits", logits_BTV)
    if unknown := sorted(set(probes or ()) - set(found.taps)):
        raise ConfigError(f"no activation has the name of a probe: {listed(unknown)}")
    for name, probe in (probes or {}).items():
        if jnp.shape(probe) != found.taps[name].shape:
            raise ConfigError(
                f"the probe {name!r} is of shape {jnp.shape(probe)}, its activation of shape {found.taps[name].shape}"
            )
    return Output(logits_BTV, found.hidden_BTD, found.penalties, found.taps)


def hidden(
    config: ModelConfig,
    params: Params,
    tokens_BT: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    key: jax.Array | None = None,
    progress: ArrayLike | None = None,
    taps: Collection[str] = (),
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Hidden:
    """:func:`apply` without the logits, for losses that never hold all of them; the same arguments and errors.

    Args:
        taps: names of activations to return as well; others are not kept.

    Raises:
        ConfigError: as :func:`apply`, or the model has no activation of such a name.
    """
    recorded = Taps(only=frozenset(taps)) if taps else None
    options = positions, segment_ids, key, progress, recorded, batch_sharding
    found = _forward(config, params, tokens_BT, *options)[1]
    if unknown := [name for name in taps if name not in found.taps]:
        raise ConfigError(f"no activation is called {listed(unknown)}")
    return found


def _forward(config, params, tokens_BT, positions, segment_ids, key, progress, taps, batch_sharding):
    tokens_BT = checked_tokens(config, tokens_BT)
    if positions is not None:
        positions = _integers("positions", positions, tokens_BT.shape, config.max_len)
    if segment_ids is not None:
        segment_ids = _integers("segment_ids", segment_ids, tokens_BT.shape)
    scope = Scope.over(
        tokens_BT.shape[1],
        segments_BT=None if segment_ids is None else jnp.asarray(segment_ids),
        key=key,
        progress=None if progress is None else jnp.asarray(progress),
        taps=taps,
        batch_sharding=batch_sharding,
    )
    if positions is not None:
        scope = scope.replace(positions_BT=jnp.asarray(positions))
    model = bind(config, params)
    with precision(config):
        hidden_BTD, _ = model(tokens_BT, None, scope)
        head_VD = model.head_VD()
    return model, Hidden(hidden_BTD, head_VD, scope.mean_penalties(), {} if scope.taps is None else scope.taps.values)


def precision(config: ModelConfig):
    """A context in which matrix products have the precision of the numeric policy."""
    return jax.default_matmul_precision(policy(config.execution.policy).precision)


def checked_tokens(config: ModelConfig, tokens_BT: ArrayLike) -> Integers:
    """The tokens as an array.

    Raises:
        ConfigError: they are not (B, T) integers, there are none, they are longer than ``max_len``, or ids whose values
            are known are not in the vocabulary.
    """
    check_kind(config)
    tokens_BT = _integers("tokens", tokens_BT, None, config.vocab_size)
    if 0 in tokens_BT.shape:
        raise ConfigError(f"tokens are empty, of shape {tokens_BT.shape}: at least one token is needed")
    if tokens_BT.shape[1] > config.max_len:
        raise ConfigError(
            f"a sequence of {tokens_BT.shape[1]} tokens is longer than max_len {config.max_len}; "
            "shorten it, or train with a larger max_len"
        )
    return tokens_BT


def _integers(what: str, x: ArrayLike, shape: tuple[int, ...] | None, below: int | None = None) -> Integers:
    """``x`` as an array of integers of that shape, from 0 to less than ``below`` where its values are known.

    Raises:
        ConfigError: it is not.
    """
    form = "a (batch, time) array of integers"
    if not isinstance(x, jax.Array | np.ndarray):
        try:
            x = np.asarray(x)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what} must be {form} ({str(error).splitlines()[0]})") from None
    if len(x.shape) != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ConfigError(f"{what} must be {form}, got shape {x.shape} and dtype {x.dtype}")
    if shape is not None and x.shape != shape:
        raise ConfigError(f"{what} must have the shape {shape} of the tokens, got {x.shape}")
    if below is not None and x.size and _known(x):
        values = np.asarray(x)
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= below:
            raise ConfigError(f"{what} must lie in 0..{below - 1}, got {least if least < 0 else most}")
    return x


def _known(x: Integers) -> bool:
    """Whether the values can be read: they are neither traced nor held by other processes."""
    return isinstance(x, np.ndarray) or (not isinstance(x, jax.core.Tracer) and x.is_fully_addressable)
