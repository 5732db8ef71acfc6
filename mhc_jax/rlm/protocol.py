"""What passes between a model and its environment as text: prompts, code blocks, outputs, final answers.

All functions are pure. Names inside the environment are those of the official package (github.com/alexzhang13/rlm);
final answers are read in all three forms that are about: the ``answer`` dictionary, ``FINAL`` and ``FINAL_VAR``.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LANGUAGES = ("repl", "python", "py")
_OPENING = re.compile(r"^ {0,3}(`{3,})[ \t]*(\w*)")
_CLOSING = re.compile(r"^ {0,3}(`{3,})[ \t]*$")
_FINAL = re.compile(r"^[ \t]*FINAL\(", re.MULTILINE)
_FINAL_VAR = re.compile(r"^[ \t]*FINAL_VAR\([ \t]*([\"']?)(\w+)\1[ \t]*\)", re.MULTILINE)
_QUOTED = re.compile(r"\s*((\"\"\"|'''|\"|')(?:\\.|(?!\2)[^\\])*\2)\s*\)", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:[abfnrtv\\'\"\n]|[0-3]?[0-7]{1,2}|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|N\{[\w -]+\})",
    re.ASCII,
)

SYSTEM = """You answer a question about a context that may be far longer than you can read at once. The context is in
a Python session, and you work in turns: write code in a block

```repl
print(context[:500])
```

and you are shown what it printed, at most {output} characters of each block. Variables last from turn to turn. Where
a module or a construct is missing, the error says so.

In the session:
- `context`: {context}
- `llm_query(prompt)`: a text, the reply of a language model to a prompt of at most {prompt} characters. It sees only
  the prompt, so put the part of the context that it needs into it. It raises an error if the call fails.
- `llm_query_batched(prompts)`: the replies to a list of prompts, asked at the same time; None where a call failed.
- `rlm_query(prompt, context=None)`, `rlm_query_batched(prompts)`: {recursion}
- `peek(start, end)`: the characters between two places. `chunk(size, overlap=0)`: the context in parts, a list.
  `search(pattern, max_results=10)`: places of a regular expression, with the text around them.
- `SHOW_VARS()`: your variables. `budget()`: the calls, tokens and turns that are left to you.
{tools}
Look first: print the beginning, find out how the context is built, and cut it along that. What code can find or count,
let code find and count. What has to be read and understood, ask about in batches of few, large prompts, keep the
replies in variables, and put them together in code or by a last call. Check what you have before you answer.

Give the final answer in code, once you have seen what it rests on, in one of these forms:
- `FINAL("the answer")`: this text.
- `FINAL_VAR("name")`: what a variable holds.
- `answer["content"] = "the answer"; answer["ready"] = True`
"""
RECURSION = (
    "the same for questions that need code: the prompt is the question, and a model answers it\n"
    "  in a session of its own, in which `context` is the one given here, or the prompt itself."
)
NO_RECURSION = "here the same as `llm_query` and `llm_query_batched`."
NO_TEXT = "Your reply held no text. Write code in a ```repl block, or give the final answer."
NO_CODE = (
    "Your reply held no ```repl block and no FINAL(...) at the start of a line, so nothing was run. Write code in a"
    " ```repl block, or give the final answer."
)
FORCED = (
    "{reason} Nothing more is run. Reply with the final answer now, as plain text or as FINAL_VAR(name) for a variable"
    " of the session."
)
SUMMARISE = (
    "The conversation is about to be cut to its beginning and a summary. Write the summary: what you have found out,"
    " which variables hold what, and what remains to be done. Write no code."
)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a reply asks for.

    Attributes:
        blocks: of code, in order.
        final: the text of ``FINAL(...)`` outside of code.
        variable: the name in ``FINAL_VAR(name)`` outside of code.
    """

    blocks: tuple[str, ...] = ()
    final: str | None = None
    variable: str | None = None


def read(reply: str) -> Spoken:
    """Code and final answer of a reply. A block that is not closed reaches to its end."""
    blocks, prose = split(reply)
    found = _FINAL_VAR.search(prose)
    begin = _FINAL.search(prose)
    if found and not (begin and begin.start() < found.start()):
        return Spoken(blocks, variable=found[2])
    return Spoken(blocks, final=_argument(prose[begin.end() :]) if begin else None)


