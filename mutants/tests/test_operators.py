"""What is mutated and what is not, and that a mutant changes its place alone."""

import ast

import pytest

from mutants.operators import Mutant, mutants
from mutants.suite import Suite

SOURCE = '''"""A docstring with 1 + 1."""
import jax.numpy as jnp
TABLE = {"a": first, "b": second}
def scaled(x: Float[Array, "2 3"], rate: float = 0.5) -> "1 + 2":
    """Not 3."""
    if rate <= 0:
        raise ValueError(f"rate {rate + 1}")
    log.info("%s", 1)
    save(x, rate)
    é = x @ y.T - -1
    return jnp.where(x > 0, x / rate, sum(x, axis=-1))
'''


def found():
    return {(m.line, m.before, m.after) for m in mutants("a.py", SOURCE)}


def test_what_computes_is_mutated():
    assert found() == {
        (3, "first", "second"), (3, "second", "first"), (4, "0.5", "0.25"),
        (6, "rate <= 0", "False"), (6, "<=", "<"), (6, "0", "1"),
        (9, "save(x, rate)", "pass"), (9, "x, rate", "rate, x"),
        (10, "-", "+"), (10, "y.T", "y"), (10, "-1", "0"),
        (11, ">", ">="), (11, "0", "1"), (11, "/", "*"), (11, "sum", "mean"), (11, "-1", "0"),
        (11, "x / rate, sum(x, axis=-1)", "sum(x, axis=-1), x / rate"),
    }  # fmt: skip


def test_a_mutant_changes_its_place_alone():
    for mutant in mutants("a.py", SOURCE):
        lines = mutant.apply(SOURCE).splitlines()
        changed = [n for n, (one, other) in enumerate(zip(lines, SOURCE.splitlines(), strict=True), 1) if one != other]
        assert changed == [mutant.line]
        assert mutant.parses(SOURCE)
        ast.parse(mutant.apply(SOURCE))
    with pytest.raises(AssertionError, match="another version"):
        Mutant("a.py", 6, 0, "<=", "<").apply(SOURCE)


def test_options_of_other_libraries_are_dropped_with_their_comma():
    source = "import numpy as np\na = np.sum(x, axis=0, keepdims=True)\nb = own(x, axis=0)\n"
    dropped = {m.apply(source).splitlines()[1] for m in mutants("a.py", source) if "=" in m.before}
    assert dropped == {"a = np.sum(x, keepdims=True)", "a = np.sum(x, axis=0)"}


def test_tests_of_the_line_come_first_and_the_quick_ones_before_the_slow():
    record = {
        "seconds": {
            "a.py::far": 1, "a.py::near": 9, "b.py::near": 2, "b.py::slow": 99, "c.py::none": 0, "c.py::broken": 0,
        },
        "failed": ["c.py::broken"],
        "lines": {
            "a.py::far": {"m.py": [1]},
            "a.py::near": {"m.py": [1, 7]},
            "b.py::near": {"m.py": [7]},
            "b.py::slow": {"m.py": [7]},
            "c.py::none": {"n.py": [7]},
            "c.py::broken": {"m.py": [7]},
        },
    }  # fmt: skip
    mutant = Mutant("m.py", 7, 0, "a", "b")
    assert Suite([record]).watching(mutant, budget=30) == ["b.py::near", "a.py::near", "a.py::far"]
    assert Suite([record]).watching(mutant, budget=5) == ["b.py::near"]
    # A line that runs at import: first the test that runs most of the file.
    at_import = Mutant("m.py", 99, 0, "a", "b")
    assert Suite([record]).watching(at_import, budget=30) == ["a.py::near", "a.py::far", "b.py::near"]
    assert Suite([record]).watching(Mutant("o.py", 1, 0, "a", "b"), budget=5) == []
