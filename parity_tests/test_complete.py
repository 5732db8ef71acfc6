"""Nothing is left out: every registered part and every op has a twin in PyTorch and a case."""

import importlib
import inspect
import pkgutil

import pytest

import mhc_jax.ops
import torch_ref  # noqa: F401  registers the mirror's kinds
from mhc_jax import registry
from mhc_jax.tests.own import own
from parity_tests import cases
from parity_tests.systems import SYSTEMS
from torch_ref.config import implementation

# Ops whose twin has another name: the mirror needs no chunked loss, its implicit gradient is a backward rule, and it
# has the factor of a norm only inside the norm.
TWINS = {
    "norm.inverse_unit_rms": "norm.unit_rms_norm",
    "loss.chunked_cross_entropy": "loss.cross_entropy",
    "loss.chunked_cross_entropy_and_z_loss": "loss.z_loss",
    "sinkhorn.projection_tangent": "sinkhorn.with_birkhoff_gradient",
    "sinkhorn.solve_laplacian": "sinkhorn.solve_column_potentials",
}


def _ops():
    """All but those named ``check``, which only look at arguments: there are no values to compare."""
    for module in pkgutil.iter_modules(mhc_jax.ops.__path__):
        loaded = importlib.import_module(f"mhc_jax.ops.{module.name}")
        for name, item in vars(loaded).items():
            is_own = inspect.isfunction(item) and item.__module__ == loaded.__name__
            if is_own and name != "check" and not name.startswith("_"):
                yield f"{module.name}.{name}"


AXES = ("model", "norm", "residual", "projection", "ends", "mixer", "channel", "rotary_scaling")
PARTS = [(axis, kind) for axis in AXES for kind in registry.names(axis)]
COVERED = frozenset().union(*(case.covers for case in cases.everything()))


@pytest.mark.parametrize(("axis", "kind"), PARTS)
def test_every_part_has_a_twin_and_a_case(axis, kind):
    try:
        implementation(axis, registry.get(axis, kind))
    except ValueError:
        pytest.fail(f"torch_ref has no {axis} {kind!r}: its class is missing, or its package does not import it")
    assert f"{axis}:{kind}" in COVERED, f"no parity case exercises {axis} {kind!r}"


@pytest.mark.parametrize(("axis", "kind"), [(axis, kind) for axis in ("data", "objective") for kind in own(axis)])
def test_every_way_to_train_has_a_case(axis, kind):
    assert f"{axis}:{kind}" in COVERED, f"no parity case trains with {axis} {kind!r}"


@pytest.mark.parametrize("path", list(_ops()))
def test_every_op_has_a_twin_and_a_case(path: str):
    module, name = TWINS.get(path, path).split(".")
    twin = importlib.import_module(f"torch_ref.ops.{module}")
    assert callable(getattr(twin, name, None)), f"torch_ref.ops.{module} lacks {name}"
    assert f"op:{path}" in COVERED, f"no parity case exercises {path}"


def test_the_systems_meet_every_choice():
    configs = [system.config for system in SYSTEMS.values()]
    assert {config.norm.kind for config in configs} == {"rms", "ln"}
    assert {getattr(config.norm, "bias", None) for config in configs} == {None, True, False}
    assert {config.embed_std for config in configs} == {1.0, 0.02}  # original and default form
    assert {getattr(config.residual, "streams", None) for config in configs} >= {None, 1, 2, 4}
    assert any(config.adapters for config in configs)
    static = [config.residual for config in configs if config.residual.kind == "static_mhc"]
    assert {residual.projection.domain for residual in static} == {"exp", "log"}
    assert {getattr(config.mixer, "form", None) for config in configs} >= {"auto", "associative", "chunked"}
