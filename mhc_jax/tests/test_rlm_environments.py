"""Environments of the scaffold: what code finds in them, what the host gets back, and what lasts."""

import time

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import environments, prelude
from mhc_jax.rlm.environments import SandboxDied, ToolError, host
from mhc_jax.rlm.limits import Limits
from mhc_jax.tests.sandboxes import need_bwrap

KINDS = ("monty", "monty+bwrap", "bwrap")
LIMITS = Limits(cell_timeout=10.0, memory_mb=100, max_output_chars=200)
SHORT = LIMITS.replace(cell_timeout=0.5)
TEXT = "".join(f"line {i} of the text\n" for i in range(1000))


def llm_query(prompt, model=None):
    return f"reply to {prompt}"


def opened(kind, names=None, limits=LIMITS, **functions):
    environment = environments.make(kind, limits)
    environment.start(names or {"context": TEXT}, {"llm_query": llm_query, **functions})
    return environment


@pytest.fixture(params=KINDS)
def kind(request):
    if "bwrap" in request.param:
        need_bwrap()
    return request.param


@pytest.fixture
def begin(kind):
    """Starts environments of one kind, which end with the test."""
    started = []

    def begin(names=None, limits=LIMITS, **functions):
        started.append(opened(kind, names, limits, **functions))
        return started[-1]

    yield begin
    for environment in started:
        environment.close()


@pytest.fixture
def run(begin):
    """Cells of one session."""
    return begin().execute


def test_variables_functions_and_imports_last_over_cells(run):
    run("import math\nhalf = 21\ndef double(x):\n    return math.floor(2 * x)")
    assert run("print(double(half), len(context))").stdout == f"42 {len(TEXT)}\n"


def test_the_value_of_a_last_expression_is_shown_but_not_none(run):
    assert run("x = 3\nx + 1").stdout == "4\n"
    assert run("'text'").stdout == "text\n"
    assert run("[1, {'a': (2.5, None)}]").stdout == "[1, {'a': (2.5, None)}]\n"
    assert run("None").stdout == run("x = 4").stdout == ""
    assert "print(...) shows it" in run("{1, 2}").stdout or run("{1, 2}").stdout == "{1, 2}\n"


def test_contexts_of_every_kind(begin):
    names = {"context": ["one", "two"], "facts": {"a": 1, "b": [1.5, True, None]}, "empty": "", "odd": "ü€😀\x00"}
    run = begin(names).execute
    assert run("context[1], facts['b'], empty").stdout == "('two', [1.5, True, None], '')\n"
    assert run("print(odd)").stdout == "ü€😀\x00\n"
    assert run("peek()").stdout == "one\ntwo\n"


def test_names_that_cannot_be_variables(begin):
    for name, message in (
        ("two words", "cannot be the name"),
        ("_hidden", "cannot be the name"),
        ("peek", "is taken"),
    ):
        with pytest.raises(ValueError, match=message):
            begin({name: "text"})
    with pytest.raises(TypeError, match="the variable context must be text"):
        begin({"context": object()})


def test_functions_of_the_host(begin):
    calls = []

    def tool(*args, **kwargs):
        calls.append((args, kwargs))
        return {"list": [1, "two"]}

    run = begin(tool=tool).execute
    assert run("llm_query('a'), llm_query(prompt='b', model='m')").stdout == "('reply to a', 'reply to b')\n"
    assert run("tool('x', [1, 2.5], k={'a': None})['list'][1]").stdout == "two\n"
    assert calls == [(("x", [1, 2.5]), {"k": {"a": None}})]


def test_faults_of_functions_reach_the_code_in_words_of_our_own(begin):
    def secret(x):
        raise FileNotFoundError("/home/host/secret")

    def spent(x):
        raise ToolError("no calls are left")

    run = begin(secret=secret, spent=spent, biggest=max, odd=lambda: {1, 2}).execute
    assert run("biggest(1, 3), biggest([4, 2])").stdout == "(3, 4)\n"
    assert "biggest failed: TypeError" in run("biggest(1)").error
    assert "odd returned what cannot be passed in" in run("odd()").error
    assert "no calls are left" in run("spent(1)").error
    fault = run("secret(1)").error
    assert "secret failed: FileNotFoundError" in fault
    assert "/home/host" not in fault
    assert "missing a required argument: 'prompt'" in run("llm_query()").error
    assert run("try:\n    spent(1)\nexcept Exception as error:\n    print('caught', error)").stdout.startswith(
        "caught no"
    )


