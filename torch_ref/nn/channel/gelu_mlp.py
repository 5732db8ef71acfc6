"""The two-layer perceptron of GPT-2."""

import torch.nn.functional as F
from torch import Tensor

from torch_ref.config import one_of, register
from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.layers import linear
from torch_ref.nn.scope import Scope

_APPROXIMATION = {"erf": "none", "tanh": "tanh"}


@register("channel", "gelu_mlp")
class GeluMLP(ChannelMixer):
    """``down(GELU(up(x)))``; the GELU exact (``"erf"``) or by its tanh approximation."""

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if config.hidden < 0:
            raise ValueError(f"hidden must not be negative, got {config.hidden}")
        self.approximate = _APPROXIMATION[one_of("gelu_mlp activation", config.activation, _APPROXIMATION)]
        hidden = config.hidden or 4 * width
        self.up_proj = linear(width, hidden, config.init_std, config.bias)
        last = config.init_std / sites**0.5 if getattr(config, "scale_output", True) else config.init_std
        self.down_proj = linear(hidden, width, last, config.bias)

    def forward(self, u_BTD: Tensor, scope: Scope) -> Tensor:
        return self.down_proj(scope.tap("hidden", F.gelu(self.up_proj(u_BTD), approximate=self.approximate)))
