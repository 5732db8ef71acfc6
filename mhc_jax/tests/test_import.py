"""The package gives its names when they are asked for, and the scaffold without JAX."""

import subprocess
import sys

import pytest

import mhc_jax

WITHOUT_JAX = """
import sys
sys.modules |= dict.fromkeys(("jax", "flax"))  # not to be had
import mhc_jax
from mhc_jax.rlm import RLM, Document, Scripted, adapters, page, replay, session, tasks
result = RLM(Scripted(["```repl\\nFINAL(len(context))\\n```"])).completion(Document("four"))
assert replay(result.trace).trace == result.trace
assert "<title>" in page.render(result.trace)
print(result.answer, tasks.generate("needle", 100).kind, mhc_jax.ConfigError.__name__)
"""


def test_the_scaffold_runs_without_jax():
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4 needle ConfigError\n", "")


def test_every_public_name_is_there():
    assert {*mhc_jax._HOMES} == {*mhc_jax.__all__} - {"__version__", "interop"}
    assert all(getattr(mhc_jax, name) for name in mhc_jax.__all__)
    assert {*mhc_jax.__all__} <= {*dir(mhc_jax)}
    assert mhc_jax.models.rlm("small").layers  # modules, too, need no import of their own


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="module 'mhc_jax' has no attribute 'aply'"):
        mhc_jax.aply  # noqa: B018  (the look-up is the test)


def test_a_module_that_does_not_load_says_why(monkeypatch):
    monkeypatch.delattr(mhc_jax, "diagnostics")
    monkeypatch.delitem(sys.modules, "mhc_jax.diagnostics")
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ModuleNotFoundError, match="import of jax halted"):
        mhc_jax.diagnostics  # noqa: B018
