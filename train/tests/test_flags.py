"""How faults and mistyped flags are named."""

import ast
from pathlib import Path

import train
from train.config import RunConfig
from train.terminal.flags import flags_of

FOLDER = Path(train.__file__).parent
FIELDS = {flag.removeprefix("--").replace("-", "_") for flag, _ in flags_of(RunConfig())}


def _raised(tree: ast.AST):
    """The texts of all errors that a module raises by hand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc:
            yield from (part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant))


def test_messages_name_flags_as_they_are_typed():
    files = [path for path in FOLDER.rglob("*.py") if "tests" not in path.parts]
    texts = [(path.name, text) for path in files for text in _raised(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(texts) > 100
    named = {
        (file, word)
        for file, text in texts
        if isinstance(text, str)
        for word in text.replace(";", " ").replace(",", " ").split()
        if (word in FIELDS and "." in word) or ("--" in word and "_" in word)
    }
    assert not named
