"""Property tests of input: whatever a command or a reader is given, it does its work or says in one line why not.

Hypothesis finds the inputs, the same ones every time: :data:`FEW` of them by default, :data:`MANY` in slow tests.
"""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mhc_jax.config import ConfigError
from train.terminal import cli

LONGEST = cli.LONGEST + 50

_ALWAYS_THE_SAME = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
FEW = settings(max_examples=25, **_ALWAYS_THE_SAME)
MANY = settings(max_examples=1500, **_ALWAYS_THE_SAME)

# Numbers and texts at which programs break.
INTEGERS = st.sampled_from(
    [0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400]
)
FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1e-38, 1e-45, 1e-320, 3e38, 1e39, 1e308, float("inf"), -float("inf"), float("nan")]
)
_SPECIAL = (
    "\n \r\n \0 é \u2028 \ufeff \U0001f600 \ud800 \udcff ../.. / ~ - --x x/y . True None nan 1e999 0x10 1_000 %s{}"
)
TEXTS = st.sampled_from(["", " ", "a" * 10_000, "9" * 5000, "<|endoftext|>", *_SPECIAL.split(" ")]) | st.text(
    max_size=20
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS | st.integers() | st.floats(allow_subnormal=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: Callable, value: Any) -> Any:
    """A JSON value with something in it replaced, left out or added, at any depth."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(value)))
        rest = {key: inner for key, inner in value.items() if key != name}
        how = draw(st.sampled_from(["inside", "inside", "inside", "left out", "renamed", "added"]))
        if how == "left out":
            return rest
        if how == "renamed":
            return {**rest, draw(TEXTS | st.just(name + "s")): value[name]}
        if how == "added":
            return {**value, draw(TEXTS): draw(JSON_VALUES)}
        return {**value, name: draw(altered(value[name]))}
    return draw(JSON_VALUES)


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """A file's bytes, cut short, with some overwritten or put in between, or nested too deeply."""
    at = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(["cut", "overwritten", "inserted", "nested", "emptied", "long number"]))
    if how == "nested":
        return content[:at] + b"[" * 100_000 + content[at:]
    if how == "long number":
        return content[:at] + b"9" * 5000 + content[at:]
    strange = draw(st.binary(max_size=8))
    changed = {"cut": b"", "emptied": b"", "overwritten": strange + content[at + len(strange) :]}
    return b"" if how == "emptied" else content[:at] + changed.get(how, strange + content[at:])


@st.composite
def altered_json(draw: Callable, value: Any) -> bytes:
    """JSON text of ``value``, altered or damaged or both."""
    value = draw(altered(value)) if draw(st.integers(0, 3)) else value
    with unlimited_integers():
        content = json.dumps(value).encode()
    return content if draw(st.integers(0, 3)) else draw(damaged(content))


@contextlib.contextmanager
def unlimited_integers() -> Iterator[None]:
    """Lets integers of any length be written; reading them is what is tested."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def works_or_says_why(call: Callable[..., Any], *arguments: Any, **options: Any) -> ConfigError | None:
    """Calls it; the fault if there was one, which must be a ConfigError of one short line."""
    try:
        call(*arguments, **options)
    except ConfigError as error:
        assert_one_line(str(error))
        return error
    return None


def command(main: Callable[[list[str]], None], argv: list[str], *untouched: Path) -> tuple[int, str]:
    """Exit status and standard error of a command, called in this process as it is from a shell.

    Args:
        untouched: folders that a command that fails must leave as they were.
    """
    before = [snapshot(folder) for folder in untouched]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", ["command", *argv]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.run(main)
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    assert status in (0, 2), err.getvalue()
    if status:
        assert err.getvalue().startswith("error: ")
        assert_one_line(err.getvalue().removesuffix("\n"))
        assert [snapshot(folder) for folder in untouched] == before
    return status, err.getvalue()


def assert_one_line(message: str) -> None:
    """The message is there, is one line, is no longer than can be read, and quotes no traceback."""
    assert message.strip()
    assert len(message.splitlines()) == 1
    assert len(message) <= LONGEST
    assert "Traceback" not in message


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder, and a digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
