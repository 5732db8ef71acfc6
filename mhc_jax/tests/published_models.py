"""Models of Hugging Face transformers, and ours beside them, on the same few tokens."""

import numpy as np
import torch

import mhc_jax

TOKENS = np.arange(18).reshape(2, 9)


def randomised(model):
    """The model with random values in every parameter, for evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) + ("norm" in name))
    return model.eval()


def logits(model):
    return model(torch.from_numpy(TOKENS)).logits.detach().numpy()


def ours(config, params):
    return np.asarray(mhc_jax.apply(config, params, TOKENS).logits_BTV)


def check_greedy_continuations(published, config, params, new=14):
    """Those of prompts of equal and of unequal lengths are theirs."""
    prompt = TOKENS[:, :7]

    def generated(tokens, mask):
        tokens, mask = torch.from_numpy(tokens), torch.from_numpy(mask)
        return published.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)

    found = mhc_jax.generate(config, params, prompt, max_new_tokens=new, temperature=0)
    np.testing.assert_array_equal(found, generated(prompt, np.ones_like(prompt)))
    unequal = mhc_jax.generate(config, params, prompt, lengths_B=[3, 7], max_new_tokens=new, temperature=0)
    mask = np.ones_like(prompt)
    mask[0, :4] = 0
    padded = np.stack([np.roll(prompt[0], 4), prompt[1]])
    expected = generated(padded, mask).numpy()
    np.testing.assert_array_equal(unequal[0, : 3 + new], expected[0, 4:])
    np.testing.assert_array_equal(unequal[1], expected[1])
