"""What a completion refuses before anything starts."""

import errno
import functools

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import RLM, Scripted, Trace, environments, saved
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


async def late(event):
    pass


@pytest.mark.parametrize("callback", [late, "no function"])
@pytest.mark.parametrize("name", ["on_iteration_start", "on_subcall_complete"])
def test_callbacks_that_would_not_run(name, callback):
    with pytest.raises(ConfigError, match="a callback must be a function, and not an async one"):
        RLM(Scripted([]), **{name: callback})


def test_two_runs_do_not_share_a_state_file(tmp_path):
    """The file of the other one appears while the environment starts."""
    path, model = tmp_path / "state", Scripted(["FINAL(1)"])

    def environment(limits):
        path.write_bytes(b"of another run")
        return environments.make("monty", limits)

    with pytest.raises(ConfigError, match="state holds a run already"):
        RLM(model, environment=environment).completion("text", "What?", state=path)
    assert path.read_bytes() == b"of another run"
    assert not model.seen


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_is_one_error_that_names_the_file(at, tmp_path, monkeypatch):
    path, writes = tmp_path / "state", []

    def write(self, to, real=saved.State.write):
        writes.append(to)
        if len(writes) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, to)

    monkeypatch.setattr(saved.State, "write", write)
    with pytest.raises(ConfigError, match="cannot be saved to .*state: No space left") as caught:
        RLM(Scripted(["```repl\nx = 1\n```", "FINAL(x)"])).completion("text", "What?", state=path)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert (len(writes), path.exists()) == (at, at == 2)


def test_a_trace_has_one_root_and_no_truth_for_a_number(tmp_path):
    first, *rest = ask("FINAL(1)")[0].trace.events
    for events, fault in (
        ([first, first, *rest], r"two runs at \(\)"),
        ([first | {"seed": True}, *rest], "the seed True"),
    ):
        Trace(events).save(tmp_path / "trace")
        with pytest.raises(ConfigError, match=f"is not a trace: .*{fault}"):
            Trace.load(tmp_path / "trace")


def test_every_field_of_a_trace_that_is_read_is_there_and_of_its_type(tmp_path):
    trace = ask("```repl\nx = llm_query('a')\n```", "b", "FINAL(x)")[0].trace
    read = {"run": {"limits", "digest", "question"}, "turn": {"model", "reply"}, "cell": {"stdout", "answer"}}
    for index, event in enumerate(trace.events):
        for name in read.get(event["kind"], {"model", "memo", "prompt"} if event["kind"] == "call" else {"status"}):
            for changed in ({key: event[key] for key in event if key != name}, event | {name: 1.5}):
                events = [*trace.events[:index], changed, *trace.events[index + 1 :]]
                Trace(events).save(tmp_path / "trace")
                with pytest.raises(ConfigError, match=f"trace is not a trace: the event {event['kind']} .* {name}"):
                    Trace.load(tmp_path / "trace")
