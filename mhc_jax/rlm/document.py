"""A long text and the parts of it that are read."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Self

from mhc_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Document:
    """A text. It is never taken for a path: a file is read by :meth:`from_file` alone.

    Raises:
        ConfigError: something else than a text.
    """

    text: str

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise ConfigError(f"a document is made of a text, not of {type(self.text).__name__}")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, encoding: str = "utf-8") -> Self:
        """Reads a file. Raises ConfigError for one that is not text or cannot be read."""
        try:
            return cls(Path(path).read_text(encoding=encoding))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not text in {encoding}: {error}") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except LookupError as error:
            raise ConfigError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self.text)

    def peek(self, start: int = 0, end: int | None = None) -> str:
        """The characters from ``start`` to ``end``; what lies outside of the text is empty."""
        stop = len(self.text) if end is None else max(end, 0)
        return self.text[max(start, 0) : stop]

    def chunks(self, size: int, overlap: int = 0) -> list[str]:
        """The text in parts, see :func:`windows`."""
        return [self.text[start:end] for start, end in windows(len(self.text), size, overlap)]

    def search(self, pattern: str, max_results: int = 10, window: int = 100) -> list[tuple[int, str]]:
        """Places of a regular expression, each with the text around it.

        The pattern runs in this process: give it none that a model has written.
        """
        found = re.finditer(pattern, self.text)
        places = [match.span() for match, _ in zip(found, range(max_results), strict=False)]
        return [(start, self.peek(start - window, end + window)) for start, end in places]


def windows(length: int, size: int, overlap: int = 0, *, original: bool = False) -> list[tuple[int, int]]:
    """Starts and ends of parts of ``size`` that cover ``length``, each beginning ``overlap`` before the last ends.

    Args:
        original: also the parts that lie in the one before, as RLM-mHC has them.

    Raises:
        ConfigError: no size, or an overlap that is not smaller.
    """
    if size < 1:
        raise ConfigError(f"the size of a chunk must be at least 1, got {size}")
    if not 0 <= overlap < size:
        raise ConfigError(f"the overlap of chunks must lie in 0..{size - 1}, below their size, got {overlap}")
    end = length if original or length <= overlap else length - overlap
    return [(start, min(start + size, length)) for start in range(0, end, size - overlap)]
