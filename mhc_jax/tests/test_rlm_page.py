"""A trace on one page, and in a terminal, whatever the model says."""

import html.parser

import pytest

from mhc_jax.rlm import RLM, Limits, Scripted, Trace, page

HOSTILE = "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!--\x1b[31m\x00"


def code(*lines):
    return "```repl\n" + "\n".join(lines) + "\n```"


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order; notes what they are and the text."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def speak(messages):
    if messages[0]["role"] != "system":
        return HOSTILE
    if "Question" not in messages[1]["content"]:
        return code("FINAL(llm_query('inner'))")
    turn = sum(message["role"] == "assistant" for message in messages)
    return [
        HOSTILE + "\ud800",
        code(
            "print('\x1b[31m')\nprint('<b>bold</b>', llm_batch(['<i>one</i>', 'two', '<i>one</i>']))",
            "print(rlm_query('child'))",
        ),
        code("1/0  # <u>", "print('\x1b[2J')"),
        code("FINAL('</div><script>' + context)"),
    ][turn]


@pytest.fixture(scope="module")
def trace():
    limits = Limits(max_depth=2, max_tokens=100_000)
    return RLM(speak, limits=limits, memo=True).completion("<em>", f"<h1>{HOSTILE}").trace


def test_nothing_that_was_said_becomes_markup(trace):
    tags = Tags(page.render(trace))
    assert {tag for tag, _ in tags.tags} == {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "div", "dl", "dt", "dd", "i", "b"),
        *("details", "summary", "small", "pre"),
    }
    names = {name for _, attributes in tags.tags for name in attributes}
    assert names == {"lang", "charset", "http-equiv", "content", "name", "class", "open", "style"}
    for said in ("<script>alert(1)</script>", "<b>bold</b>", "<i>one</i>", "</div><script><em>", "# <u>"):
        assert said in tags.text


def test_the_page_holds_the_whole_tree(trace):
    text = Tags(page.render(trace)).text
    for part in ("Turn 1", "Turn 4", "Code with an answer", "Recursive call", "from memory", "ZeroDivisionError"):
        assert part in text
    assert f"{trace.usage().calls} of 50" in text
    assert f"{trace.usage().tokens:,} of 100,000" in text


def test_the_page_needs_nothing_else_and_is_valid_text(trace, tmp_path):
    page.save(trace, tmp_path / "trace.html")
    text = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    assert "\x1b" not in text
    assert "\x00" not in text


def test_long_texts_are_cut_on_the_page_alone():
    long = RLM(Scripted([code("llm_query('y' * 100_000)", "FINAL('z' * 100_000)"), "x" * 100_000])).completion("c")
    assert len(long.answer) == 100_000
    assert len(page.render(long.trace)) < 60_000
    assert "characters left out" in page.render(long.trace)


@pytest.mark.parametrize(("replies", "shown"), [([], "No answer."), (["FINAL()"], 'class="answer"')])
def test_runs_without_an_answer(replies, shown):
    result = RLM(Scripted(replies), limits=Limits(max_errors=1)).completion("c", "q")
    assert shown in page.render(result.trace)


def test_a_run_that_was_cut_off(trace):
    events = [event for event in trace.events if event["kind"] != "end"]
    assert "did not end" in page.render(Trace(events))
    with pytest.raises(ValueError, match="no run"):
        page.render(Trace())


def test_a_terminal_sees_lines_of_text_alone(trace):
    lines = str(trace).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line.isprintable() for line in lines)
    assert any("call (memo): <i>one</i>" in line for line in lines)
    assert len(lines) == len(trace.events)
