"""The PyTorch twin of ``bag_of_tokens.py``, for the parity suite."""

import torch
import torch.nn.functional as F

from torch_ref.config import register
from torch_ref.nn.scope import Scope


@register("model", "bag_of_tokens")
class BagOfTokens(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = torch.nn.Parameter(torch.randn(config.vocab_size, config.width))
        self.decay = torch.nn.Parameter(torch.zeros(config.width))
        self.head = torch.nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, tokens_BT, *, taps=None, positions=None, segment_ids=None, penalties=None):
        zero = self.tokens.new_zeros(len(tokens_BT), self.tokens.shape[1])
        return self._run(tokens_BT, zero, taps)[0]

    def init_cache(self, batch, max_len=None, start_B=None):
        return self.tokens.new_zeros(batch, self.tokens.shape[1])

    def extend(self, tokens_BT, cache, *, taps=None):
        return self._run(tokens_BT, cache, taps)

    def _run(self, tokens_BT, mean_BD, taps):
        scope = Scope(torch.arange(tokens_BT.shape[1]).expand(tokens_BT.shape), taps=taps)
        x_BTD = scope.tap("embed", F.embedding(tokens_BT, self.tokens))
        means = []
        for x_BD in x_BTD.unbind(1):
            mean_BD = torch.lerp(mean_BD, x_BD, self.decay.sigmoid())
            means.append(mean_BD)
        hidden_BTD = scope.tap("hidden", torch.stack(means, 1))
        return scope.tap("logits", self.head(hidden_BTD)), mean_BD
