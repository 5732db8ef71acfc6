"""The contract of an environment: where the code of a model runs, and what it gives back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mhc_jax.config import ConfigError

# End the error of a cell that was cut short at no certain place.
GONE = "What this cell assigned is gone; the variables are as they were before it."
LOST = (
    "What this cell assigned is gone, and so are the variables from before it, which take too long to load; those"
    " that were given at the beginning are there."
)
CUT = (GONE, LOST)


class SandboxUnavailable(ConfigError):
    """An environment that cannot be had here; nothing was executed. The message says how to get it."""


class SandboxDied(RuntimeError):
    """An environment that ended while it was needed. What it held is lost, and no answer is made up for it."""


class ToolError(Exception):
    """What a function of the host raises to tell the code something: of other errors the code sees the type alone."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one piece of code did.

    Attributes:
        stdout: what it printed and the value of a last bare expression; cut to ``Limits.max_output_chars`` already,
            from head and tail, with a line that counts what is missing.
        error: what went wrong, in words that the model can act on; None if nothing did.
        answer: the final answer, once ``FINAL``, ``FINAL_VAR`` or ``answer["ready"]`` gave one.
    """

    stdout: str = ""
    error: str | None = None
    answer: str | None = None


class Environment(Protocol):
    """Variables that last over cells, behind a boundary that code of a model does not pass.

    Code finds the variables and functions of the host, and :mod:`mhc_jax.rlm.prelude`. Clock and random seed are the
    same in each session, and ``sleep`` returns at once.

    Attributes:
        name: as in ``RLM(environment=...)``.
    """

    name: str

    def start(self, names: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> None:
        """Begins a session.

        Args:
            names: variables: ``context`` and tools that are data (texts, lists, dictionaries, numbers).
            functions: functions of the host. Their names are reserved: whatever a cell assigns to one, the next cell
                finds the function again. They are called with texts, numbers, and lists and dictionaries of these.
                Code that calls one that raises is told the message of a :class:`ToolError`, the type of any other
                Exception; what is no Exception, as KeyboardInterrupt, ends the cell and is raised by ``execute``.

        Raises:
            SandboxUnavailable: it cannot be had here.
            ValueError: a name is no identifier, or reserved.
        """
        ...

    def bind(self, names: Mapping[str, Any]) -> None:
        """Sets further variables, as the context of a second question, and empties ``answer``."""
        ...

    def execute(self, code: str) -> Cell:
        """Runs code; all that the model can mend is in the cell.

        After an end by the limits of time or memory the variables are those from before the cell, and its error says
        so in the words of :data:`GONE`, or of :data:`LOST` where those cannot be had. The clock of a cell stands still
        while a function of the host runs.

        Raises:
            SandboxDied: the session is lost.
        """
        ...

    def dump(self) -> bytes | None:
        """The variables of the session, for :meth:`load` of the same kind; to be loaded from trusted places only.

        None if environments of this kind have no dumps: an interrupted run is then replayed.
        """
        ...

    def load(self, dump: bytes, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Begins a session with the variables of :meth:`dump`, instead of :meth:`start`.

        Raises:
            SandboxUnavailable: it cannot be had here.
            SandboxDied: the dump cannot be loaded.
        """
        ...

    def close(self) -> None:
        """Ends the session; may be called twice."""
        ...
