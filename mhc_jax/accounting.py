"""The parts and the cost of a model, from shapes alone: nothing is allocated or compiled."""

import dataclasses
import math

import jax

from mhc_jax.functional import bind, check_kind, param_info, param_shapes
from mhc_jax.nn.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of all layers together.

    Attributes:
        name: dotted, as in the parameters; layers are stacked under ``blocks``.
        parameters: number of its parameters.
        flops: floating-point operations of one token's forward pass.
    """

    name: str
    parameters: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Parts, parameters, operations and memory of a model; ``str()`` is a table of at most 80 columns.

    Operations are those of matrix products: two for each weight of a kernel and token (adapters once per stream that
    uses them, the head too), and between activations attention's two products over the whole length, as PaLM and
    nanoGPT count them: the savings of the causal mask are not deducted. Recurrences, convolutions and stream mixing are
    not counted: they are bound by memory and make up a few percent together.

    Attributes:
        config: the model.
        length: tokens in a sequence, which attention's products depend on.
        parts: in the order of the parameters, then attention's products and the head.
        cache_bytes: decoding state of one sequence of ``max_len`` tokens.
    """

    config: ModelConfig
    length: int
    parts: tuple[Part, ...]
    cache_bytes: int

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of float32 parameters."""
        return 4 * self.parameters

    @property
    def training_bytes(self) -> int:
        """Bytes of parameters, gradients and AdamW's two moments in float32, without activations."""
        return 4 * self.parameter_bytes

    @property
    def forward_flops(self) -> int:
        """Operations of one token's forward pass."""
        return sum(part.flops for part in self.parts)

    @property
    def training_flops(self) -> int:
        """Operations of one token's training step: forward, and twice as much backward."""
        return 3 * self.forward_flops

    def __str__(self) -> str:
        config, memory = self.config, [_size(x) for x in (self.training_bytes, self.parameter_bytes, self.cache_bytes)]
        width = min(max(len(part.name) for part in self.parts), 46)
        lines = [
            *config.description,
            f"vocabulary {config.vocab_size:,}, length {self.length:,}",
            "",
            f"{'part':<{width}} {'parameters':>15} {'MFLOP a token':>15}",
            *(
                f"{part.name[-width:]:<{width}} {part.parameters:>15,} {part.flops / 1e6:>15.3f}"
                for part in (*self.parts, Part("all", self.parameters, self.forward_flops))
            ),
            "",
            f"training  {self.training_flops / 1e6:,.1f} MFLOP a token, {memory[0]} with gradients and AdamW",
            f"decoding  {memory[1]} of parameters, {memory[2]} of state for each sequence",
        ]
        return "\n".join(lines)


def summary(config: ModelConfig, length: int | None = None) -> Summary:
    """Parts, parameters, operations a token and memory of a model; ``print`` it, or read its attributes.

    Args:
        config: the model.
        length: tokens in a sequence; ``config.max_len`` if omitted.

    Raises:
        ConfigError: ``config`` is not a configuration, or contradicts itself.
    """
    check_kind(config)
    config.validate()
    length = length or config.max_len
    parts: dict[str, Part] = {}
    for path, info in param_info(config).items():
        name = path.rpartition(".")[0]
        size = math.prod(info.shape)
        flops = round(2 * size * info.uses) if info.role == "kernel" else 0
        before = parts.get(name, Part(name, 0, 0))
        parts[name] = Part(name, before.parameters + size, before.flops + flops)
    others = (Part(name, 0, flops) for name, flops in config.product_flops(length).items())
    return Summary(config, length, (*parts.values(), *others), _cache_bytes(config))


def flops_per_token(config: ModelConfig, length: int | None = None) -> int:
    """Floating-point operations of one token's training step, as :class:`Summary` counts them."""
    return summary(config, length).training_flops


def _cache_bytes(config: ModelConfig) -> int:
    state = jax.eval_shape(lambda params: bind(config, params).init_state(1, config.max_len), param_shapes(config))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
