"""The shape of the code base: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each part of the project must not import.
FORBIDDEN = {
    "mhc_jax": ("torch", "torch_ref", "train", "parity_tests", "configs"),
    "mhc_jax/ops": ("flax", "mhc_jax.nn", "mhc_jax.models", "mhc_jax.functional", "mhc_jax.config"),
    "mhc_jax/nn": ("mhc_jax.models", "mhc_jax.functional", "mhc_jax.decode", "mhc_jax.interop"),
    "mhc_jax/models": ("mhc_jax.functional", "mhc_jax.decode", "mhc_jax.interop"),
    # A model is a function from messages to a text; adapters import what they adapt when they are called.
    "mhc_jax/rlm": ("mhc_jax.nn", "mhc_jax.models", "mhc_jax.ops", "mhc_jax.interop"),
    "mhc_jax/rlm/environments": ("jax", "mhc_jax.decode", "mhc_jax.functional"),
    "torch_ref": ("jax", "flax", "mhc_jax", "train", "parity_tests", "configs"),
    "train": ("parity_tests",),
}

# Floors of train/: a file may use its own floor and those before it. What stands directly in train/ is a command, but
# for the record of a run.
FLOORS = (
    ("terminal",),
    ("data", "objectives"),
    ("config",),
    ("devices",),
    ("update",),
    ("storage",),
    ("report",),
    ("measure",),
    ("checks",),
    ("loop",),
)


def sources(folder):
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if ".venv" not in path.parts]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_rule(folder):
    files = [path for path in sources(folder) if "tests" not in path.parts]
    assert files
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(name == banned or name.startswith(banned + ".") for banned in FORBIDDEN[folder])
    ]
    assert not broken


def test_floors_of_train_and_commands_that_nothing_imports():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    files = [path for path in sources("train") if "tests" not in path.parts]
    commands = {path.stem for path in files if path.parent == ROOT / "train"} - {"__init__", "config"}
    assert commands
    broken = []
    for path in files:
        place = path.relative_to(ROOT / "train").parts[0].removesuffix(".py")
        for name in {name.split(".")[1] for name in imports(path) if name.startswith("train.")}:
            allowed = floor.get(name, len(FLOORS)) <= floor[place] if place in floor else True
            if not allowed or (name in commands and place in floor):
                broken.append(f"{path.relative_to(ROOT)} imports train.{name}")
    assert not broken


def test_recursive_models_stand_above_all_else_in_the_library():
    below = [path for path in sources("mhc_jax") if not {"tests", "rlm"} & {*path.relative_to(ROOT).parts}]
    assert not [path for path in below if any(name.startswith("mhc_jax.rlm") for name in imports(path))]


# Imports what it is told to with a package in the place of mhc_jax that itself imports nothing.
ALONE = """
import sys, types
package = types.ModuleType("mhc_jax")
package.__path__ = [sys.argv[1]]
sys.modules["mhc_jax"] = package
import mhc_jax.rlm.session
heavy = {"jax", "flax", "torch", "transformers", "openai", "train"} & {*sys.modules}
assert not heavy, heavy
"""


def test_recursive_models_need_no_framework():
    subprocess.run([sys.executable, "-c", ALONE, str(ROOT / "mhc_jax")], check=True)


def test_train_reaches_the_named_configurations_by_one_door():
    doors = [
        str(path.relative_to(ROOT))
        for path in sources("train")
        if "tests" not in path.parts and any(name.split(".")[0] == "configs" for name in imports(path))
    ]
    assert doors == ["train/loop/named.py"]


def test_only_the_parity_suite_and_the_benchmark_driver_see_both_frameworks():
    both = {
        path.relative_to(ROOT).parts[0]
        for folder in ("mhc_jax", "torch_ref", "train", "configs")
        for path in sources(folder)
        if {"jax", "torch"} <= {name.split(".")[0] for name in imports(path)} and "tests" not in path.parts
    }
    assert not both


def test_files_stay_readable():
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("mhc_jax", "torch_ref", "train", "parity_tests", "configs", "mutants")
        for path in sources(folder)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def is_text_of_unnamed_encoding(call):
    """Whether a call opens, reads or writes text in whatever encoding the locale has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func, "value", None)
    if name not in ("open", "read_text", "write_text") or getattr(owner, "id", "") in ("os", "documents"):
        return False
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    binary = name == "open" and any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in modes)
    return not binary and "encoding" not in [keyword.arg for keyword in call.keywords]


def test_every_text_file_is_utf_8_whatever_the_locale():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("mhc_jax", "train", "configs", "parity_tests", "torch_ref")
        for path in sources(folder)
        if "tests" not in path.parts and not path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and is_text_of_unnamed_encoding(node)
    ]
    assert found == []
