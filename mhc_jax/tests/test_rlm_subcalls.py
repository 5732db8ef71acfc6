"""What code in the environment calls: its answers, its faults, and the account of the whole tree."""

import threading
import time

import pytest

from mhc_jax.rlm import RLM, Limits, Reply, SandboxDied, Scripted, environments, replay


def code(*lines):
    return "```repl\n" + "\n".join(lines) + "\n```"


def is_turn(messages):
    """Of a model with an environment, told from a plain completion."""
    return messages[0]["role"] == "system"


def sub(answer, root):
    """A model whose turns are those of ``root`` and whose plain replies ``answer`` makes of the prompt."""
    turns = iter(root)
    return Scripted(lambda messages: next(turns) if is_turn(messages) else answer(messages[0]["content"]))


def run(answer, *root, context="text", **options):
    return RLM(sub(answer, root), **options).completion(context, "What?")


def test_a_sub_call_sees_its_prompt_alone():
    model = sub(str.upper, [code("FINAL(llm_query('say ' + context))")])
    assert RLM(model).completion("it", "What?").answer == "SAY IT"
    assert model.seen[1] == [{"role": "user", "content": "say it"}]


def test_the_sub_model_answers_what_is_below_the_root():
    small = Scripted(lambda messages: "small")
    result = RLM(Scripted([code("FINAL(llm_query('a'))")]), small).completion("text", "What?")
    assert result.answer == "small"
    assert result.usage.models == {"scripted": 2}
    assert len(small.seen) == 1


@pytest.mark.parametrize("name", ["llm_query_batched", "llm_batch", "rlm_query_batched"])
def test_a_batch_keeps_its_order_and_one_failure_does_not_sink_it(name):
    def answer(prompt):
        if prompt == "b":
            raise OSError("reset")
        return prompt.upper()

    result = run(answer, code(f"print({name}(['a', 'b', 'c']))"), "FINAL(1)")
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    assert "['A', None, 'C']" in cell["stdout"]
    assert cell["notes"] == ["No reply to prompts[1], which is None there: scripted failed: OSError: reset"]


@pytest.mark.parametrize("name", ["llm_query", "rlm_query"])
@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (OSError("reset"), "scripted failed: OSError: reset"),
        *[(text, "the model gave no text") for text in ("", None, " ")],
    ],
)
def test_a_failed_call_is_an_error_and_no_answer(name, reply, fault):
    result = run(lambda prompt: reply, code(f"FINAL({name}('a'))"), "FINAL(none)")
    assert result.answer == "none"
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    assert cell["error"].startswith(f"RuntimeError: {fault}")
    assert cell["answer"] is None


def test_code_can_catch_a_failed_call():
    lines = ("try:", "    llm_query('a')", "except RuntimeError as error:", "    FINAL(f'caught {error}')")
    assert run(lambda prompt: OSError("reset"), code(*lines)).answer == "caught scripted failed: OSError: reset"


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("llm_query(3)", "prompt must be a text, not int"),
        ("llm_query_batched('abc')", "prompts must be a list, not str"),
        ("llm_query_batched(['a', 3])", "prompts[1] must be a text"),
        ("rlm_query('a', 3)", "context must be a list, not int"),
        ("rlm_query_batched(['a'], ['b', 'c'])", "1 prompts and 2 contexts"),
        ("llm_query('x' * 5001)", "the prompt has 5,001 characters, and max_prompt_chars is 5,000"),
    ],
)
def test_calls_that_cannot_be_are_named_and_ask_nothing(call, fault):
    below = Scripted([])
    result = RLM(Scripted([code(call), "FINAL(1)"]), below, limits=Limits(max_prompt_chars=5000)).completion(
        "x", "What?"
    )
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    assert fault in cell["error"]
    assert not below.seen
    assert result.usage.calls == 2


def test_an_empty_batch():
    assert run(str, code("FINAL(llm_query_batched([]) + rlm_query_batched([]))")).answer == "[]"


# Recursion.

CHILD = code("FINAL(context + '!')")


