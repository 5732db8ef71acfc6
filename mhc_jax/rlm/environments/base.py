"""The contract of an environment: where the code of a model runs, and what it gives back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class SandboxUnavailable(RuntimeError):
    """An environment that cannot be had here; nothing was executed. The message says how to get it."""


class SandboxDied(RuntimeError):
    """An environment that ended while it was needed. What it held is lost, and no answer is made up for it."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one piece of code did.

    Attributes:
        stdout: what it printed, whole or as far as the environment keeps it.
        error: what went wrong, in words that the model can act on; None if nothing did.
        answer: the final answer, once ``FINAL``, ``FINAL_VAR`` or ``answer["ready"]`` gave one.
    """

    stdout: str = ""
    error: str | None = None
    answer: str | None = None


class Environment(Protocol):
    """Variables that last over cells, behind a boundary that code of a model does not pass.

    Attributes:
        name: as in ``RLM(environment=...)``.
    """

    name: str

    def start(self, names: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        """Begins a session.

        Args:
            names: variables: ``context`` and tools that are data (texts, lists, dictionaries, numbers).
            functions: functions of the host. Their names are reserved: whatever a cell assigns to one, the next cell
                finds the function again. They may raise; the message reaches the code.

        Raises:
            SandboxUnavailable: it cannot be had here.
        """
        ...

    def bind(self, names: Mapping[str, Any]) -> None:
        """Sets further variables, as the context of a second question, and empties ``answer``."""
        ...

    def execute(self, code: str) -> Cell:
        """Runs code; all that the model can mend is in the cell.

        Raises:
            SandboxDied: the session is lost.
        """
        ...

    def dump(self) -> bytes:
        """The variables of the session, for :meth:`load`. Raises NotImplementedError where there is no such thing."""
        ...

    def load(self, dump: bytes, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Begins a session with the variables of :meth:`dump`, instead of :meth:`start`."""
        ...

    def close(self) -> None:
        """Ends the session; may be called twice."""
        ...
