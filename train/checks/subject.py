"""A model under check, its parameters, and the made-up tokens that it is checked on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self, TypeVar

import jax
import numpy as np

import mhc_jax
from mhc_jax.config import Config
from mhc_jax.functional import Output, Params, param_info
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import flatten, unflatten
from train.config import RunConfig
from train.data.kind import Batch

T = TypeVar("T")

# Rows, and most tokens of each.
ROWS, LENGTH = 4, 16
# Of what is added to initial parameters: those of the streams, which often start at zero, and all others.
STREAM_NOISE, NOISE = 0.1, 0.02
# To the compiler for a processor: four times as fast together. From 0.11 on JAX does not take the second.
UNOPTIMISED: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    UNOPTIMISED["xla_cpu_use_fusion_emitters"] = False


def small(part: Config) -> Config:
    """The record with every part at its size for tests."""
    inner = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return part.replace(**{name: small(x) for name, x in inner.items() if isinstance(x, Config)}).small()


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        config: the run; its model computes in float32, its batches are a few short rows.
        initial: fresh parameters.
        params: parameters with which all parts act: trained ones, or the initial ones with noise.
        quick: whether programs are compiled without optimisation, several times as fast.
    """

    config: RunConfig
    initial: Params
    params: Params
    quick: bool = False

    @classmethod
    def of(cls, config: RunConfig, trained: Params | None = None, *, quick: bool = False) -> Self:
        """The model of a run, whose open sizes are filled in, with trained parameters or fresh ones."""
        model = with_policy(config.model, "float32")
        data = config.data.replace(batch_size=ROWS, seq_len=max(1, min(LENGTH, model.max_len - 1)))

        def draw():
            initial = mhc_jax.init(model, jax.random.key(config.train.seed))
            return initial, awake(model, initial) if trained is None else trained

        return cls(config.replace(model=model, data=data), *compiled(draw, quick)(), quick)

    def compiled(self, function: Callable[..., T]) -> Callable[..., T]:
        return compiled(function, self.quick)

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @functools.cached_property
    def batch(self) -> Batch:
        """Random inputs and targets in arrays of the data's shapes, all places of a row in one sequence."""
        random, shapes = np.random.default_rng(0), self.config.data.arrays()
        made = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        for name in ("inputs", "targets"):
            made[name] = random.integers(self.model.vocab_size, size=shapes[name], dtype=np.int32)
        if "positions" in made:
            made["positions"] += np.arange(made["positions"].shape[1], dtype=np.int32)
        return made

    @property
    def tokens_BT(self) -> np.ndarray:
        return self.batch["inputs"]

    @functools.cached_property
    def forward(self) -> Callable[[Params, jax.typing.ArrayLike], Output]:
        """The compiled forward pass with taps."""
        return self.compiled(functools.partial(mhc_jax.apply, self.model, taps=True))

    @functools.cached_property
    def output(self) -> Output:
        """That of :attr:`params` on :attr:`tokens_BT`, as NumPy arrays."""
        return jax.device_get(self.forward(self.params, self.tokens_BT))

    def logits(self, params: Params, tokens_BT: np.ndarray) -> np.ndarray:
        """(B, T, V)."""
        return np.asarray(self.forward(params, tokens_BT).logits_BTV)


def with_policy(model: ModelConfig, policy: str) -> ModelConfig:
    return model.replace(execution=model.execution.replace(policy=policy))


def awake(model: ModelConfig, params: Params) -> Params:
    """Parameters a little off, so that what starts at zero acts too."""
    infos, flat = param_info(model), flatten(params)
    for index, (name, x) in enumerate(flat.items()):
        size = STREAM_NOISE if infos[name].role in ("mixing", "vector") else NOISE
        flat[name] = x + size * jax.random.normal(jax.random.fold_in(jax.random.key(1), index), x.shape, x.dtype)
    return unflatten(flat)


def compiled(function: Callable[..., T], quick: bool) -> Callable[..., T]:
    """The function as one program."""
    unoptimised = quick and jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=UNOPTIMISED if unoptimised else None)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the root mean square of what is expected."""
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))