def test_an_interrupt_in_a_function_ends_the_cell_and_reaches_the_host(begin):
    def interrupted():
        raise KeyboardInterrupt("by the user")

    environment = begin(stop=interrupted)
    with pytest.raises(KeyboardInterrupt, match="by the user"):
        environment.execute(
            "x = 1\nfor _ in range(50):\n    try:\n        stop()\n    except:\n        pass\n    x += 1"
        )
    assert environment.execute("len(context)").stdout == f"{len(TEXT)}\n"


def test_only_plain_data_of_bounded_size_reaches_a_function(begin):
    seen = []
    run = begin(tool=seen.append, limits=Limits(cell_timeout=5, memory_mb=300)).execute
    for code, words in (
        ("class A:\n    pass\ntool(A())", "only texts, numbers"),
        ("x = []\nfor i in range(50): x = [x]\ntool(x)", "nested too deeply"),
        ("tool([1] * 200000)", "too large"),
        ("tool('x' * 17000000)", "characters"),
        ("tool(2 ** 5000)", "too large"),
    ):
        assert words in run(code).error, code
    assert not seen


def test_each_way_to_answer(begin):
    run = begin().execute
    assert run("FINAL('it is ' + str(3))").answer == "it is 3"
    assert run("FINAL([1, 'a'])").answer == "[1, 'a']"
    assert run("result = {'a': 1}\nFINAL_VAR('result')").answer == "{'a': 1}"
    assert run("FINAL_VAR(result)").answer == "{'a': 1}"
    cell = run("answer['content'] = 7\nanswer['ready'] = True\nprint('on')")
    assert (cell.answer, cell.stdout, cell.error) == ("7", "on\n", None)
    assert run("answer['ready'] = False").answer is None
    assert run("answer = {'content': 'new', 'ready': True}").answer == "new"


def test_what_stands_after_final_does_not_run(run):
    cell = run("print('before')\nFINAL('done')\nprint('after')")
    assert (cell.stdout, cell.error, cell.answer) == ("before\n", None, "done")
    cell = run("try:\n    FINAL('done')\nexcept Exception:\n    print('caught')")
    assert (cell.stdout, cell.answer) == ("", "done")


def test_a_bare_except_around_final_does_not_lose_the_answer(run):
    cell = run(
        "try:\n    FINAL('first')\nexcept:\n    pass\nprint('went on')\ntry:\n    FINAL('second')\nexcept:\n    pass"
    )
    assert (cell.stdout, cell.error, cell.answer) == ("went on\n", None, "first")
    assert run("1 + 1").answer is None


def test_an_answer_that_is_no_dictionary_any_more(run):
    assert prelude.ANSWER_LOST in run("answer = '42'").error
    assert run("answer").stdout == "{'content': '', 'ready': False}\n"


def test_final_var_of_no_variable_names_the_fault(run):
    cell = run("FINAL_VAR('nothing')")
    assert cell.answer is None
    assert "no variable 'nothing'" in cell.error


@pytest.mark.parametrize("name", ["max", "str", "mine"])
def test_final_var_of_a_function_names_the_fault(run, name):
    cell = run(f"def mine():\n    return 1\nFINAL_VAR('{name}')")
    assert cell.answer is None
    assert "a function, not a variable" in cell.error


def test_assigned_names_of_the_host_are_back_in_the_next_cell(run):
    run("llm_query = 5\npeek = FINAL = FINAL_VAR = search = None\ndef SHOW_VARS():\n    return 'mine'")
    assert run("llm_query('x'), len(peek())").stdout == "('reply to x', 1000)\n"
    assert run("SHOW_VARS()").stdout == "{'context': 'str'}\n"
    assert run("FINAL('ok')").answer == "ok"


def test_show_vars(run):
    run("import json as j\na, b = 1, 'x'\nfor item in [1.5]:\n    deep = [item]\nllm_query = 3")
    run("def f(q):\n    inner = q\n    return q")
    expected = {"a": "int", "b": "str", "context": "str", "deep": "list", "f": "function", "item": "float"}
    assert run("SHOW_VARS()").stdout == f"{expected}\n"


