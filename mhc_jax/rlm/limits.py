"""What one completion may use, with everything that it calls."""

import dataclasses

from mhc_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Limits(Config):
    """Bounds of a whole tree of calls; nothing inside the tree can raise them.

    Attributes:
        max_depth: levels that have an environment of their own; a recursive call below them is a plain completion.
            With 1, only the root writes code; with 0, the root itself is a plain completion.
        max_iterations: turns of each level.
        max_llm_calls: calls of models in the whole tree, turns and the forced answer included.
        max_tokens: of prompts and replies in the whole tree; None for no bound.
        max_timeout: seconds from the start, after which no call begins; one under way is waited for. None for no bound.
        max_errors: consecutive turns of a level that fail: no code, an error in it, a model that raises.
        max_concurrent_subcalls: calls of models at the same time, in the whole tree.
        max_output_chars: of a cell's output that the model is shown, from its head and its tail.
        max_prompt_chars: of one prompt; a longer one is refused, never cut.
        cell_timeout: seconds of a cell, without the calls that it waits for; from 0.001 to 1,000,000.
        memory_mb: of an environment, in MiB.
    """

    max_depth: int = 1
    max_iterations: int = 20
    max_llm_calls: int = 50
    max_tokens: int | None = None
    max_timeout: float | None = 300.0
    max_errors: int = 5
    max_concurrent_subcalls: int = 4
    max_output_chars: int = 10_000
    max_prompt_chars: int = 500_000
    cell_timeout: float = 10.0
    memory_mb: int = 512

    def validate(self):
        super().validate()
        self.require_counts(0, "max_depth", "max_output_chars")
        self.require_counts(
            1,
            "max_iterations",
            "max_llm_calls",
            "max_errors",
            "max_concurrent_subcalls",
            "max_prompt_chars",
            "memory_mb",
        )
        if self.max_tokens is not None:
            self.require_counts(1, "max_tokens")
        timeout, cell = self.max_timeout, self.cell_timeout
        self.require(timeout is None or timeout > 0, f"max_timeout must be positive, got {timeout}")
        self.require(1e-3 <= cell <= 1e6, f"cell_timeout must lie from 0.001 to 1,000,000 seconds, got {cell}")
