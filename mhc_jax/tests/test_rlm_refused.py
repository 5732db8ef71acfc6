"""What a completion refuses before anything starts."""

import functools

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import RLM, Scripted
from mhc_jax.tests.test_rlm_loop import ask


def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


@pytest.mark.parametrize(
    "context",
    [None, 3, b"bytes", {"k": {1, 2}}, "half \ud800", ["half \ud800"], nested(12), nested(100_000), [10**400]],
    ids=lambda context: type(context).__name__,
)
def test_contexts_that_cannot_be(context):
    with pytest.raises(ConfigError, match="a context"):
        ask("FINAL(1)", context=context)


@pytest.mark.parametrize("name", ["context", "llm_query", "budget", "peek", "FINAL", "two words", "class", "_mine"])
def test_tools_do_not_take_names_of_the_scaffold(name):
    with pytest.raises(ConfigError, match=name):
        RLM(Scripted([]), tools={name: len})


@pytest.mark.parametrize("tools", [{5: 1}, {"a b": 1}, {"thing": object()}, {"deep": nested(12)}])
def test_tools_that_cannot_be(tools):
    with pytest.raises(ConfigError, match="a tool must be a function or data under a name of its own: .") as caught:
        ask("FINAL(1)", tools=tools)
    assert len(str(caught.value)) < 300
