"""The contract of what a model is scored on beside the data that it learned from."""

import abc
import dataclasses
from typing import Any

from mhc_jax.nn.model import ModelConfig
from train.measure.text_model import TextModel


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of a task.

    Attributes:
        task: its name.
        version: of the task, if it has versions.
        shots: examples before each question.
        n: number of documents.
        metric: its name.
        value, stderr: and its standard error, where there is one.
        chance: value of guessing, where that is known.
        cut: share of the prompts whose beginning the model could not read.
    """

    task: str
    version: Any
    shots: int | None
    n: int
    metric: str
    value: float
    stderr: float | None
    chance: float | None
    cut: float


class Tasks(abc.ABC):
    """Some tasks, whose data have been read."""

    @abc.abstractmethod
    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError if a model of that kind cannot be asked."""

    @abc.abstractmethod
    def score(self, model: TextModel) -> tuple[list[Score], list[dict[str, Any]]]:
        """The scores, and a record of every question with the task's name as ``"task"``."""
