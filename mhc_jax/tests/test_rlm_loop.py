"""The loop between a model and an environment: how it ends, and what the model is told."""

import concurrent.futures
import threading

import pytest

from mhc_jax.rlm import RLM, Document, Limits, PromptTooLong, Reply, SandboxDied, SandboxUnavailable, Scripted
from mhc_jax.rlm.environments import Cell


def code(*lines):
    return "```repl\n" + "\n".join(lines) + "\n```"


def ask(*replies, context="some text", question="What?", **options):
    """The result, and the model that was asked."""
    model = Scripted(replies)
    return RLM(model, **options).completion(context, question), model


@pytest.mark.parametrize(
    "reply",
    [
        code("FINAL('forty-two')"),
        code("x = 'forty-two'", "FINAL_VAR('x')"),
        code("answer['content'] = 'forty-two'", "answer['ready'] = True"),
        code("try:", "    FINAL('forty-two')", "except:", "    pass"),
        code("x = 'forty-two'") + "\nFINAL_VAR(x)",
        code("x = 'forty-two'") + "\nFINAL(x)",
        "FINAL(forty-two)",
        "I have it.\nFINAL('forty-two')",
    ],
)
def test_all_forms_of_a_final_answer(reply):
    result, _ = ask(reply)
    assert (result.status, result.answer, result.reason) == ("answered", "forty-two", None)


@pytest.mark.parametrize("word", ["Paris", "max", "list", "search", "answer", "llm_query", "re", "f", "__name__"])
def test_a_word_that_is_no_variable_is_itself(word):
    assert ask(code("import re", "def f(): pass") + f"\nFINAL({word})")[0].answer == word


def test_a_variable_may_have_the_name_of_a_builtin():
    assert ask(code("(max, low) = 5, 1") + "\nFINAL(max)")[0].answer == "5"


def test_an_answer_that_is_not_ready_is_none():
    result, model = ask(code("answer['content'] = 'half'"), "FINAL(whole)")
    assert result.answer == "whole"
    assert len(model.seen) == 2


def test_an_answer_made_up_beside_code_that_fails_does_not_count():
    result, model = ask(code("1/0") + "\nFINAL(invented)", "FINAL(seen)")
    assert result.answer == "seen"
    assert "ZeroDivisionError" in model.seen[1][-1]["content"]


def test_a_variable_from_before_code_that_fails_is_no_answer():
    result, _ = ask(code("x = 'old'"), code("x = 1/0") + "\nFINAL_VAR(x)", "FINAL(new)")
    assert result.answer == "new"


def test_a_final_variable_that_does_not_exist_is_named():
    result, model = ask("FINAL_VAR(nothing)", "FINAL(1)")
    assert result.answer == "1"
    assert "nothing" in model.seen[1][-1]["content"]


def test_every_block_of_a_turn_runs_up_to_one_that_fails():
    _, model = ask(
        "\n".join([code("print('one')"), code("print('two')", "1/0"), code("print('three')")]), "FINAL(done)"
    )
    told = model.seen[1][-1]["content"]
    assert "one" in told
    assert "two" in told
    assert "three" not in told
    assert "The 1 blocks after it were not run." in told


def test_messages_are_one_conversation_that_only_grows():
    _, model = ask(code("print(1)"), code("print(2)"), "FINAL(3)")
    for before, after in zip(model.seen, model.seen[1:], strict=False):
        assert after[: len(before)] == before
    assert [message["role"] for message in model.seen[-1]] == ["system", *["user", "assistant"] * 2, "user"]
    assert "Turn 3 of 20" in model.seen[-1][-1]["content"]


def test_the_context_is_not_in_the_prompt():
    _, model = ask("FINAL(1)", context="secret " * 1000)
    assert "a text of 7,000 characters" in model.seen[0][1]["content"]
    assert "secret" not in str(model.seen)


