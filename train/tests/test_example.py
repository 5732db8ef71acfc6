"""The worked example of docs/extending.md: it stands there as it is, trains as a plug-in, and agrees with its twin."""

import copy
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import configs  # noqa: F401  every axis is registered then
from mhc_jax import registry
from parity_tests.cases import outside
from parity_tests.compare import failures, judge

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Cases of the library's own parts that no system has.
OWN = {case.name for case in outside.cases()}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if "bag" not in path.name))
def test_the_page_shows_the_whole_example(name):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert f"```python\n{(EXAMPLES / name).read_text()}```" in page


def test_every_axis_has_an_example():
    examples = "".join(path.read_text() for path in EXAMPLES.glob("*.py"))
    shown = set(re.findall(r'^@register\("(\w+)"', examples, re.MULTILINE))
    assert set(registry._REGISTRY) - {"original"} == shown


def run(tmp_path, *argv):
    """The command in another folder, as a user of an installed copy would give it."""
    return subprocess.run(
        [sys.executable, *argv],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_topology_outside_the_repository_trains(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("streams carry state through depth\n" * 60)
    flags = f"--data.source {corpus} --data.cache-dir {tmp_path / 'cache'} --data.seq-len 16 --data.batch-size 2"
    flags += " --model.width 8 --model.layers 2 --train.steps 2 --data.sample-tokens 0 --objective.chunk 16"
    argv = ["-m", "train", "--import", "layer_scale", "quickstart@layer_scale", "--run-dir", str(tmp_path / "run")]
    done = run(tmp_path, *argv, *flags.split())
    assert done.returncode == 0, done.stderr
    assert '"kind": "layer_scale"' in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "topology", "mixer"),
    [
        ("layer_scale", "layer_scale", "attention"),
        ("decaying_average", "mhc", "decaying_average"),
        ("lazy_walk", "lazy_walk", "attention"),
        ("rolled_ends", "rolled", "attention"),
    ],
)
def test_it_agrees_with_its_twin(name, topology, mixer, tmp_path):
    walk = f"print(parity_tests.matrix.walk({topology!r}, {mixer!r}))"
    done = run(tmp_path, "-c", f"import {name}, {name}_torch, parity_tests.matrix; {walk}")
    assert done.stdout.startswith("ok"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("decaying_average", "mixer decaying_average"),
        ("squared_relu", "channel squared_relu"),
        ("dynamic_tanh", "norm dynamic_tanh"),
        ("bag_of_tokens", "model bag_of_tokens"),
        ("ntk_scaling", "rotary_scaling ntk"),
        ("lazy_walk", None),  # its topology has a case
        ("rolled_ends", None),
    ],
)
def test_the_parity_suite_makes_cases_of_it(name, part, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", copy.deepcopy(registry._REGISTRY))
    monkeypatch.syspath_prepend(EXAMPLES)
    for module in (name, f"{name}_torch"):
        importlib.import_module(module)
        del sys.modules[module]  # for good: another test that imports it registers its part anew
    found = [(case.tier, case.name) for case in outside.cases() if case.name not in OWN]
    assert found == ([("models", part), ("gradients", part)] if part else [])


def test_a_scaling_of_rotary_positions_agrees_with_its_twin(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", copy.deepcopy(registry._REGISTRY))
    monkeypatch.syspath_prepend(EXAMPLES)
    for module in ("ntk_scaling", "ntk_scaling_torch"):
        importlib.import_module(module)
        del sys.modules[module]
    [case, _] = [case for case in outside.cases() if case.name not in OWN]
    rows = judge(case)
    assert rows
    assert not failures(rows)
