"""Text from a trained model, as it comes: ``python -m train.sample RUN --prompt TEXT``."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import tyro

from mhc_jax.config import Config
from train.data.continuation import pieces
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.console import task

# Between samples.
RULE = "-" * 20


OPTIONS = ("tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Continue a prompt.

    Attributes:
        run: run directory, or exported folder.
        prompt: text to continue; empty to start a new text.
        tokens: how many to add at most.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw among the k likeliest tokens only; 0 for all.
        top_p: draw among the likeliest tokens that together hold this probability.
        min_p: draw among tokens at least this share as likely as the likeliest.
        repetition_penalty: above 1, tokens that the text holds already become less likely.
        seed: of the draws; each further sample takes the next one.
        num_samples: how many continuations, one after another.
        stop: end before this text; may be given several times.
        interactive: ask for one prompt after another; Ctrl-D ends.
    """

    run: tyro.conf.Positional[str]
    prompt: str = ""
    tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
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


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.sample")
    flags.validate()
    given, stop = cli.text(flags.prompt, "--prompt"), [cli.text(text, "--stop") for text in flags.stop]
    config, params = load_run(flags.run)
    tokenizer = config.data.tokenizer_of_text()
    options = {name: getattr(flags, name) for name in OPTIONS}
    for prompt in _prompts() if flags.interactive else [given]:
        for index in range(flags.num_samples):
            found = pieces(
                config.model, params, tokenizer, prompt=prompt, stop=stop, seed=(flags.seed + index) % 2**32, **options
            )
            with task("compiling the model and reading the prompt", quiet=index > 0):
                first = next(found, "")
            print(f"{RULE}\n" if index else "", prompt, first, sep="", end="", flush=True)
            for piece in found:
                print(piece, end="", flush=True)
            print(flush=True)


def _prompts() -> Iterator[str]:
    """Lines that a person types, until the input ends."""
    while True:
        try:
            yield cli.text(input("prompt> "), "the prompt")
        except EOFError:
            print()
            return


if __name__ == "__main__":
    cli.run(main)
