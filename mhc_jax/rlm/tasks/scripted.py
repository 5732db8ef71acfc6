"""A model that knows how each task is solved, and one that reads well and only so far: what a benchmark is tried on."""

from collections.abc import Sequence

from mhc_jax.rlm import environments
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.models import Messages
from mhc_jax.rlm.tasks import aggregate
from mhc_jax.rlm.tasks.task import Task

# Characters that the plain model reads.
WINDOW = 16_000


class Oracle:
    """As the root it writes the program of the task; below, it labels lines as :mod:`aggregate` asks for.

    Args:
        task: to be solved.
    """

    name = "scripted"

    def __init__(self, task: Task):
        self._task = task

    def __call__(self, messages: Messages) -> str:
        asked = messages[-1]["content"]
        if asked.startswith(aggregate.LABEL):
            return aggregate.labels(asked)
        return f"I compute the answer.\n\n```repl\n{self._task.program}\n```"


class Reader:
    """Answers from the first :data:`WINDOW` characters of a context, without a mistake, and knows nothing of the rest.

    Args:
        task: to be answered.
    """

    name = "scripted reader"

    def __init__(self, task: Task):
        self._task = task

    def __call__(self, messages: Messages) -> str:
        environment = environments.make("monty", Limits())
        try:
            environment.start({"context": self._task.context[:WINDOW]}, {"llm_query_batched": _labelled})
            return environment.execute(self._task.program).answer or "It does not say."
        finally:
            environment.close()


def _labelled(prompts: Sequence[str]) -> list[str]:
    return [aggregate.labels(prompt) for prompt in prompts]
