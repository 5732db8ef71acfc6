"""Text from a trained model: ``python -m train.sample RUN --prompt TEXT``."""

import dataclasses

import jax
import jax.numpy as jnp
import tyro

from mhc_jax import generate
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train import cli
from train.config import RunConfig
from train.data import Tokenizer, load_tokenizer
from train.restore import load_run


def sample(
    config: RunConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    prompt: str = "",
    tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """``prompt`` and its continuation by at most ``tokens`` tokens; stops at the end-of-text token.

    An empty prompt starts a new text, after the end-of-text token (of characters, after a line end).

    Raises:
        ConfigError: a prompt of no tokens, one that leaves no room in ``max_len`` or holds ids outside the
            model's vocabulary, or sampling options out of range.
    """
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.start_id]
    if not ids:
        raise ConfigError(f"tokenizer {tokenizer.name!r} makes no tokens of the prompt {prompt!r}; give another one")
    found = generate(
        config.model,
        params,
        jnp.asarray([ids]),
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed),
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
    )
    new = jax.device_get(found)[0, len(ids) :].tolist()
    if tokenizer.eos_id in new:
        new = new[: new.index(tokenizer.eos_id)]
    return prompt + tokenizer.decode(new)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Continue a prompt.

    Attributes:
        run: run directory, or exported folder.
        prompt: text to continue; empty to start a new text.
        tokens: how many to add at most.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw among the k likeliest tokens only; 0 for all.
        top_p: draw among the likeliest tokens that together hold this probability.
        seed: of the draws.
    """

    run: tyro.conf.Positional[str]
    prompt: str = ""
    tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.sample")
    config, params = load_run(flags.run)
    options = dataclasses.asdict(flags)
    del options["run"]
    print(sample(config, params, load_tokenizer(config.data.tokenizer), **options))


if __name__ == "__main__":
    cli.run(main)
