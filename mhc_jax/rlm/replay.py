"""A completion once more, with the replies of its trace in the place of models."""

from collections.abc import Callable, Mapping
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.rlm.environments.base import Environment
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.loop import RLM, checked
from mhc_jax.rlm.models import Scripted
from mhc_jax.rlm.program import Result
from mhc_jax.rlm.trace import Trace, digest


class Diverged(RuntimeError):
    """A replay that did not do what the trace says. The message names the first difference."""


def replay(
    trace: Trace,
    context: Any = None,
    *,
    tools: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    compaction: int | None = None,
    environment: str | Callable[[Limits], Environment] | None = None,
) -> Result:
    """Runs a completion again, with the replies of its trace in the place of models.

    Args:
        trace: of a completion, with or without an answer.
        context: needed if it is too long to be in the trace.
        tools, system_prompt, compaction: as the completion had them.
        environment: another one than the trace says.

    Raises:
        ConfigError: no context, or another one.
        Diverged: something else happened than the trace says.
    """
    root = next((event for event in trace.events if event["kind"] == "run" and not event["path"]), None)
    if root is None:
        raise ConfigError("the trace holds no run")
    context = root["context"] if context is None else checked(context)
    if context is None:
        raise ConfigError("the context is too long to be in the trace; give it to replay()")
    if digest(context) != root["digest"]:
        raise ConfigError("this is not the context of the trace")
    model, sub_model = (Scripted([], name=root[name]) for name in ("model", "sub_model"))
    again = RLM(
        model,
        sub_model,
        environment or root["environment"],
        Limits.from_dict(root["limits"]),
        tools,
        system_prompt,
        any(event.get("memo") for event in trace.events),
        root["seed"],
        compaction,
    )
    result = again.run(root["question"], context, recorded=trace.replies())
    if difference := trace.difference(result.trace):
        raise Diverged(difference)
    return result
