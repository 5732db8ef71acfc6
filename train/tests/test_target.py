"""Machines that are not here: their names, what the compilers say, and the command around them."""

import dataclasses
import math

import jax
import pytest

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from train import inspect
from train.devices import sharding
from train.measure import cost, hlo, target
from train.tests.tiny import tiny_config

# What the TPU compiler said about two programs.
TOO_LARGE = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.00T) exceeds "
    "available HBM (15.75G)."
)
ALSO_TOO_LARGE = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 205.02G of 95.74G hbm. Exceeded"


@pytest.fixture
def here(monkeypatch):
    """Every machine is the device of this process, with estimates like a TPU's, so that nothing has to be installed."""
    monkeypatch.setattr(target, "devices", lambda machine: jax.devices())
    monkeypatch.setattr(cost, "peak_flops", lambda device: 1e12)
    count = hlo.cost
    monkeypatch.setattr(hlo, "cost", lambda text, *_: dataclasses.replace(count(text), cycles=3_000_000))


@pytest.mark.parametrize(
    ("name", "shape"), [("v5e:1x1", (1, 1)), ("v5p:4x4x4", (4, 4, 4)), ("h100:8", (8,)), ("h100:16", (16,))]
)
def test_names_are_sizes_of_known_machines(name, shape):
    found = target.find(name)
    assert (found.name, found.shape, found.chip) == (name, shape, target.CHIPS[name.split(":")[0]])


@pytest.mark.parametrize("name", ["", "v5e", "v5e:", "v5e:0x2", "v5e:2", "v5p:2x2", "h100:8x8", "h200:8", "v5e:2x-2"])
def test_other_names_are_met_with_the_accepted_ones(name):
    with pytest.raises(ConfigError, match="v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, h100:N") as fault:
        target.find(name)
    assert "\n" not in str(fault.value)


def test_gpus_beyond_one_host_come_in_whole_hosts():
    with pytest.raises(ConfigError, match="hosts of 8"):
        target.find("h100:12")


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "gpu")])
def test_without_its_compiler_one_line_says_what_to_install(monkeypatch, name, extra):
    def absent(**_):
        raise NotImplementedError("topology not implemented") if extra == "gpu" else RuntimeError("not installed")

    monkeypatch.setattr(target.topologies, "get_topology_desc", absent)
    with pytest.raises(ConfigError, match=rf"needs the compiler.*pip install -e '\.\[{extra}\]'"):
        target.devices(target.find(name))


