"""Helpers that every cell finds, as source that runs inside the sandbox: a bad pattern costs the sandbox, not the host.

It runs before each cell, in Monty's subset of Python, so that a cell that assigned one of its names has it back.
"""

NAMES = ("answer", "FINAL", "FINAL_VAR", "SHOW_VARS", "peek", "chunk", "search")

# What FINAL gives is formatted inside, under the limits of the cell; the host takes nothing but a text.
SOURCE = '''
import re as _re

def FINAL(value):
    """Ends the work with this answer."""
    _submit(f"{value}")

def FINAL_VAR(_name):
    """Ends the work with the value of the variable of this name."""
    if type(_name) is type("") and _name.isidentifier():
        try:
            _name = eval(_name)
        except NameError:
            raise NameError(f"FINAL_VAR: no variable {_name!r}; FINAL(value) takes the answer itself")
    if type(_name) in (type(FINAL), type(len), type(str)):
        raise TypeError("FINAL_VAR: this is a function, not a variable; FINAL(value) takes the answer itself")
    _submit(f"{_name}")

def SHOW_VARS():
    """The variables and their types, without modules."""
    _found = {}
    for _name in _assigned:
        try:
            _kind = type(eval(_name)).__name__
        except NameError:
            continue
        if _kind != "module":
            _found[_name] = _kind
    return _found

def _text(source):
    value = context if source is None else source
    if type(value) is type(""):
        return value
    if type(value) is type({}):
        return "\\n".join([f"{key}: {item}" for key, item in value.items()])
    return "\\n".join([f"{item}" for item in value])

def peek(start=0, end=None, source=None):
    """The characters from start to end (1000 if not given) of context or of another text."""
    text = _text(source)
    start = max(0, start + len(text)) if start < 0 else start
    return text[start : start + 1000 if end is None else end]

def chunk(size=10000, overlap=0, source=None):
    """Context or another text in parts of this size, each beginning with the end of the one before."""
    if not 0 <= overlap < size:
        raise ValueError(f"chunk: overlap must lie from 0 to size - 1, got size {size} and overlap {overlap}")
    text = _text(source)
    return [text[at : at + size] for at in range(0, max(1, len(text) - overlap), size - overlap)]

def search(pattern, max_results=10, window=100, source=None):
    """Where a regular expression occurs in context or another text: pairs of position and surroundings."""
    text = _text(source)
    _re.compile(pattern)
    flags = _re.match(r"(?:\\(\\?[aimsux]+\\))*", pattern).group(0)
    body = pattern[len(flags) :]
    if _re.search(r"\\\\[1-9]", body):
        raise ValueError("search: no back references; re has them")
    # Cut at each match, with the match kept; the groups of the pattern follow it.
    groups = len(_re.search(f"{flags}(?:{body})|", "").groups())
    parts = _re.split(f"{flags}({body})", text, maxsplit=max_results) if max_results > 0 else []
    found, start = [], 0
    for at in range(1, len(parts), 2 + groups):
        start += len(parts[at - 1])
        end = start + len(parts[at])
        found.append((start, text[max(0, start - window) : end + window]))
        start = end
    return found
'''

EMPTY_ANSWER = 'answer = {"content": "", "ready": False}\n'
# Before a cell: a new one in place of what is no such dictionary.
KEEP_ANSWER = f"""
try:
    answer["ready"], answer["content"]
except Exception:
    {EMPTY_ANSWER}"""
# After a cell: the answer, or None.
ANSWERED = "f\"{answer['content']}\" if answer['ready'] else None"
ANSWER_LOST = 'answer must stay a dictionary: set answer["content"], then answer["ready"] = True'