@pytest.mark.parametrize("context", ["text", ["a", "b"], {"k": ["v"]}, Document("text")])
def test_contexts_of_every_kind(context):
    bound = context.text if isinstance(context, Document) else context
    assert ask(code(f"FINAL(context == {bound!r})"), context=context)[0].answer == "True"


def test_a_text_is_never_a_path(tmp_path):
    (tmp_path / "file").write_text("inside")
    assert ask(code("FINAL(context)"), context=str(tmp_path / "file"))[0].answer == str(tmp_path / "file")


@pytest.mark.parametrize(
    ("reply", "told"),
    [("no code here", "no ```repl block"), ("", "held no text"), (None, "held no text"), (Reply(None), "held no text")],
)
def test_replies_without_code_are_told_so_and_count_as_errors(reply, told):
    result, model = ask(*[reply] * 3, limits=Limits(max_errors=3))
    assert (result.status, result.answer) == ("errors", None)
    assert told in result.reason
    assert told in model.seen[1][-1]["content"]
    assert result.usage.calls == 3


def test_errors_count_in_a_row_only():
    replies = [code("1/0"), code("1/0"), code("print(1)"), code("1/0"), code("1/0"), "FINAL(through)"]
    assert ask(*replies, limits=Limits(max_errors=3))[0].answer == "through"


def test_a_model_that_raises_is_asked_again_and_then_given_up():
    result, model = ask(OSError("reset"), "FINAL(ok)")
    assert result.answer == "ok"
    assert model.seen[0] == model.seen[1]
    result, _ = ask(*[OSError("reset")] * 5)
    assert (result.status, result.answer) == ("errors", None)
    assert "scripted failed: OSError: reset" in result.reason


@pytest.mark.parametrize("given", [3, ["a"], {"text": "a"}])
def test_a_model_that_returns_no_text_is_named(given):
    result, _ = ask(*[given] * 2, limits=Limits(max_errors=2))
    assert "not a text" in result.reason


def test_turns_that_are_used_up_force_an_answer_which_is_marked():
    result, model = ask(code("x = 7"), code("x = 8"), "Eight, I think", limits=Limits(max_iterations=2))
    assert (result.status, result.answer) == ("forced", "Eight, I think")
    assert "max_iterations" in result.reason
    assert "final answer now" in model.seen[-1][-1]["content"]
    result, _ = ask(code("x = 7"), "FINAL_VAR(x)", limits=Limits(max_iterations=1))
    assert (result.status, result.answer) == ("forced", "7")


@pytest.mark.parametrize("last", ["", code("FINAL(1)"), OSError("gone"), "FINAL_VAR(nothing)"])
def test_no_answer_is_invented_where_none_is_forced(last):
    result, _ = ask(code("x = 7"), last, limits=Limits(max_iterations=1))
    assert (result.status, result.answer) == ("iterations", None)


def test_calls_that_are_used_up_leave_one_for_the_answer():
    result, model = ask(code("print(1)"), code("print(2)"), "two", limits=Limits(max_llm_calls=3))
    assert (result.status, result.answer) == ("forced", "two")
    assert len(model.seen) == 3 == result.usage.calls


def test_tokens_end_a_run_before_they_are_spent():
    model = Scripted(lambda messages: Reply(code("print(1)"), 100, 50))
    result = RLM(model, limits=Limits(max_tokens=4000)).completion("text", "What?")
    assert (result.status, result.answer) == ("tokens", None)
    assert result.usage.tokens <= 4000
    assert not result.usage.estimated
    assert result.usage.tokens == 150 * result.usage.calls


def test_time_ends_a_run(monkeypatch):
    now = [0.0]

    def slow(messages):
        now[0] += 10
        return code("print(1)")

    monkeypatch.setattr("mhc_jax.rlm.loop.CLOCK", lambda: now[0])
    result = RLM(slow, limits=Limits(max_timeout=25.0)).completion("text", "What?")
    assert (result.status, result.answer) == ("timeout", None)
    assert result.usage.calls == 3