def test_recursion_has_an_environment_down_to_its_depth():
    def speak(messages):
        if not is_turn(messages):
            return "plain"
        if "a text of 4 characters" in messages[1]["content"]:
            return code("x = rlm_query('ask', 'inner')", "FINAL('root ' + x)")
        return code("own = context", "FINAL('child ' + own + ' ' + rlm_query('deeper'))")

    deep = RLM(Scripted(speak), limits=Limits(max_depth=2)).completion("text", "What?")
    assert deep.answer == "root child inner plain"
    assert [event["depth"] for event in deep.trace.events if event["kind"] == "run"] == [0, 1]
    flat = RLM(Scripted(speak), limits=Limits(max_depth=1)).completion("text", "What?")
    assert flat.answer == "root plain"
    assert deep.usage.calls == 3
    assert flat.usage.calls == 2


def test_the_context_of_a_child():
    def speak(messages):
        if "Question: What?" in messages[1]["content"]:
            return code("FINAL([rlm_query('p'), rlm_query('q', 'c'), rlm_query_batched(['r'], [['s', 't']])])")
        return code("FINAL(f'{context}')")

    assert RLM(Scripted(speak), limits=Limits(max_depth=2)).completion("x", "What?").answer == str(
        ["p", "c", [str(["s", "t"])]]
    )


def test_children_do_not_see_each_others_variables():
    def speak(messages):
        if "Question: What?" in messages[1]["content"]:
            return code("mine = 1", "FINAL(rlm_query_batched(['a', 'b']))")
        return code("try:", "    FINAL(mine)", "except NameError:", "    mine = 2", "    FINAL('clean')")

    assert RLM(Scripted(speak), limits=Limits(max_depth=2)).completion("x", "What?").answer == "['clean', 'clean']"


def test_no_child_takes_more_than_its_share_and_the_rest_returns():
    def speak(messages):
        if "Question: What?" in messages[1]["content"]:
            return code("rlm_query_batched(['a', 'b'])", "FINAL(budget()['calls'])")
        return code("while True:", "    try:", "        llm_query('more')", "    except RuntimeError:", "        break")

    small = Scripted(lambda messages: speak(messages) if is_turn(messages) else "ok")
    limits = Limits(max_depth=2, max_llm_calls=12)
    result = RLM(Scripted(speak), small, limits=limits).completion("x", "What?")
    assert result.usage.calls == 12 - int(result.answer) - 1
    assert result.usage.calls <= 12
    ends = [event["status"] for event in result.trace.events if event["kind"] == "end"]
    assert ends == ["calls", "calls", "answered"] or ends == ["forced", "forced", "answered"]


def test_a_child_that_has_no_answer_is_an_error():
    def speak(messages):
        if "Question: What?" in messages[1]["content"]:
            return code("FINAL(rlm_query('a'))") if len(messages) == 2 else "FINAL(none)"
        return "no code"

    result = RLM(Scripted(speak), limits=Limits(max_depth=2, max_errors=2)).completion("x", "What?")
    assert result.answer == "none"
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    assert "the recursive call has no answer: 2 turns in a row failed" in cell["error"]


def test_limits_cannot_be_raised_from_inside():
    lines = ("try:", "    rlm_query('a', max_depth=9)", "except Exception as error:", "    FINAL(f'{error}')")
    assert "max_depth" in run(str, code(*lines)).answer
    assert run(str, code("budget = 5", "llm_query = 5"), code("FINAL(llm_query(str(budget()['depth'])))")).answer == "0"


# Accounts.


def test_usage_is_that_of_the_whole_tree_and_of_the_ledger():
    def speak(messages):
        if not is_turn(messages):
            return Reply("x", 7, 3, cost=0.5)
        root = "Question: What?" in messages[1]["content"]
        lines = ("rlm_query_batched(['a', 'b'])", "FINAL(budget()['tokens'])")
        return Reply(code(*(lines if root else ("FINAL(llm_query('c'))",))), 100, 10, cost=1.0)

    result = RLM(Scripted(speak), limits=Limits(max_depth=2, max_tokens=100_000)).completion("x", "What?")
    assert (result.usage.calls, result.usage.tokens, result.usage.cost) == (5, 3 * 110 + 2 * 10, 4.0)
    assert not result.usage.estimated
    assert int(result.answer) == 100_000 - result.usage.tokens


