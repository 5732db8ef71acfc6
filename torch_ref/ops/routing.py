"""What a token chooses: some of several components, and how many streams it uses."""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k_softmax(logits_K: Tensor, *, k: int) -> Tensor:
    """Probabilities of the k likeliest components, scaled to sum to one; the others get 0."""
    if not 1 <= k <= logits_K.shape[-1]:
        raise ValueError(f"k must be one of 1 to {logits_K.shape[-1]}, got {k}")
    index = logits_K.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(logits_K, dtype=torch.bool).scatter(-1, index, True)
    return logits_K.masked_fill(~kept, float("-inf")).softmax(-1)


def load_balance(logits_K: Tensor, weight_K: Tensor) -> Tensor:
    """K times the sum, over components, of the share of choices and the mean probability; 1 if both are uniform."""
    chosen_K = (weight_K > 0).to(logits_K.dtype).flatten(0, -2).sum(0)
    probability_K = logits_K.softmax(-1).flatten(0, -2).mean(0)
    return logits_K.shape[-1] * (chosen_K / chosen_K.sum()) @ probability_K


def straight_through(logits_N: Tensor, temperature: float, noise_N: Tensor | None = None) -> Tensor:
    """The one-hot argmax of the (noisy) logits; its derivative is that of their softmax at the temperature."""
    noisy_N = logits_N if noise_N is None else logits_N + noise_N
    soft_N = (noisy_N / temperature).softmax(-1)
    hard_N = F.one_hot(noisy_N.argmax(-1), noisy_N.shape[-1]).to(noisy_N.dtype)
    return hard_N + (soft_N - soft_N.detach())


def prefix_mask(choice_N: Tensor) -> Tensor:
    """``m_i``, the sum of the choices from i on: ones up to the chosen entry, zeros after it."""
    return choice_N.sum(-1, keepdim=True) - choice_N.cumsum(-1) + choice_N