def test_a_call_in_the_queue_is_not_made_when_time_is_over(monkeypatch):
    now, asked = [0.0], []

    def model(messages):
        if messages[0]["role"] == "system":
            return code("print(llm_batch(['a', 'b']))")
        asked.append(messages[0]["content"])
        now[0] += 10
        return "late"

    model.parallel = False
    monkeypatch.setattr("mhc_jax.rlm.loop.CLOCK", lambda: now[0])
    result = RLM(model, limits=Limits(max_timeout=5.0)).completion("text", "What?")
    assert (result.status, asked) == ("timeout", ["a"])
    assert result.usage.calls == 2


class Fails:
    """An environment that ends with an exception."""

    name = "fails"
    closed = 0

    def __init__(self, at, error):
        self._at, self._error = at, error

    def start(self, names, functions):
        if self._at == "start":
            raise self._error

    def execute(self, text):
        raise self._error

    def close(self):
        self.closed += 1


def test_an_environment_that_dies_ends_the_run_without_an_answer():
    failing, model = Fails("execute", SandboxDied("gone")), Scripted([code("x = 1"), "FINAL(invented)"])
    with pytest.raises(SandboxDied, match="gone") as died:
        RLM(model, environment=lambda limits: failing).completion("text", "What?")
    assert len(model.seen) == 1
    assert died.value.trace.usage().calls == 1
    assert failing.closed == 1


def test_an_environment_that_cannot_be_had_asks_nothing():
    failing, model = Fails("start", SandboxUnavailable("install it")), Scripted(["FINAL(invented)"])
    with pytest.raises(SandboxUnavailable, match="install it"):
        RLM(model, environment=lambda limits: failing).completion("text", "What?")
    assert not model.seen


def test_a_turn_that_does_not_fit_is_refused_and_not_cut():
    model = Scripted(["FINAL(1)"])
    with pytest.raises(PromptTooLong, match="max_prompt_chars is 100"):
        RLM(model, limits=Limits(max_prompt_chars=100)).completion("text", "What?")
    assert not model.seen


def test_a_later_turn_that_does_not_fit_ends_the_run_with_its_reason():
    result, model = ask(code("print('y' * 5000)"), "FINAL(1)", limits=Limits(max_prompt_chars=4000))
    assert (result.status, result.answer) == ("errors", None)
    assert "max_prompt_chars is 4,000" in result.reason
    assert len(model.seen) == 1


def test_old_turns_that_no_longer_fit_are_dropped_whole_and_counted():
    limits = Limits(max_prompt_chars=6000, max_output_chars=1000)
    result, model = ask(*[code("print('y' * 1000)")] * 6, "FINAL(1)", limits=limits)
    assert result.answer == "1"
    assert all(sum(len(message["content"]) for message in seen) <= 6000 for seen in model.seen)
    assert "[3 earlier turns are left out" in model.seen[-1][1]["content"]
    turns = [event for event in result.trace.events if event["kind"] == "turn"]
    assert [event["left_out"] for event in turns][-1] == 3


def test_compaction_replaces_the_conversation_by_a_summary():
    replies = [code("found = 'y' * 3000", "print(found)"), "found holds it", code("FINAL(len(found))")]
    result, model = ask(*replies, compaction=4000)
    assert result.answer == "3000"
    assert "Write the summary" in model.seen[1][-1]["content"]
    assert [message["role"] for message in model.seen[2]] == ["system", "user"]
    assert "found holds it" in model.seen[2][1]["content"]
    assert result.usage.calls == 3


def test_tools_are_found_described_and_their_faults_named():
    def price(of: str) -> float:
        """Price of a thing in euros."""
        return {"tea": 2.5}[of]

    result, model = ask(
        code("print(price('tea') * unit)"), code("price('gold')"), "FINAL(1)", tools={"price": price, "unit": 2}
    )
    assert result.answer == "1"
    assert "`price`: Price of a thing in euros." in model.seen[0][0]["content"]
    assert "5.0" in model.seen[1][-1]["content"]
    assert "price failed: KeyError: 'gold'" in model.seen[2][-1]["content"]


