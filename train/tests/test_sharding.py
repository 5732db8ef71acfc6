"""Slices, mesh and their complaints; meshes of more devices than there are here are abstract."""

import re
import types

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.functional import ParamInfo, param_info
from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig, LatentAttentionConfig
from mhc_jax.tree import dotted
from train.config import MeshConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.devices import sharding
from train.update.optimizer import make_optimizer
from train.update.step import init_state

MODELS = {
    (variant, norm): mhc_ssm(variant, norm=registry.get("norm", norm)())
    for variant in ("baseline", "mhc", "adapters")
    for norm in ("rms", "ln")
}
ADAPTERS = MODELS["adapters", "ln"]
MODELS |= {("gpt2", name): with_topology(gpt2(), name) for name in registry.names("topology")}
MODELS["gpt2", "latent_attention"] = gpt2(mixer=LatentAttentionConfig())
MODELS |= {("gpt2", mixer.kind): gpt2(mixer=mixer) for mixer in (GLAConfig(conv_kernel=4), GatedDeltaConfig())}


def mesh_of(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def small(**changes):
    return mhc_ssm("adapters", **{"vocab_size": 64, "max_len": 8, "width": 16, "layers": 2} | changes)


def with_model(model, **data):
    return RunConfig(model=model, data=CorpusConfig(seq_len=8, **data))


@pytest.mark.parametrize("key", MODELS)
def test_no_axis_is_used_twice(key):
    infos = param_info(MODELS[key])
    for name, spec in sharding.param_specs(infos, mesh_of(2, 4, 8)).items():
        axes = [axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        assert len(spec) == len(infos[name].shape)
        assert len(set(axes)) == len(axes)
        assert "data" not in axes


def test_every_name_in_the_tables_is_an_axis_of_some_parameter():
    named = {axis for model in MODELS.values() for info in param_info(model).values() for axis in info.axes}
    assert named >= sharding.SLICES.keys() | sharding.GATHERED.keys() | sharding.MAY_BE_WHOLE


def test_streams_and_layers_are_never_sliced():
    """With sizes that are all different, a sliced dimension is known by its size."""
    layers, streams = 3, 5
    model = ADAPTERS.replace(layers=layers, residual=ADAPTERS.residual.replace(streams=streams))
    infos = param_info(model)
    for name, spec in sharding.param_specs(infos, mesh_of(2, 2, 2)).items():
        shape = infos[name].shape
        whole = [size for size, entry in zip(shape, spec) if entry is None]
        for held in (layers, streams, streams * model.width):
            assert whole.count(held) == shape.count(held)


def test_the_two_matrices_of_a_site_are_sliced_column_then_row_wise():
    specs = sharding.param_specs(param_info(ADAPTERS), mesh_of(2, 2, 2))
    assert specs["blocks.mixer.branch.in_proj.kernel"] == P(None, "fsdp", "tensor")
    assert specs["blocks.mixer.branch.out_proj.kernel"] == P(None, "tensor", "fsdp")
    assert specs["blocks.mixer.branch.ssm.logit_a"] == P(None, ("tensor", "fsdp"))


def test_a_vocabulary_that_does_not_divide_is_sliced_along_the_width():
    assert sharding.param_specs(param_info(small(vocab_size=64)), mesh_of(tensor=2))["embed.tokens"] == P(
        "tensor", "fsdp"
    )
    assert sharding.param_specs(param_info(small(vocab_size=65)), mesh_of(tensor=2))["embed.tokens"] == P(
        None, ("tensor", "fsdp")
    )


def test_optimizer_moments_follow_their_parameters():
    config = with_model(small())
    optimizer = make_optimizer(config.optim, 10, param_info(config.model))
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    mesh = mesh_of(2, 2, 2)
    found = sharding.state_shardings(state, param_info(config.model), mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for moment in ("mu", "nu"):
        [(_, moments)] = optax.tree.get_all_with_path(found.opt_state, moment)
        assert jax.tree.leaves(moments) == jax.tree.leaves(found.params)
    assert found.step == NamedSharding(mesh, P())
    assert optax.tree.get(found.opt_state, "learning_rate") == NamedSharding(mesh, P())


def flat(shardings):
    return {dotted(path): its for path, its in jax.tree_util.tree_leaves_with_path(shardings)}


def test_momentum_of_muon_and_averages_follow_their_parameters():
    config = with_model(small())
    config = config.replace(optim=config.optim.replace(name="muon", ema=0.9))
    infos, mesh = param_info(config.model), mesh_of(2, 2, 2)
    optimizer = make_optimizer(config.optim, 10, infos)
    found = sharding.state_shardings(jax.eval_shape(lambda: init_state(config, optimizer)), infos, mesh)
    assert jax.tree.leaves(found.ema) == jax.tree.leaves(found.params)
    trace, first = (flat(optax.tree.get(found.opt_state, name)) for name in ("trace", "mu"))
    assert trace.keys() == {f"blocks.mixer.branch.{name}_proj.kernel" for name in ("in", "out")}
    assert trace | first == flat(found.params)


def test_an_axis_that_no_table_names_is_held_whole_and_printed_so(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    infos = {"blocks.new.thing": ParamInfo((2, 3, 4), np.dtype("float32"), "vector", ("layer", "knots", ""), 1.0)}
    assert sharding.param_specs(infos, mesh_of(2, 2, 2)) == {"blocks.new.thing": P(None, None, None)}
    assert "| layer knots - | 2x3x4 | (-, -, -) |" in sharding.table(infos, mesh_of(2, 2, 2))


def test_the_first_dimension_that_does_not_divide_is_named():
    infos = {"w": ParamInfo((6, 9), np.dtype("float32"), "kernel", ("embed", "mlp"), 1.0)}
    with pytest.raises(ConfigError, match=r"dimension 0 of size 6 .* fsdp 4"):
        sharding.param_specs(infos, mesh_of(1, 4, 2))


def test_an_indivisible_width_names_parameter_dimension_axis_and_fix():
    with pytest.raises(ConfigError) as error:
        sharding.check(with_model(small(width=18)), mesh_of(tensor=4))
    fault = str(error.value)
    assert re.search(r"parameter \S+ \(.*18.*\): dimension \d of size \d+ does not divide by mesh axis", fault)
    assert "multiple of 4" in fault
    assert "--mesh.tensor" in fault
    assert "\n" not in fault


def test_an_indivisible_adapter_rank_is_an_error():
    with pytest.raises(ConfigError, match=r"residual\.(down|up|gamma).*size 6 does not divide by mesh axis tensor 4"):
        sharding.check(with_model(small(adapters=ADAPTERS.adapters.replace(rank=6))), mesh_of(tensor=4))


@pytest.mark.parametrize(
    ("data", "fsdp", "accumulate", "batch_size"), [(4, 1, 1, 6), (2, 2, 1, 6), (2, 2, 2, 12), (1, 1, 3, 4)]
)
def test_an_indivisible_batch_is_an_error(data, fsdp, accumulate, batch_size):
    config = with_model(small(), batch_size=batch_size).replace(train=TrainConfig(accumulate=accumulate))
    multiple = data * fsdp * accumulate
    with pytest.raises(
        ConfigError, match=f"--data.batch-size {batch_size} is not a multiple of .*choose a multiple of {multiple}"
    ):
        sharding.check(config, mesh_of(data, fsdp))


@pytest.mark.parametrize(
    "config", [MeshConfig(data=3), MeshConfig(fsdp=2), MeshConfig(tensor=7), MeshConfig(data=2, tensor=2)]
)
def test_a_mesh_that_does_not_use_exactly_the_devices_is_an_error(config, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 5)
    with pytest.raises(ConfigError, match=r"does not use exactly the 5 available device\(s\); choose --mesh\.data"):
        sharding.make_mesh(config)


def test_one_device_makes_a_mesh_and_passes_batches_through():
    mesh = sharding.make_mesh(MeshConfig(data=1))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    batch = {"inputs": np.arange(6).reshape(2, 3)}
    out = sharding.global_batch(batch, mesh)["inputs"]
    assert out.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(out, batch["inputs"])


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "per_process", "expected"),
    [
        (4, 1, 2, 8, (0, 1)),
        (4, 1, 2, 4, (1, 2)),
        (2, 2, 2, 2, (1, 4)),
        (2, 1, 4, 2, (0, 2)),  # processes 0 and 1 share row 0
        (1, 1, 8, 2, (0, 1)),  # all processes hold the whole batch
    ],
)
def test_processes_load_what_their_devices_hold(data, fsdp, tensor, per_process, expected, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 8 // per_process > 1)
    assert sharding.host_slice(fake_mesh(data, fsdp, tensor, per_process)) == expected


def test_a_mesh_that_cuts_slices_across_processes_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ConfigError, match="does not give each process one slice"):
        sharding.host_slice(fake_mesh(4, 1, 2, 5))


def fake_mesh(data, fsdp, tensor, per_process):
    """What :func:`sharding.host_slice` reads of a mesh of 8 devices on several processes."""
    devices = np.array([types.SimpleNamespace(process_index=i // per_process) for i in range(8)])
    return types.SimpleNamespace(devices=devices.reshape(data, fsdp, tensor), shape={"tensor": tensor})


def test_the_table_lists_every_parameter_with_its_bytes_per_device(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    infos = param_info(ADAPTERS)
    table = sharding.table(infos, mesh_of(2, 2, 2))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len(rows) == 3 + len(infos)
    [row] = [row for row in rows if row[0] == "blocks.mixer.branch.in_proj.kernel"]
    size = 8 * 512 * 1024
    assert row[1:] == ["kernel", "layer embed inner", "8x512x1024", "(-, fsdp, tensor)", f"{4 * size:,}", f"{size:,}"]
    assert rows[-1][0] == "total on data 2, fsdp 2, tensor 2"
    for column in (5, 6):
        numbers = [int(row[column].replace(",", "")) for row in rows[2:]]
        assert numbers[-1] == sum(numbers[:-1])


def test_the_table_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = sharding.table(param_info(ADAPTERS), mesh_of(2, 2, 2))
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((0, 1, 1), (12, 1, 1)), ((0, 2, 3), (2, 2, 3)), ((3, 4, 1), (3, 4, 1)), ((0, 5, 1), None), ((2, 2, 2), None)],
)
def test_data_takes_the_devices_that_the_other_axes_leave(axes, shape, monkeypatch):
    monkeypatch.setattr(sharding.jax, "make_mesh", lambda shape, names, **options: (shape, names))
    config = MeshConfig(*axes)
    if shape is None:
        with pytest.raises(ConfigError, match="does not use exactly the 12 available"):
            sharding.make_mesh(config, [None] * 12)
    else:
        assert sharding.make_mesh(config, [None] * 12) == (shape, ("data", "fsdp", "tensor"))