def test_a_call_that_said_nothing_is_paid_for():
    small = Scripted([Reply(None, 50, 900, cost=2.0)])
    root = Scripted([Reply(code("llm_query('think')"), 10, 10), Reply("FINAL(1)", 10, 10)])
    result = RLM(root, small, limits=Limits(max_tokens=50_000)).completion("x", "What?")
    assert (result.usage.tokens, result.usage.cost) == (40 + 950, 2.0)


def test_tokens_that_no_one_counted_are_estimated_and_marked():
    usage = run(str, code("FINAL(llm_query('x' * 400))")).usage
    assert usage.estimated
    counted = sub(str, [code("FINAL(llm_query('x' * 400))")])
    counted.count_tokens = len
    usage = RLM(counted).completion("text", "What?").usage
    assert not usage.estimated
    assert usage.completion_tokens == 400 + len(code("FINAL(llm_query('x' * 400))"))


def test_a_batch_beyond_the_budget_serves_its_beginning():
    result = run(str.upper, code("FINAL(llm_batch(['a', 'b', 'c', 'd', 'e']))"), limits=Limits(max_llm_calls=5))
    assert result.answer == "['A', 'B', 'C', None, None]"  # one call was the turn, one is kept for the answer
    assert result.usage.calls == 4


@pytest.mark.parametrize("options", [{"memo": True}, {"limits": Limits(max_llm_calls=3)}])
def test_calls_that_cost_nothing_do_not_fill_the_trace(options):
    lines = ("for _ in range(50):", "    llm_batch(['x' * 100_000] * 9)", "print('over')")
    result = run(lambda prompt: "seen", code(*lines), "FINAL(1)", **options)
    assert sum(len(str(event)) for event in result.trace.events) < 1_200_000
    assert result.answer == "1"
    assert replay(result.trace).answer == "1"


def test_calls_that_fail_are_counted_in_few_words():
    model = sub(str, [code("llm_batch(['a'] * 500)"), "FINAL(1)"])
    result = RLM(model, limits=Limits(max_llm_calls=5)).completion("x", "What?")
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    (note,) = cell["notes"]
    assert note.startswith("No reply to prompts[3 to 499], which is None there: no calls are left")


def test_calls_at_the_same_time_are_bounded_in_the_whole_tree():
    running, most, lock = [0], [0], threading.Lock()

    def speak(messages):
        if is_turn(messages):
            root = "Question: What?" in messages[1]["content"]
            return code("FINAL(rlm_query_batched(['a', 'b', 'c']))" if root else "FINAL(llm_batch(['d', 'e', 'f']))")
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return "x"

    limits = Limits(max_depth=2, max_concurrent_subcalls=2)
    RLM(speak, limits=limits).completion("x", "What?")
    assert most[0] == 2


def test_calls_of_a_batch_run_at_the_same_time():
    barrier = threading.Barrier(4, timeout=10)

    def answer(prompt):
        barrier.wait()
        return prompt

    assert run(answer, code("FINAL(llm_batch(['a', 'b', 'c', 'd']))")).answer == "['a', 'b', 'c', 'd']"


def test_a_model_that_is_not_parallel_is_called_by_one_thread_at_a_time():
    threads = set()

    def answer(prompt):
        threads.add(threading.current_thread())
        return prompt

    model = sub(answer, [code("FINAL(llm_batch(['a', 'b', 'c']))")])
    model.parallel = False
    RLM(model).completion("x", "What?")
    assert len(threads) == 1


def test_children_share_a_model_that_is_not_parallel():
    running, most = [0], [0]

    def small(messages):
        if is_turn(messages):
            return code("FINAL(llm_query('x'))")
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        return "x"

    small.parallel = False
    root = Scripted([code("FINAL(rlm_query_batched(['a', 'b', 'c']))")])
    assert RLM(root, small, limits=Limits(max_depth=2)).completion("x", "What?").answer == "['x', 'x', 'x']"
    assert most[0] == 1


