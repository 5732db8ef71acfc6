"""Replies are read and outputs are shown as they are meant, whatever stands in them."""

import hypothesis
import pytest
from hypothesis import strategies as st

from mhc_jax.rlm import Limits, protocol
from mhc_jax.rlm.level import Shown


@pytest.mark.parametrize("language", ["repl", "python", "py", "REPL"])
def test_all_blocks_of_a_reply_in_their_order(language):
    reply = f"First\n```{language}\na = 1\n```\nthen\n  ```{language}  \nb = 2\n\nc\n  ```\nend"
    assert protocol.read(reply).blocks == ("a = 1", "b = 2\n\nc")


@pytest.mark.parametrize("reply", ["", "plain", "```\na\n```", "```text\na\n```", "```repl\n \n```", "`repl` a"])
def test_what_is_no_code(reply):
    assert protocol.read(reply) == protocol.Spoken()


@pytest.mark.parametrize("opening", ["```python title='a'", "```repl, run", "```python {.numbers}"])
def test_what_follows_the_language_does_not_matter(opening):
    assert protocol.read(f"{opening}\na = 1\n```\nFINAL(b)") == protocol.Spoken(("a = 1",), final="b")


def test_a_block_that_is_not_closed_reaches_to_the_end():
    assert protocol.read("```repl\nprint(1)\nprint(2)").blocks == ("print(1)\nprint(2)",)


def test_a_longer_fence_holds_shorter_ones():
    assert protocol.read("````repl\nx = '''\n```\n'''\n````\n```py\ny\n```").blocks == ("x = '''\n```\n'''", "y")


def test_code_that_is_only_shown_is_not_run_and_holds_no_answer():
    assert protocol.read("```text\n```repl\nFINAL(1)\n```\nno") == protocol.Spoken()


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("FINAL(42)", "42"),
        ("So:\n  FINAL(The capital (of France) is Paris.)\nGood bye (and thanks)", "The capital (of France) is Paris."),
        ('FINAL("a :) b")', "a :) b"),
        ("FINAL('it\\'s\\nso')", "it's\nso"),
        ('FINAL("""two\nlines""")', "two\nlines"),
        ('FINAL("two\nlines, \\"quoted\\"")', 'two\nlines, "quoted"'),
        (r'FINAL("caf\u00e9 \x41\101 \N{BULLET}\\x41")', "caf\u00e9 AA \u2022\\x41"),
        (r'FINAL("\d \xg \N{NO SUCH} \ud800 \Uffffffff")', r"\d \xg \N{NO SUCH} \ud800 \Uffffffff"),
        ("FINAL(two\nlines)", "two\nlines"),
        ('FINAL(("a", "b"))', '("a", "b")'),
        ("FINAL(never closed", "never closed"),
        ("FINAL()", ""),
    ],
)
def test_a_final_answer_in_the_text(reply, answer):
    assert protocol.read(reply) == protocol.Spoken(final=answer)


@pytest.mark.parametrize(
    "reply", ["FINAL_VAR(found)", "Done.\n FINAL_VAR('found')", 'FINAL_VAR( "found" ) .\nFINAL(1)']
)
def test_a_final_variable_in_the_text(reply):
    assert protocol.read(reply) == protocol.Spoken(variable="found")


@pytest.mark.parametrize("reply", ["I will call FINAL(42) next", "`FINAL_VAR(x)`", "```repl\nFINAL(1)\n```"])
def test_a_final_answer_stands_at_the_start_of_a_line_outside_of_code(reply):
    spoken = protocol.read(reply)
    assert (spoken.final, spoken.variable) == (None, None)


@pytest.mark.parametrize("inside", ["\u2028", "\x0c", "\x85", "\x1c", "\v"])
def test_lines_of_code_are_those_of_python(inside):
    assert protocol.read(f"```repl\na = '{inside}'\r\nb\rc\n```\n").blocks == (f"a = '{inside}'\nb\nc",)


def test_reading_takes_no_longer_than_the_reply_is():
    many = 200_000  # a pattern that tries each pair of places would take hours
    for start in ("```", "FINAL_VAR(", 'FINAL("'):
        for piece in (" ", "a", '\\"'):
            protocol.read(f"{start}{piece * many}`")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 10, 11])
def test_what_is_cut_keeps_head_and_tail_and_adds_up(limit):
    text = "abcdefghijk"
    kept = protocol.shorten(text, limit)
    if limit == len(text):
        assert kept == text
        return
    head, tail = limit - limit // 2, limit // 2
    parts = [text[:head], f"[... {len(text) - limit} characters left out ...]", text[len(text) - tail :]]
    assert kept == "\n".join(part for part in parts if part)


@pytest.mark.parametrize("printed", ["```", "```repl\nFINAL(1)\n```", "a `````` b", "plain"])
def test_nothing_in_an_output_closes_its_block(printed):
    shown = protocol.output([Shown(printed, printed, ["note"], None)])
    assert protocol.read(shown) == protocol.Spoken()
    assert printed in shown
    assert "note" in shown


PIECES = [
    "```",
    "````",
    "```repl",
    "```py",
    "\n",
    " ",
    "FINAL(",
    "FINAL_VAR(",
    ")",
    "(",
    "x",
    '"',
    "'",
    "\\",
    "\x00",
    "é",
]


@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_text_is_read_and_shown(text):
    spoken = protocol.read(text)
    assert all(block.strip() for block in spoken.blocks)
    assert spoken.final is None or spoken.variable is None
    assert protocol.read(protocol.output([Shown(text, text, [], None)])) == protocol.Spoken()


def test_a_tool_or_a_context_with_braces_stands_as_it_is():
    text = protocol.system(Limits(), "{output} {tools}", {"look": len, "unit": "{context}"}, recursive=True)
    assert "- `context`: {output} {tools}" in text
    assert "- `look`: Return the number of items in a container." in text
    assert "10,000 characters" in text


def test_instructions_say_whether_recursion_has_an_environment():
    deep, flat = (protocol.system(Limits(), "a text", {}, recursive=recursive) for recursive in (True, False))
    assert "a session of its own" in deep
    assert "the same as `llm_query`" in flat


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("x" * 1234, "a text of 1,234 characters"),
        (["ab", "cde"], "a list of 2 items, 5 characters in all"),
        ({"k": "ab"}, "a dictionary of 1 entries, 2 characters in all; keys 'k'"),
    ],
)
def test_contexts_in_words(context, words):
    assert protocol.described(context) == words
