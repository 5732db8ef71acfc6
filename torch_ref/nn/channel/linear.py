"""One linear map."""

from torch_ref.config import register
from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.layers import linear


@register("channel", "linear")
class Linear(ChannelMixer):
    """``W x``."""

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        self.proj = linear(width, width, config.init_std, bias=False)

    def forward(self, u_BTD, scope):
        return self.proj(u_BTD)
