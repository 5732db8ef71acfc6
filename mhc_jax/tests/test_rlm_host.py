"""The host's side of a sandbox: what it keeps of output, lets through, and reads out of code."""

import json

import pytest

from mhc_jax.rlm.environments import ToolError, host


@pytest.mark.parametrize("limit", [0, 1, 7, 100, 190, 300])
def test_cut_output_adds_up(limit):
    text = "".join(str(i) for i in range(100))
    for step in (1, 3, 1000):
        output = host.Output(limit)
        for at in range(0, len(text), step):
            output.write(text[at : at + step])
        gone = len(text) - limit
        gap = f"\n[{gone} characters left out]\n" if gone > 0 else ""
        head = limit - limit // 2 if gone > 0 else len(text)
        assert output.text() == text[:head] + gap + text[head + max(0, gone) :]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = 1\ny: int = 2\nz += 3", {"x", "y", "z"}),
        ("a, b = b, c\n(d, e) = f", {"a", "b"}),
        ("a = b = c()", {"a", "b"}),
        ("for i, (j, k) in pairs:\n    total = i", {"i", "j", "k", "total"}),
        ("def f(x):\n    y = x\nclass A: pass\nasync def g(): pass", {"f", "y", "A", "g"}),
        ("x == 1\nprint(y=2)\nx[0] = 1\nx.y = 2\n_hidden = 3\nTrue = 1", set()),
        ("import re\nwith open(f) as lines: pass", {"lines"}),
        ("if (n := 3) > 2: pass", {"n"}),
    ],
)
def test_names_that_code_may_give_a_value(code, names):
    """A name too many does no harm, as SHOW_VARS asks for each; these are the common forms."""
    assert host.assigned(code) == names


def test_reading_names_takes_no_longer_than_the_code_is():
    for piece in ("a,", "a = ", "a ", "for a, ", "(" * 9, "a" * 9, "a:", "as a, "):
        host.assigned(piece * (host.MAX_CODE // len(piece)))
    for start in ("for", "async for a", "a:"):
        for piece in (" ", ", "):
            host.assigned(start + piece * (host.MAX_CODE // len(piece)))
    assert len(host.assigned("".join(f"x{i}=1\n" for i in range(9000)))) == host.MAX_NAMES


def test_arguments_are_counted_before_they_are_read():
    text = '[{,\\"' * host.MAX_ITEMS
    assert host.arguments(json.dumps([[text], {"a": [1]}])) == ([text], {"a": [1]})
    for many in ("[],", "{},", "1,"):
        with pytest.raises(ToolError, match="is too large"):
            host.arguments(f"[[{many * host.MAX_ITEMS}0],{{}}]")
    for none in ("", "[[", "[1]", "[[], []]", "[[], {}, 1]", "[" * 100_000, '"' + '\\"' * host.MAX_ITEMS):
        with pytest.raises(ToolError, match="no call"):
            host.arguments(none)


def test_lists_that_share_their_parts_are_refused_at_once():
    shared, own = [1], []
    own.append(own)
    for _ in range(7):
        shared = [shared] * 50
    for value in (shared, own, [["x" * 2**20] * 100] * 100, {"a": {1: (object(),)}}, "\ud800"):
        with pytest.raises(ToolError):
            host.plain(value)
    assert host.plain({"a": [1, 2.5, (None, True)], 3: "text"})