def test_a_child_whose_environment_dies_is_an_error_of_its_parent():
    made = []

    class Dies(environments.Monty):
        def execute(self, text):
            if self is made[-1] is not made[0]:
                raise SandboxDied("killed")
            return super().execute(text)

    def make(limits):
        made.append(Dies(limits))
        return made[-1]

    lines = ("try:", "    rlm_query('a')", "except RuntimeError as error:", "    FINAL(f'{error}')")
    model = Scripted(lambda messages: code(*lines))
    result = RLM(model, environment=make, limits=Limits(max_depth=2)).completion("x", "What?")
    assert result.answer == "the environment of the recursive call ended: killed"


def test_a_model_with_a_batch_is_asked_once():
    def batch(prompts):
        texts = [messages[0]["content"] for messages in prompts]
        return [ValueError("b is bad") if text == "b" else Reply(text.upper(), 1, 1) for text in texts]

    model = sub(str, [code("print(llm_batch(['a', 'b', 'c']))"), "FINAL(1)"])
    model.batch = batch
    result = RLM(model).completion("x", "What?")
    (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
    assert "['A', None, 'C']" in cell["stdout"]
    assert "b is bad" in cell["notes"][0]
    assert result.usage.calls == 5


def batch_of(values):
    """A batch that gives them, or raises."""

    def batch(prompts):
        if isinstance(values, BaseException):
            raise values
        return values

    return batch


def test_a_batch_that_raises_or_miscounts_fails_as_a_whole_and_an_interrupt_ends_the_run():
    for values, fault in ([], "has 0 replies to 2 prompts"), (OSError("reset"), "OSError: reset"):
        model = sub(str, [code("print(llm_batch(['a', 'b']))"), "FINAL(1)"])
        model.batch = batch_of(values)
        result = RLM(model).completion("x", "What?")
        (cell,) = (event for event in result.trace.events if event["kind"] == "cell")
        assert "[None, None]" in cell["stdout"]
        assert fault in cell["notes"][0]
        assert result.usage.calls == 4
    model.batch = batch_of(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        RLM(Scripted([code("llm_batch(['a', 'b'])")]), model).completion("x", "What?")


def test_the_clock_of_a_cell_does_not_run_while_it_waits():
    def slow(prompt):
        time.sleep(0.4)
        return prompt

    assert run(slow, code("FINAL(llm_query('late'))"), limits=Limits(cell_timeout=0.2)).answer == "late"


# Memory.


def test_a_call_that_was_answered_is_not_made_again():
    model = sub(str.upper, [code("FINAL(llm_batch(['a', 'b', 'a']) + [llm_query('a')])")])
    result = RLM(model, memo=True).completion("x", "What?")
    assert result.answer == "['A', 'B', 'A', 'A']"
    assert (result.usage.calls, result.usage.memoised) == (3, 2)
    assert len(model.seen) == 3


def test_without_memory_every_call_is_made():
    result = run(str.upper, code("FINAL(llm_batch(['a', 'a']))"))
    assert (result.usage.calls, result.usage.memoised) == (3, 0)


def test_failures_are_not_remembered():
    replies = iter([OSError("reset"), "fine"])
    lines = ("llm_batch(['a', 'a'])", "FINAL(llm_query('a'))")
    model = sub(lambda prompt: next(replies), [code(*lines)])
    assert RLM(model, memo=True).completion("x", "What?").answer == "fine"
    assert len(model.seen) == 3


def test_children_remember_for_their_parent_but_not_for_each_other():
    def speak(messages):
        if not is_turn(messages):
            return "x"
        root = "Question: What?" in messages[1]["content"]
        return code(*(("rlm_batch = rlm_query_batched(['a', 'b'])", "FINAL(llm_query('c'))") if root else CALL))

    CALL = ("FINAL(llm_query('c'))",)
    model = Scripted(speak)
    usage = RLM(model, limits=Limits(max_depth=2), memo=True).completion("x", "What?").usage
    assert (usage.calls, usage.memoised) == (5, 1)