def test_peek_chunk_and_search(run):
    assert run("print(peek(0, 6), peek(-6), peek(5, 6, 'abcdefg'), peek(10**9))").stdout == "line 0  text\n f \n"
    assert run("[len(part) for part in chunk(8000, 1000)]").stdout == f"{[8000, 8000, len(TEXT) - 14000]}\n"
    assert run("chunk(4, 1, 'abcdefghij'), chunk(4, 0, '')").stdout == "(['abcd', 'defg', 'ghij'], [''])\n"
    assert "overlap must lie" in run("chunk(4, 4)").error
    at = TEXT.index("line 77 ")
    assert run("search('e 77 ', 3, 4)").stdout == f"{[(at + 3, TEXT[at - 1 : at + 12])]}\n"
    assert (
        run("len(search('line')), search('nowhere'), search('x*', 2, 0, 'ab')").stdout
        == "(10, [], [(0, ''), (1, '')])\n"
    )


@pytest.mark.parametrize("name", ["name", "value", "found", "text", "match"])
def test_variables_named_as_those_of_the_helpers(run, name):
    run(f"{name} = [1]")
    assert "'list'" in run("SHOW_VARS()").stdout
    assert run(f"FINAL_VAR('{name}')").answer == "[1]"


def test_search_reads_a_pattern_as_re_does(run):
    run("text = 'ab\\ncd AB\\nab'")
    for pattern, places in (
        ("^ab", [0]),
        ("(?m)^ab", [0, 9]),
        ("(?i)ab$", [9]),
        ("(?im)(a)(?P<last>b|x)?$", [0, 6, 9]),
        (r"(?<=\n)c|\bA", [3, 6]),
        ("a|(z)", [0, 9]),
    ):
        assert run(f"[at for at, around in search({pattern!r}, 5, 1, text)]").stdout == f"{places}\n", pattern
    assert "no back references" in run("search(r'(a)\\1')").error
    assert "search(" in run("search('(')").error
    assert run("search('a', 0), search('a', -1)").stdout == "([], [])\n"


def test_errors_name_the_line_and_a_way_out(run):
    error = run("def f(x):\n    return 1 / x\n\nf(0)").error
    assert error.startswith("ZeroDivisionError: division by zero\n")
    assert "line 4" in error
    assert "line 2" in error
    assert "SyntaxError" in run("x = (").error
    assert "SHOW_VARS()" in run("unknown").error
    assert "at most" in run("#" * (host.MAX_CODE + 1)).error


def test_output_keeps_head_and_tail(run):
    cell = run("for i in range(100000): print(i)")
    assert cell.stdout.startswith("0\n1\n2\n")
    assert cell.stdout.endswith("99998\n99999\n")
    assert len(cell.stdout) < LIMITS.max_output_chars + 50
    assert f"[{588890 - LIMITS.max_output_chars} characters left out]" in cell.stdout


def test_a_cell_beyond_its_time_leaves_the_variables_from_before(begin):
    run = begin(limits=SHORT).execute
    run("kept = [1, 2]\nfor_later = 5")
    begun = time.monotonic()
    cell = run("kept.append(3)\nlost = 1\nprint('so far')\nwhile True: pass")
    assert time.monotonic() - begun < 5
    assert cell.stdout == "so far\n"
    assert "longer than 0.5 s" in cell.error
    assert "before it" in cell.error
    assert run("kept, for_later, len(context)").stdout == f"([1, 2], 5, {len(TEXT)})\n"
    assert "lost" in run("lost").error
    assert "lost" not in run("SHOW_VARS()").stdout


def test_definitions_outlast_a_limit_where_a_cell_has_failed_after_them(begin):
    run = begin(limits=SHORT).execute
    assert run(
        "class A:\n    x = 1\na = A()\ndef f(y):\n    return y + a.x\ng = lambda y: 2 * y\n1 / 0\ndef h(): pass"
    ).error
    assert "before it" in run("while True: pass").error
    assert run("f(1), g(2), a.x").stdout == "(2, 4, 1)\n"
    assert "'h'" in run("h()").error