def test_an_own_system_prompt():
    _, model = ask("FINAL(1)", system_prompt="Only {output} characters of {context}.")
    assert model.seen[0][0]["content"] == "Only 10,000 characters of a text of 9 characters."


def test_without_depth_the_root_is_a_plain_completion():
    result, model = ask("an answer", limits=Limits(max_depth=0))
    assert (result.status, result.answer) == ("answered", "an answer")
    assert model.seen == [[{"role": "user", "content": "What?\n\nsome text"}]]
    assert ask(OSError("gone"), limits=Limits(max_depth=0))[0].status == "errors"


def test_a_question_within_the_context():
    assert "part of the context" in ask("FINAL(1)", question=None)[1].seen[0][1]["content"]


def test_a_session_keeps_variables_contexts_and_history():
    replies = [code("kept = 5", "FINAL(context)"), code("FINAL([context, context_0, context_1, kept, history])")]
    with RLM(Scripted(replies)) as session:
        assert session.completion("first", "one?").answer == "first"
        second = session.completion("second", "two?")
    history = [{"question": "one?", "answer": "first"}]
    assert second.answer == str(["second", "first", "second", 5, history])
    assert second.usage.calls == 1


def test_a_session_that_is_over_begins_anew():
    rlm = RLM(Scripted([code("kept = 1", "FINAL(1)"), code("FINAL(kept)"), "FINAL(none)"]))
    with rlm:
        rlm.completion("first")
    with rlm:
        assert rlm.completion("second").answer == "none"


def test_completions_at_the_same_time_do_not_see_each_other():
    barrier = threading.Barrier(4, timeout=10)

    def model(messages):
        if messages[0]["role"] == "system":
            return code("mine = context", "llm_query(mine)", "FINAL(mine + context)")
        barrier.wait()
        return "x"

    rlm = RLM(model)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert [result.answer for result in pool.map(rlm.completion, "abcd")] == ["aa", "bb", "cc", "dd"]


def test_callbacks_see_turns_and_subcalls():
    seen = []
    names = ("on_iteration_start", "on_iteration_complete", "on_subcall_start", "on_subcall_complete")
    callbacks = {name: lambda event, name=name: seen.append((name, tuple(event["path"]))) for name in names}
    ask(code("llm_query('sub')", "1/0"), "sub reply", "FINAL(1)", **callbacks)
    assert seen == [
        (names[0], (1,)),
        (names[2], (1, 1, 1)),
        (names[3], (1, 1, 1)),
        (names[1], (1,)),
        (names[0], (2,)),
        (names[1], (2,)),
    ]


@pytest.mark.parametrize(
    "name", ["on_iteration_start", "on_iteration_complete", "on_subcall_start", "on_subcall_complete"]
)
def test_what_a_callback_raises_ends_the_completion(name):
    def broken(event):
        raise TypeError("my own mistake")

    lines = ("try:", "    llm_query('sub')", "except:", "    pass")
    with pytest.raises(TypeError, match="my own mistake"):
        ask(code(*lines), "sub reply", "FINAL(1)", **{name: broken})


def test_an_interrupt_in_a_subcall_is_not_caught_by_code():
    model = Scripted([code("try:", "    llm_query('sub')", "except:", "    pass"), KeyboardInterrupt(), "FINAL(no)"])
    with pytest.raises(KeyboardInterrupt):
        RLM(model).completion("text", "What?")
    assert len(model.seen) == 2


def test_own_environments_are_made_with_the_limits():
    made = []

    class Answers:
        name = "answers"

        def __init__(self, limits):
            made.append(limits)

        def start(self, names, functions):
            self.names, self.functions = names, functions

        def execute(self, text):
            return Cell(answer=self.names["context"])

        def close(self):
            pass

    limits = Limits(cell_timeout=3.0)
    assert ask(code("anything"), environment=Answers, limits=limits)[0].answer == "some text"
    assert made == [limits]