def test_a_shape_that_no_machine_has_is_the_compilers_own_line(monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible\nmore')

    monkeypatch.setattr(target.topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match='^--compile.topology v5e:3x3: Topology layout "v5e:3x3" is not divisible$'):
        target.devices(target.find("v5e:3x3"))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("v5e:1x1", {"platform": "tpu", "topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}),
        ("v5p:4x4x4", {"platform": "tpu", "topology_name": "v5p:4x4x4"}),
        ("h100:2", {"platform": "cuda", "topology": "1x1x2"}),
        ("h100:16", {"platform": "cuda", "topology": "1x2x8"}),
    ],
)
def test_what_the_compilers_are_asked_for(monkeypatch, name, asked):
    heard = {}

    class Nothing:
        devices = ()

    monkeypatch.setattr(target.topologies, "get_topology_desc", lambda **options: heard.update(options) or Nothing)
    target.devices(target.find(name))
    assert heard == {**asked, **target.CHIPS[name.split(":")[0]].options}


def test_the_compiler_of_h100s_hears_of_the_same_memory():
    h100 = target.CHIPS["h100"]
    for line in (
        f"memory_bandwidth: {h100.bandwidth}\n",
        f"device_memory_size: {h100.memory}\n",
        "{ major: 9 minor: 0 }",
    ):
        assert line in h100.options["target_config"]


def test_needed_bytes_are_what_the_compiler_says():
    assert target.needed_bytes(TOO_LARGE) == 2**40
    assert target.needed_bytes(ALSO_TOO_LARGE) == 205.02 * 2**30


def test_verdict_is_one_line():
    v5e, h100 = target.find("v5e:2x2"), target.find("h100:8")
    assert target.verdict(v5e, 2**33) == "fits v5e:2x2: peak 8 of 15.75 GiB a device"
    assert target.verdict(v5e, 2**34) == "does not fit v5e:2x2: peak 16 of 15.75 GiB a device"
    assert target.verdict(h100, 2**33) == "fits h100:8: peak 8 of 79.1 GiB a device"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in target.verdict(h100, 70 * 2**30)
    assert target.verdict(h100, 80 * 2**30).startswith("does not fit")


def test_the_step_is_traced_for_the_machine_and_nothing_is_allocated(monkeypatch, tmp_path):
    seen = []

    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(ALSO_TOO_LARGE)

    def lower(config, optimizer, state, mesh):
        seen.append(target_backend())
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
        return Lowered()

    monkeypatch.setattr(target, "lower_train_step", lower)
    config, before = tiny_config(tmp_path), len(jax.live_arrays())
    for name in ("v5e:1x1", "h100:1"):
        with pytest.raises(target.DoesNotFit) as fault:
            target.compile_step(config, target.find(name), sharding.make_mesh(config.mesh))
        assert fault.value.needed == 205.02 * 2**30
    assert seen == ["tpu", "gpu"]
    assert len(jax.live_arrays()) <= before  # arrays of earlier tests may be collected meanwhile


def test_other_failures_of_the_compiler_are_not_taken_for_memory(monkeypatch, tmp_path):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: Used 205.02G of 95.74G")

    monkeypatch.setattr(target, "lower_train_step", lambda *_: Lowered())
    config = tiny_config(tmp_path)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        target.compile_step(config, target.find("v5e:1x1"), sharding.make_mesh(config.mesh))


@pytest.mark.slow
def test_figures_of_a_compiled_step(here, tmp_path):
    config = tiny_config(tmp_path)
    state, compiled = target.compile_step(config, target.find("v5e:1x1"), sharding.make_mesh(config.mesh))
    found = cost.machine_rows(config, state, compiled, target.CHIPS["h100"])
    values = {row["one device, one step"]: row["value"] for row in found}
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert values["parameters"] == pytest.approx(4 * numbers / 2**20)
    assert values["optimizer state"] == pytest.approx(2 * values["parameters"], rel=0.01)
    assert values["of that in place of input"] <= values["output"] < values["peak"]
    assert 0 < values["kernels of a layer, forward"] < values["kernels of a layer, backward"] < values["kernels"]
    assert "MFU at that time" not in values

    found = cost.machine_rows(config, state, compiled, target.CHIPS["v5e"])
    values = {row["one device, one step"]: row["value"] for row in found}
    assert values["estimated time without communication"] == pytest.approx(2)
    flops = cost.flops_per_token(config.model, config.data.seq_len) * config.data.batch_size * config.data.seq_len
    assert values["MFU at that time"] == pytest.approx(100 * flops / (2e-3 * 1e12))


def test_bytes_are_those_of_one_device(tmp_path):
    whole = jax.ShapeDtypeStruct((8, 4), "float32")
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    sliced = jax.ShapeDtypeStruct((8, 4), "float32", sharding=jax.sharding.NamedSharding(mesh, jax.P("fsdp")))
    assert cost._mib([whole]) == 128 / 2**20
    assert cost._mib([sliced]) == 32 / 2**20


TINY = ("--data.tokenizer", "bytes", "--data.seq-len", "16", "--data.batch-size", "2", "--model.width", "8")


def test_command_prints_rows_that_a_terminal_of_80_columns_shows(here, capsys):
    inspect.main(["mhc_ssm_baseline", "--compile.topology", "v5e:1x1", *TINY, "--model.layers", "2"])
    printed = capsys.readouterr().out
    assert "fits v5e:1x1: peak " in printed
    for words in ("parameters", "temporaries", "kernels of a layer, backward", "estimated time without communication"):
        assert words in printed
    assert "estimated time" not in printed.split("fits")[0]
    assert max(map(len, printed.splitlines())) <= 80


def test_command_says_that_a_step_does_not_fit(here, monkeypatch, capsys):
    def refuse(*_):
        raise target.DoesNotFit(target.needed_bytes(ALSO_TOO_LARGE))

    monkeypatch.setattr(target, "compile_step", refuse)
    inspect.main(["mhc_ssm_baseline", "--compile.topology", "v5p:1x1x1", *TINY])
    assert capsys.readouterr().out.splitlines()[-1] == "does not fit v5p:1x1x1: peak 205 of 95.74 GiB a device"


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--compile.topology", "v7:2x2"], "is no machine known here"),
        (["--compile.topology", "v5e:1x1", "--compile", "False"], "leave out --html, --json, --profile and --compile"),
        (["--compile.topology", "v5e:1x1", "--html", "x.html"], "leave out --html, --json, --profile and --compile"),
        (["--compile.topology", "v5e:1x1", "--mesh.fsdp", "3"], "choose --mesh.data"),
        (["--mesh.fsdp", "4"], r"--mesh.* lays out the devices of --compile.topology"),
    ],
)
def test_faults_are_named(here, flags, fault):
    with pytest.raises(ConfigError, match=fault):
        inspect.main(["mhc_ssm_baseline", *TINY, *flags])


def test_machines_are_those_of_the_data_sheets():
    """Bytes of a device as its compiler states them, and cycles a second, of which estimated times are made."""
    chips = target.CHIPS.items()
    known = {name: (chip.platform, round(chip.memory / target.GIB, 1), chip.clock) for name, chip in chips}
    assert known == {
        "v4": ("tpu", 30.8, 1.05e9),
        "v5e": ("tpu", 15.8, 1.5e9),
        "v5p": ("tpu", 95.7, 1.75e9),
        "v6e": ("tpu", 31.2, 1.75e9),
        "h100": ("gpu", 79.1, None),
    }