def test_a_cell_beyond_its_memory_leaves_the_variables_from_before(run):
    run("kept = 'here'")
    for code in ("x = 'a' * 10**10", "x = [0] * 10**9", "x = []\nwhile True: x.append('a' * 100000 + str(len(x)))"):
        cell = run(code)
        assert "before it" in cell.error, code
        assert "Memory" in cell.error or "memory" in cell.error, code
        assert run("kept").stdout == "here\n"


def test_the_clock_of_a_cell_stands_still_while_the_host_works(begin):
    def slow():
        time.sleep(0.4)
        return "ok"

    run = begin(limits=SHORT, slow=slow).execute  # twice 0.4 s against 0.5 s
    assert run("slow() + slow()").stdout == "okok\n"


def test_clock_sleep_and_random_numbers_are_the_same_in_every_session(kind):
    code = (
        "import datetime, random, time\n"
        "time.sleep(1000)\n"
        "print(random.random(), random.randint(0, 9**9), time.time(), time.perf_counter(), datetime.datetime.now(),"
        " datetime.date.today())"
    )
    texts = []
    for _ in range(2):
        environment = opened(kind)
        texts.append(environment.execute(code).stdout + environment.execute("random.random()").stdout)
        environment.close()
    assert texts[0] == texts[1]
    assert "2026-01-01" in texts[0]


def test_a_dump_restores_variables_functions_and_names(kind, begin):
    first = begin()
    first.execute("import math\nx = {'a': [1, 2]}\ndef f(n):\n    return math.sqrt(n)")
    dump = first.dump()
    second = environments.make(kind, LIMITS)
    second.load(dump, {"llm_query": llm_query})
    assert second.execute("x['a'], f(9), llm_query('q'), len(context)").stdout == (
        f"([1, 2], 3.0, 'reply to q', {len(TEXT)})\n"
    )
    assert "'x': 'dict'" in second.execute("SHOW_VARS()").stdout
    second.close()


def test_random_numbers_go_on_from_a_dump(kind, begin):
    first = begin()
    first.execute("import random\nx = random.random()")
    second = environments.make(kind, LIMITS)
    second.load(first.dump(), {"llm_query": llm_query})
    assert second.execute("random.random()") == first.execute("random.random()")
    second.close()


def test_a_dump_that_is_none(kind):
    environment = environments.make(kind, LIMITS)
    with pytest.raises(SandboxDied, match="does not load"):
        environment.load(b"not a dump", {})
    with pytest.raises(SandboxDied):
        environment.execute("1")
    environment.close()


def test_further_contexts_join_a_session(begin):
    environment = begin()
    environment.execute("x = 1\nanswer['content'] = 'old'\nanswer['ready'] = True")
    environment.bind({"context": "second", "context_1": "second"})
    cell = environment.execute("x, context, context_1, answer['ready']")
    assert (cell.stdout, cell.answer) == ("(1, 'second', 'second', False)\n", None)


@pytest.mark.parametrize("kind", KINDS[:1])
def test_ten_million_characters_in_a_hundred_megabytes(kind, begin):
    text = "".join(f"record {i:07d} of the long text\n" for i in range(340_000))
    begun = time.monotonic()
    environment = begin({"context": text}, Limits(memory_mb=100))
    assert environment.execute("len(context), len(chunk(10000))").stdout == f"({len(text)}, {-(-len(text) // 10000)})\n"
    assert environment.execute("len(search('record 0300...', 3)), search('nowhere', 1)").stdout == "(3, [])\n"
    assert environment.execute("parts = chunk(10000)").error is None
    assert time.monotonic() - begun < 10  # about 0.4 s of an idle core


def test_a_closed_session(begin):
    environment = begin()
    environment.close()
    environment.close()
    with pytest.raises(SandboxDied, match="closed"):
        environment.execute("1")


def test_an_unknown_environment_is_named():
    with pytest.raises(ConfigError, match="cell_timeout must be a number, got None"):
        environments.make("monty", Limits(cell_timeout=None))
    with pytest.raises(ConfigError, match="unknown environment 'local'; known: bwrap, monty, monty\\+bwrap"):
        environments.make("local")
