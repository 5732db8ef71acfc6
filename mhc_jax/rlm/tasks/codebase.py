"""Questions about a code base, answered by its syntax trees."""

import ast
import dataclasses
import random
from collections import Counter
from pathlib import Path

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.rlm.tasks.task import Task

# Of this library, which is there wherever the question is asked.
SOURCE = Path(mhc_jax.__file__).parent
HEAD = "# ==== file: {} ===="
# Splits the context into files, by path, without what looks like code in long strings and comments.
READ = r"""
import re
parts = re.split(r"(?m)^# ==== file: (.+) ====$", context)
files = {}
for path, text in zip(parts[1::2], parts[2::2]):
    for pattern in (r'(?s)"{3}.*?"{3}', r"(?s)'{3}.*?'{3}", r"(?m)(?:^[ \t]*|  )#[^\n]*"):
        text = re.sub(pattern, "", text)
    files[path] = text
"""


@dataclasses.dataclass(frozen=True)
class _File:
    """What is asked about a file.

    Attributes:
        path: within the code base.
        text: of the file.
        functions: names of the functions at its top level.
        calls: names of functions, each with the functions at the top level that call it by its name.
    """

    path: str
    text: str
    functions: tuple[str, ...]
    calls: dict[str, set[str]]


def code(draw: random.Random, length: int, folder: Path = SOURCE) -> Task:
    """Who defines a function, how many a file defines, or who calls one.

    Raises:
        ConfigError: the folder holds no Python files with functions.
    """
    files = _files(folder, draw, length)
    names = Counter(name for file in files for name in file.functions)
    context = "\n".join(f"{HEAD.format(file.path)}\n{file.text}" for file in files)
    unique = sorted((name, file) for file in files for name in file.functions if names[name] == 1)
    called = sorted({name for file in files for name in file.calls} & {name for name, _ in unique})
    asked = draw.choice(["defines", "counts", "calls"] if called else ["defines", "counts"])
    if asked == "calls":
        return _calls(draw.choice(called), files, context)
    if asked == "counts" or not unique:
        file = draw.choice(files)
        question = (
            f"How many functions does {file.path} define at its top level, without methods and functions within"
            " functions? Answer with the number."
        )
        program = f"{READ}FINAL(len(re.findall(r'(?m)^(?:async )?def ', files[{file.path!r}])))"
        return Task("code", context, question, (str(len(file.functions)),), "count", program)
    name, file = draw.choice(unique)
    question = f"Which file defines the function {name} at its top level? Answer with its path as it is given."
    program = f"{READ}FINAL([path for path in files if re.search(r'(?m)^(?:async )?def {name}\\(', files[path])][0])"
    return Task("code", context, question, (file.path,), "label", program)


def _calls(name: str, files: list[_File], context: str) -> Task:
    truth = sorted({caller for file in files for caller in file.calls.get(name, ())})
    question = (
        f"Which functions at the top level of a file call {name}(...) by this name alone, in their bodies or within"
        " functions in them? Answer with their names, separated by commas."
    )
    program = (
        f"{READ}found = []\nfor path in files:\n"
        "    for part in re.split(r'(?m)^(?=[A-Za-z_@])', files[path]):\n"
        f"        if re.match(r'(?:async )?def ', part) and re.search(r'(?<![\\w.]){name}\\(', part):\n"
        "            owner = re.match(r'(?:async )?def (\\w+)', part).group(1)\n"
        f"            if owner != {name!r}:\n                found.append(owner)\n"
        "FINAL(', '.join(sorted(set(found))))"
    )
    return Task("code", context, question, tuple(truth), "f1", program)


def _files(folder: Path, draw: random.Random, length: int) -> list[_File]:
    """Files in a drawn order until they have so many characters, at least two and each with a function."""
    paths = sorted(path for path in folder.rglob("*.py") if "tests" not in path.parts)
    draw.shuffle(paths)
    files, size = [], 0
    for path in paths:
        if size >= length and len(files) > 1:
            break
        file = _read(path, folder)
        if file.functions:
            files.append(file)
            size += len(file.text)
    if not files:
        raise ConfigError(f"{folder} holds no Python files with functions")
    return files


def _read(path: Path, folder: Path) -> _File:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    calls: dict[str, set[str]] = {}
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id != function.name:
                calls.setdefault(node.func.id, set()).add(function.name)
    return _File(path.relative_to(folder).as_posix(), text, tuple(node.name for node in functions), calls)
