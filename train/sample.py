"""Text from a trained model, printed as it is generated: ``python -m train.sample RUN --prompt TEXT``."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import tyro

from mhc_jax.config import Config
from mhc_jax.decode import goes_on
from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.sampling import Sampling
from train.data.continuation import texts
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.console import shown, task

# Separates samples.
RULE = "-" * 20


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Continue prompts.

    Attributes:
        run: run directory, or exported folder.
        prompt: text to continue; may be given several times, for texts that are computed together; without it, or
            with an empty one, a new text begins. Of one that is too long for the model, attention sees the end.
        tokens: largest number of new tokens.
        temperature: divisor of the logits; 0 always takes the likeliest token.
        top_k: draw only among the k likeliest tokens; 0 for all.
        top_p: draw only among the likeliest tokens that together have this probability.
        min_p: draw only among tokens with at least this fraction of the largest probability.
        repetition_penalty: above 1, tokens that already occur in the text become less likely.
        seed: seed of the draws, the same for every prompt; each further sample takes the next one.
        num_samples: number of continuations of every prompt, one after another.
        stop: text before which a continuation ends; may be given several times.
        interactive: whether to ask for one prompt after another; Ctrl-D ends.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    tokens: int = Sampling.max_new_tokens
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    min_p: float = Sampling.min_p
    repetition_penalty: float = Sampling.repetition_penalty
    seed: int = 0
    num_samples: int = 1
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    interactive: bool = False

    def validate(self):
        super().validate()
        self.require_counts(1, "tokens", "num_samples")
        self.require(0 <= self.seed < 2**32, f"seed must lie in 0 .. {2**32 - 1}, got {self.seed}")
        self.require("" not in self.stop, "stop must not be empty")
        self.require(not (self.interactive and self.prompt), "prompt and --interactive exclude each other")
        self.sampling.validate()

    @property
    def sampling(self) -> Sampling:
        """The options for drawing tokens, without ``stop``, which is text."""
        return Sampling(
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.sample")
    flags.validate()
    given = [cli.text(prompt, "--prompt") for prompt in flags.prompt] or [""]
    stop = [cli.text(text, "--stop") for text in flags.stop]
    config, params = load_run(flags.run)
    tokenizer = config.data.tokenizer_of_text()
    for prompts in ([prompt] for prompt in _prompts()) if flags.interactive else [given]:
        for line in _too_long(config.model, params, [len(tokenizer.encode(prompt)) for prompt in prompts]):
            print(line, file=sys.stderr)
        for index in range(flags.num_samples):
            seed = (flags.seed + index) % 2**32
            rows = texts(config.model, params, tokenizer, prompts, flags.sampling, seed=seed, stop=stop)
            _print(prompts, rows, further=index > 0)


def _too_long(model: ModelConfig, params: Params, lengths: Iterable[int]) -> Iterator[str]:
    """A line for each prompt that has more tokens than ``max_len``: what the model sees of it."""
    for length in lengths:
        if length > model.max_len:
            seen = "all are read" if goes_on(model, params) else f"the first {length - model.max_len:,} are not seen"
            yield f"note: a prompt has {length:,} tokens, more than the {model.max_len:,} of the model; {seen}"


def _print(prompts: Sequence[str], rows: Sequence[Iterator[str]], *, further: bool) -> None:
    """Prints one text after another: the first as it is generated, the others as far as they are by then.

    Args:
        further: whether texts have been printed before, so that the model is already compiled.
    """
    for index, (prompt, pieces) in enumerate(zip(prompts, rows, strict=True)):
        with task("compiling the model and reading the prompt", quiet=further or index > 0):
            first = next(pieces, "")
        print(f"{RULE}\n" if further or index else "", prompt, shown(first), sep="", end="", flush=True)
        for piece in pieces:
            print(shown(piece), end="", flush=True)
        print(flush=True)


def _prompts() -> Iterator[str]:
    """Lines that the user types, until the input ends."""
    while True:
        try:
            yield cli.text(input("prompt> "), "the prompt")
        except EOFError:
            print()
            return


if __name__ == "__main__":
    cli.run(main)
