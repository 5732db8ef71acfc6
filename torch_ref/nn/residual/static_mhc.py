"""Static mHC: the same simplex reading and writing weights and the same mixing matrix for every token."""

import math

import torch
from torch import nn

from torch_ref.config import register
from torch_ref.nn.projections import build_projection
from torch_ref.nn.residual.mhc import MHC
from torch_ref.ops.projections import identity_mix


@register("residual", "static_mhc")
class StaticMHC(MHC):
    """``H_pre = softmax(pre)``; ``H_post = softmax(post)``, times N with unit writes; H_res projects the res logits.

    With an identity mix a, ``H_res = (1 - a) I + a S``: S is the projection, a the sigmoid of a parameter.
    """

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        n = self.stream_count = config.streams
        self.projection = build_projection(config.projection, n)
        self.write_gain = n if config.unit_writes else 1
        self.pre_logits = nn.Parameter(config.read_bias * torch.eye(n)[site % n])
        self.post_logits = nn.Parameter(torch.zeros(n))
        shape = self.projection.shape
        res_logits = self.projection.near_identity(config.diagonal_bias) + config.res_offset
        self.res_logits = nn.Parameter(res_logits + config.noise * torch.randn(shape)) if math.prod(shape) else None
        if not 0 <= config.identity_mix < 1:
            raise ValueError(f"static_mhc: identity_mix must be in [0, 1), got {config.identity_mix}")
        mixed = config.identity_mix and self.res_logits is not None
        self.mix_logit = nn.Parameter(torch.tensor(config.identity_mix).logit()) if mixed else None

    def coefficients(self, state):
        pre_N = self.pre_logits.softmax(0)
        post_N = self.write_gain * self.post_logits.softmax(0)
        if self.res_logits is None:
            return pre_N, post_N, None
        res_NN = self.projection(self.res_logits)
        if self.mix_logit is not None:
            res_NN = identity_mix(res_NN, self.mix_logit.sigmoid())
        return pre_N, post_N, res_NN
