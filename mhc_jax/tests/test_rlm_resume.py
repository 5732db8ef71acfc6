"""Runs that are the same twice, are replayed without a model, and go on after an interruption."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import RLM, Diverged, Limits, Reply, Scripted, Trace, replay, saved
from mhc_jax.rlm.environments import SandboxDied
from mhc_jax.rlm.environments.monty import Monty

ROOT = Path(__file__).parents[2]
CONTEXT = "alpha beta gamma delta " * 50


def code(*lines):
    return "```repl\n" + "\n".join(lines) + "\n```"


def speak(messages):
    """Three turns with sub-calls, recursion, randomness and time; a child of one turn."""
    if messages[0]["role"] != "system":
        return Reply(f"reply to {messages[0]['content'][:20]}")
    if "Question: What?" not in messages[1]["content"]:
        return code("FINAL(llm_query('of the child: ' + context[:5]))")
    turn = sum(message["role"] == "assistant" for message in messages)
    return [
        code("import random, time", "found = llm_batch(chunk(300))", "print(random.random(), time.time(), found)"),
        code("found += rlm_query_batched(['one', 'two'])", "print(len(found))", "llm_query('after')"),
        code("print(random.random())", "FINAL(found[-1] + str(len(found)))"),
    ][turn]


LIMITS = Limits(max_depth=2)


def complete(model=speak, **options):
    return RLM(model, limits=LIMITS, **options).completion(CONTEXT, "What?")


def test_the_same_run_twice_is_the_same():
    first, second = complete(), complete()
    assert first.answer == "reply to of the child: two6"
    assert first.trace == second.trace
    assert first == second


def test_seeds_give_other_random_numbers():
    def printed(seed):
        return [event["stdout"] for event in complete(seed=seed).trace.events if event["kind"] == "cell"]

    assert printed(1) == printed(1) != printed(2)


@pytest.mark.parametrize("memo", [False, True])
def test_a_trace_is_replayed_without_a_model(memo, tmp_path):
    first = complete(memo=memo)
    first.trace.save(tmp_path / "trace.jsonl")
    loaded = Trace.load(tmp_path / "trace.jsonl")
    assert loaded == first.trace
    again = replay(loaded)
    assert (again.answer, again.status, again.usage) == (first.answer, first.status, first.usage)


def test_a_run_that_failed_is_replayed_too():
    model = Scripted([OSError("reset"), code("llm_batch(['a', 'b'])"), *[OSError("gone")] * 3, "no code", "late"])
    first = RLM(model, limits=Limits(max_errors=9, max_llm_calls=7, max_prompt_chars=3000)).completion("x", "What?")
    again = replay(first.trace)
    assert (again.answer, again.status, again.reason) == (first.answer, first.status, first.reason)


@pytest.mark.parametrize("limits", [Limits(max_llm_calls=2), Limits(max_iterations=1)])
def test_a_forced_answer_is_replayed_too(limits):
    first = RLM(Scripted([code("x = 5"), "FINAL_VAR(x)"]), limits=limits).completion("text", "What?")
    again = replay(first.trace)
    assert (again.answer, again.status) == (first.answer, first.status) == ("5", "forced")
    turns = [tuple(event["path"]) for event in first.trace.events if event["kind"] == "turn"]
    assert len({*turns}) == len(turns)


def test_the_trace_holds_each_message_once():
    model = Scripted([code("x = 'y' * 2000", "print(x)"), "a summary", code("print(1)"), "FINAL(1)"])
    trace = RLM(model, compaction=3000).completion("text", "What?").trace
    first, summary, after, last = (event["messages"] for event in trace.events if event["kind"] == "turn")
    assert first == model.seen[0]
    assert summary == model.seen[1][2:]
    assert after == model.seen[2]
    assert last == model.seen[3][2:]


def test_a_cell_that_a_clock_ended_is_replayed_whatever_it_had_printed():
    endless = "```repl\ni = 0\nwhile True:\n    i += 1\n    print(i)\n```"
    limits = Limits(cell_timeout=0.1)
    result = RLM(Scripted([endless, 'FINAL("done")']), limits=limits).completion("text")
    again = replay(result.trace)
    assert (again.answer, again.trace) == ("done", result.trace)


def test_a_replay_that_differs_says_where():
    trace = complete().trace
    events = [dict(event) for event in trace.events]
    cell = next(event for event in events if event["kind"] == "cell")
    cell["stdout"] = "something else"
    with pytest.raises(Diverged, match=r"cell at \(1, 1\) differs in stdout"):
        replay(Trace(events))


def test_a_long_context_is_given_to_the_replay():
    rlm = RLM(Scripted([code("FINAL(len(context))")]))
    trace = rlm.completion("x" * 200_000).trace
    with pytest.raises(ConfigError, match="too long to be in the trace"):
        replay(trace)
    with pytest.raises(ConfigError, match="not the context"):
        replay(trace, "y" * 200_000)
    assert replay(trace, "x" * 200_000).answer == "200000"
    assert all(len(str(event)) < 100_000 for event in trace.events)


def test_a_file_that_is_no_trace(tmp_path):
    for content in ("{}", '{"kind": "run", "path": [true]}', '{"kind": "run"', "7", "\xff", "[" * 100_000):
        (tmp_path / "none").write_bytes(content.encode("latin-1") + b"\n")
        with pytest.raises(ConfigError, match="none is not a trace: .") as caught:
            Trace.load(tmp_path / "none")
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
    with pytest.raises(ConfigError, match="absent cannot be read: No such file"):
        Trace.load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="holds no run"):
        replay(Trace())


class Interrupted:
    """A model that is interrupted at one of its calls, and asked for the others once each."""

    name = "speak"
    parallel = False  # so that it is the same call every time

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, messages):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return speak(messages)


WHOLE = 3 + 4 + 2 + 2 + 1  # turns, chunks, children with a call each, the last call


@pytest.mark.parametrize("at", range(1, WHOLE + 1))
@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_run_goes_on_where_it_stopped(at, kept, tmp_path, monkeypatch):
    if not kept:  # as an environment that has no dumps
        monkeypatch.setattr("mhc_jax.rlm.environments.monty.Monty.dump", without_dumps)
    path, whole = tmp_path / "state", complete()
    model = Interrupted(at)
    with pytest.raises(KeyboardInterrupt):
        RLM(model, limits=LIMITS).completion(CONTEXT, "What?", state=path)
    assert path.exists()
    result = RLM(model, limits=LIMITS).resume(path)
    assert result.answer == whole.answer
    assert result.trace.difference(whole.trace) is None
    assert result.usage == whole.usage
    assert model.calls == WHOLE + 1
    assert not path.exists()


def without_dumps(self):
    return None


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SandboxDied("gone")], ids=repr)
def test_a_run_that_ends_while_it_is_saved_keeps_its_variables(fault, tmp_path, monkeypatch):
    replies = {2: code("a = 1"), 4: code("b = 2"), 6: code("FINAL(a + b)")}

    def model(messages):
        return replies.get(len(messages), code("FINAL(SHOW_VARS())"))

    taken = []

    def dump(self):
        taken.append(self._state)
        if len(taken) == 3:  # after the second turn
            raise fault
        return self._state

    with monkeypatch.context() as patched:
        patched.setattr(Monty, "dump", dump)
        with pytest.raises(type(fault)):
            RLM(model).completion("text", "What?", state=tmp_path / "state")
    assert RLM(model).resume(tmp_path / "state").answer == "3"


def test_an_interrupt_waits_for_what_is_under_way_and_begins_nothing(tmp_path):
    begun, asked = threading.Event(), []

    def model(messages):
        if messages[0]["role"] == "system":
            return code("print(llm_batch(['a', 'b', 'c', 'd']))")
        asked.append(messages[0]["content"])
        if asked[-1] == "a":
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.1)
        return "paid for"

    limits = Limits(max_concurrent_subcalls=2)
    with pytest.raises(KeyboardInterrupt):
        RLM(model, limits=limits).completion("text", "What?", state=tmp_path / "state")
    assert sorted(asked) == ["a", "b"]
    replies = [event["reply"] for event in saved.read(tmp_path / "state").events if event["kind"] == "call"]
    assert replies == ["paid for"]


def test_a_call_that_failed_is_made_again_and_what_follows_is_not_mixed_up(tmp_path):
    fails, stops = [True], [True]

    def model(messages):
        if messages[0]["role"] == "system":
            lines = ("found = []", "for one in ['a', 'b']:", "    try:", "        found.append(llm_query(one))")
            return code(*lines, "    except RuntimeError:", "        found.append(llm_query('again'))", "FINAL(found)")
        said = messages[0]["content"]
        if said == "a" and fails.pop():
            fails.append(False)
            raise OSError("reset")
        if said == "b" and stops.pop():
            stops.append(False)
            raise KeyboardInterrupt
        return said.upper()

    with pytest.raises(KeyboardInterrupt):
        RLM(model).completion("text", "What?", state=tmp_path / "state")
    assert RLM(model).resume(tmp_path / "state").answer == "['A', 'B']"


def test_limits_count_what_was_spent_before_an_interruption(tmp_path):
    model = Interrupted(11)
    with pytest.raises(KeyboardInterrupt):
        RLM(model, limits=LIMITS).completion(CONTEXT, "What?", state=tmp_path / "state")
    result = RLM(model, limits=Limits(max_depth=2, max_llm_calls=10)).resume(tmp_path / "state")
    assert (result.status, result.usage.calls) == ("calls", 10)
    assert model.calls == 11


def test_a_run_without_an_answer_can_go_on_with_more(tmp_path):
    path = tmp_path / "state"
    short = RLM(speak, limits=Limits(max_depth=2, max_timeout=1e-9)).completion(CONTEXT, "What?", state=path)
    assert short.status == "timeout"
    assert RLM(speak, limits=LIMITS).resume(path).answer == complete().answer


def test_a_state_file_is_not_overwritten_and_must_fit(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(ConfigError, match="there is no saved run"):
        RLM(speak).resume(path)
    path.write_text("something of mine")
    with pytest.raises(ConfigError, match="holds a run already"):
        RLM(speak).completion(CONTEXT, state=path)
    with pytest.raises(ConfigError, match="is no saved run"):
        RLM(speak).resume(path)
    assert path.read_text() == "something of mine"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty: its run was stopped before it began; remove it"):
        RLM(speak).resume(path)
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        RLM(Interrupted(3), limits=LIMITS).completion(CONTEXT, "What?", state=path)
    with pytest.raises(ConfigError, match="saved with seed 0; this one has 5"):
        RLM(Interrupted(99), limits=LIMITS, seed=5).resume(path)
    assert path.exists()


def test_a_signal_in_the_middle(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from mhc_jax.rlm import RLM
        from mhc_jax.tests.test_rlm_resume import CONTEXT, LIMITS, speak

        def model(messages):
            if len(messages) > 3 and not os.path.exists("sent"):
                open("sent", "w").close()
                os.kill(os.getpid(), signal.SIGINT)
            return speak(messages)

        model.name = "speak"
        try:
            RLM(model, limits=LIMITS).completion(CONTEXT, "What?", state="state")
        except KeyboardInterrupt:
            sys.exit(130)
        """)
    )
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode in (130, -signal.SIGINT)
    model = Interrupted(-1)
    assert RLM(model, limits=LIMITS).resume(tmp_path / "state").answer == complete().answer
    assert model.calls < WHOLE
