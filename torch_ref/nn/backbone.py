"""The backbone between embedding and head: expand, stack of sites, collapse, norm."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from torch_ref.config import as_record, implementation
from torch_ref.nn import channel, ends, mixers  # noqa: F401  (importing a package registers its kinds)
from torch_ref.nn.adapters import StreamAdapters
from torch_ref.nn.block import Block, Site
from torch_ref.nn.norms import build_norm
from torch_ref.nn.residual.base import streams_of, with_streams
from torch_ref.nn.scope import Scope
from torch_ref.nn.stack import run_stack
from torch_ref.nn.value_residual import ValueResidual
from torch_ref.ops import streams
from torch_ref.ops.norm import LAYER_NORM_EPS, RMS_EPS


class Backbone(nn.Module):
    """Parameters live under ``blocks.{l}``, ``ends`` and ``final_norm``."""

    blocks: Sequence[Block]

    def __init__(self, config: Any):
        super().__init__()
        self.norm_streams = config.norm_streams
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.layers))
        self.stream_count = self.blocks[0].mixer.residual.stream_count
        self.stream_diversity = getattr(config, "stream_diversity", 0.0)
        if self.stream_diversity and self.stream_count is None:
            raise ValueError("stream_diversity needs a residual with streams")
        self.ends = implementation("ends", config.ends)(config.ends, config.width, self.stream_count)
        self.final_norm = build_norm(_norm_of(config), config.width)

    def init_memories(self, batch: int, max_len: int) -> list[Any]:
        """The mixers' states before the first token."""
        return [block.init_memory(batch, max_len) for block in self.blocks]

    def through(self, x_BTD: Tensor, memories: Sequence[Any] | None, scope: Scope) -> tuple[Tensor, list[Any] | None]:
        """The normalised output (B, T, D), and the mixers' states after the last token.

        Args:
            memories: None processes whole sequences, and None comes back.
        """
        state = self.blocks[0].mixer.residual.begin(scope.tap("expand", self.ends.expand(x_BTD)))
        state, memories = run_stack(self.blocks, state, memories, scope / "blocks")
        if self.stream_diversity:
            scope.penalise("stream_diversity", self.stream_diversity * streams.diversity(streams_of(state)))
        if self.norm_streams:
            state = with_streams(state, scope.tap("normalised", self.final_norm(streams_of(state))))
            return scope.tap("hidden", self.ends.collapse(state)), memories
        return scope.tap("hidden", self.final_norm(scope.tap("collapse", self.ends.collapse(state)))), memories


def _norm_of(config: Any) -> Any:
    """The record of the norm; in older configurations it was a name, with its fields beside it."""
    if not isinstance(config.norm, str):
        return config.norm
    eps, bias = getattr(config, "norm_eps", None), getattr(config, "norm_bias", True)
    usual = RMS_EPS if config.norm == "rms" else LAYER_NORM_EPS
    return as_record({"kind": config.norm, "eps": usual if eps is None else eps, "bias": bias})


def _block(config: Any, layer: int) -> Block:
    """Sites run in the order in which they stand here; those that an older configuration does not know are absent."""
    axes = {"before_mixer": "channel", "mixer": "mixer", "before_mlp": "channel", "mlp": "channel"}
    parts = {name: part for name in axes if (part := getattr(config, name, None)) is not None}
    sites = config.layers * len(parts)
    built = {
        name: _site(config, axes[name], part, layer * len(parts) + i, sites)
        for i, (name, part) in enumerate(parts.items())
    }
    return Block(built, None if config.value_residual is None else ValueResidual(config.value_residual))


def _site(config: Any, axis: str, part: Any, site: int, sites: int) -> Site:
    residual = implementation("residual", config.residual)(config.residual, config.width, site, sites)
    if config.adapters is not None:
        residual = StreamAdapters(
            residual, config.adapters, config.width, build_norm(_norm_of(config), config.width, biased=True)
        )
    branch = implementation(axis, part)(part, config.width, sites)
    if branch.views not in (1, residual.views):
        raise ValueError(f"the {axis} takes {branch.views} views, but the residual gives {residual.views}")
    norm = nn.Identity() if residual.normalised else build_norm(_norm_of(config), config.width)
    return Site(residual, branch, norm, config.dropout)