def split(reply: str) -> tuple[tuple[str, ...], str]:
    """The blocks of code that are to be run, and what stands outside of all blocks.

    A block ends at a line of at least as many backticks as began it, so that longer fences may hold shorter ones.
    """
    blocks, prose, inside, fence, runs = [], [], [], "", False
    for line in _lines(reply):
        if fence:
            end = _CLOSING.match(line)
            if end and len(end[1]) >= len(fence):
                if runs:
                    blocks.append("\n".join(inside))
                fence = ""
            else:
                inside.append(line)
        elif (begin := _OPENING.match(line)) and "`" not in line[begin.end() :]:
            fence, runs, inside = begin[1], begin[2].lower() in LANGUAGES, []
        else:
            prose.append(line)
    if fence and runs:
        blocks.append("\n".join(inside))
    return tuple(block for block in blocks if block.strip()), "\n".join(prose)


def _lines(text: str) -> list[str]:
    """Lines as Python has them: a form feed or U+2028 within one is part of it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def _argument(rest: str) -> str:
    """What stands between ``FINAL(`` and its closing bracket; all there is, if none closes it."""
    if quoted := _QUOTED.match(rest):
        return _ESCAPE.sub(_character, quoted[1][len(quoted[2]) : -len(quoted[2])])
    depth = 1
    for index, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:index].strip()
    return rest.strip()


def _character(escape: re.Match[str]) -> str:
    """What an escape stands for in Python; itself where that is no character, as half a surrogate pair."""
    try:
        character = escape[0].encode().decode("unicode_escape")
        character.encode()
    except UnicodeError:
        return escape[0]
    return character


def shorten(text: str, limit: int) -> str:
    """Head and tail of a text, together ``limit`` characters, around a line that says how many are left out."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    gap = f"[... {len(text) - limit:,} characters left out ...]"
    parts = [text[:head], gap, text[len(text) - tail :]]
    return "\n".join(part for part in parts if part)


def fenced(text: str, language: str = "") -> str:
    """A block that nothing inside it closes."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def described(context: Any) -> str:
    """Type and size of a context: ``"a text of 10,000,000 characters"``."""
    if isinstance(context, str):
        return f"a text of {len(context):,} characters"
    if isinstance(context, Mapping):
        keys = shorten(", ".join(map(repr, context)), 300)
        return f"a dictionary of {len(context):,} entries, {_size(context.values())} in all; keys {keys}"
    return f"a list of {len(context):,} items, {_size(context)} in all"


def _size(values: Iterable[Any]) -> str:
    return f"{sum(len(value if isinstance(value, str) else json.dumps(value)) for value in values):,} characters"


def system(limits: Any, context: str, tools: Mapping[str, Any], *, recursive: bool, template: str | None = None) -> str:
    """The first message.

    Args:
        limits: of the completion.
        context: described.
        tools: by name, functions and values.
        recursive: whether ``rlm_query`` has a session of its own.
        template: instead of :data:`SYSTEM`; the same fields in braces may stand in it.
    """
    fields = {
        "output": f"{limits.max_output_chars:,}",
        "prompt": f"{limits.max_prompt_chars:,}",
        "context": context,
        "recursion": RECURSION if recursive else NO_RECURSION,
        "tools": "".join(f"- `{name}`: {_about(tool)}\n" for name, tool in tools.items()),
    }
    text = SYSTEM if template is None else template
    return re.sub(r"\{(" + "|".join(fields) + r")\}", lambda found: fields[found[1]], text)


def _about(tool: Any) -> str:
    if not callable(tool):
        return described(tool) if isinstance(tool, str | list | dict) else f"{type(tool).__name__} {tool!r}"
    return (tool.__doc__ or "a function").strip().splitlines()[0]


def opening(question: str | None, context: str, turns: int) -> str:
    """The first message of the user."""
    asked = "The question is part of the context." if question is None else f"Question: {question}"
    return f"{asked}\n\n`context` is {context}.\n\n{turn(1, turns)}"


def turn(number: int, of: int) -> str:
    """The line that ends every message of the user."""
    left = "This is the last turn: give the final answer." if number == of else "Write code in a ```repl block."
    return f"Turn {number} of {of}. {left}"


def output(cells: Sequence[Any]) -> str:
    """What the blocks of a turn did; each an object with ``stdout``, ``error`` and ``notes``."""
    shown = []
    for number, cell in enumerate(cells, start=1):
        name = f"Output of block {number}" if len(cells) > 1 else "Output"
        text = cell.stdout.rstrip("\n")
        shown.append(f"{name}:\n{fenced(text)}" if text else f"{name}: nothing was printed.")
        if cell.error is not None:
            shown.append(f"Error:\n{fenced(cell.error)}")
        shown += cell.notes
    return "\n".join(shown)


def characters(messages: Sequence[Mapping[str, str]]) -> int:
    """Length of a conversation."""
    return sum(len(message["content"]) for message in messages)
