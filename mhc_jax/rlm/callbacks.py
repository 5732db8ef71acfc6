"""Code of the caller that is told what happens in a run."""

from collections.abc import Callable
from typing import Any

Callback = Callable[[dict[str, Any]], None]


class CallbackRaised(BaseException):
    """An error of the caller's own code; not an Exception, which would be told to the model.

    Attributes:
        error: that was raised.
    """

    def __init__(self, error: Exception):
        super().__init__(error)
        self.error = error


def report(callback: Callback | None, event: dict[str, Any]) -> None:
    """Calls back. Raises CallbackRaised."""
    if callback:
        try:
            callback(event)
        except Exception as error:
            raise CallbackRaised(error) from error
