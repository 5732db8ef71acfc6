"""Training steps and memory traffic of residual topologies, beside the plain residual."""

import datetime
import importlib.metadata
import json
import os
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.registry import register
from train.benchmark import __main__ as benchmark
from train.benchmark import report, topologies, traffic
from train.benchmark.worker import cores
from train.config import RunConfig
from train.measure import hlo, speed
from train.measure.turns import compare, take_turns
from train.terminal.table import markdown, terminal
from train.tests.tiny import tiny_config

MODEL = mhc_ssm("baseline", vocab_size=257, max_len=16, width=8, layers=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunConfig:
    config = tiny_config(tmp_path_factory.mktemp("tiny"))
    return config.replace(model=MODEL, data=config.data.replace(batch_size=2))


def test_turns_alternate_back_and_forth():
    order = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, calls=2)
    assert "".join(order) == "aabbcc" + "ccbbaa"
    assert {name: np.shape(rounds) for name, rounds in seconds.items()} == dict.fromkeys("abc", (2, 2))


def test_comparison_is_of_medians_and_of_single_rounds():
    found = compare([[2.0], [9.0], [6.0]], [[1.0], [3.0], [4.0]])
    assert (found["ms"], found["plain ms"], found["ratio"]) == (6000, 3000, 2)
    assert (found["ratio 25%"], found["ratio 75%"]) == (1.75, 2.5)
    assert found["least ratio"] == 2


@pytest.mark.slow
def test_variants_are_all_topologies_and_every_possible_number_of_streams():
    found, notes = topologies.variants(MODEL, (), (1, 3))
    assert {variant.topology for variant in found} == set(registry.names("topology")) - {"plain"}
    counts = {name: [v.streams for v in found if v.topology == name] for name in ("mhc", "kromhc", "value_residual")}
    assert counts == {"mhc": [1, 3], "kromhc": [1], "value_residual": [None]}
    assert ["kromhc with 3 streams is left out" in note for note in notes if "kromhc" in note] == [True]
    with pytest.raises(ConfigError, match="did you mean 'mhc'"):
        topologies.variants(MODEL, ("mch",), (1,))


@pytest.mark.slow
def test_table_has_a_ratio_for_each_and_the_plain_step_twice(run):
    rows, notes = topologies.table(run, ("kromhc", "plain", "value_residual"), (2, 3), rounds=2, calls=1)
    assert [(row["topology"], row["n"]) for row in rows] == [
        ("plain", None),
        ("plain again", None),
        ("kromhc", 2),
        ("value_residual", None),
    ]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ms"] / row["plain ms"])
        assert row["tokens/s"] == pytest.approx(2 * 16 / (1e-3 * row["ms"]))
        assert row["compile s"] > 0
        assert row["temporary MiB"] == pytest.approx(float(row["temporary MiB"]))
        assert row["temporary MiB"] > 0
        assert "mfu" not in row, "nobody knows the peak of this processor"
    assert rows[3]["parameters"] > rows[0]["parameters"] == rows[1]["parameters"]
    assert any("kromhc with 3 streams" in note for note in notes)


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_a_note(run, monkeypatch):
    original = topologies.trainer

    def trainer(config):
        if config.model.residual.stream_count == 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return original(config)

    monkeypatch.setattr(topologies, "trainer", trainer)
    rows, notes = topologies.table(run, ("ihc",), (2, 8), rounds=1, calls=1)
    assert [(row["topology"], row["n"]) for row in rows] == [("plain", None), ("plain again", None), ("ihc", 2)]
    assert "ihc with 8 streams is left out: out of memory." in notes


@pytest.mark.slow
def test_mfu_where_the_peak_is_known(run, monkeypatch):
    monkeypatch.setitem(speed.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    rows, _ = topologies.table(run, ("plain",), (), rounds=1, calls=1)
    expected = topologies.flops_per_token(with_topology(MODEL, "plain"), run.data.seq_len) * rows[0]["tokens/s"] / 1e9
    assert rows[0]["mfu"] == pytest.approx(expected)


def test_floors_are_those_of_the_published_counts():
    assert traffic.floors(4) == {"floor": 17, "two kernels": 37, "naive": 94}
    assert traffic.floors(1)["floor"] == 0, "one stream is the plain residual"
    # Table 2 of the mHC paper: 21 C + 13 C and twice n^2 + 2n against 3 C.
    assert traffic.paper_forward(4, 48) == pytest.approx(34 - 3 + 2 * 24 / 48)


@pytest.mark.slow
def test_traffic_of_more_streams_is_more(run, monkeypatch):
    monkeypatch.setattr(traffic, "SHALLOW", 1)
    monkeypatch.setattr(traffic, "DEEP", 2)
    rows, _ = traffic.table(run, ("mhc",), (2, 3))
    assert [(row["topology"], row["n"]) for row in rows] == [
        ("plain, all of it", None),
        ("mhc", 2),
        ("mhc", 3),
    ]
    _, two, three = rows
    assert 0 < two["forward"] < three["forward"]
    assert two["both"] < three["both"]
    assert two["floor"] < two["both"]
    assert two["over floor"] == pytest.approx(two["both"] / 7)
    assert two["both"] > two["both (XLA)"], "Sinkhorn's loop runs more than once"


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


@pytest.mark.slow
def test_bytes_are_xlas_own_where_nothing_loops(run):
    """The recurrence neither: what it calls for each token, XLA does not count."""
    model = with_topology(MODEL, "hc").replace(
        execution=MODEL.execution.replace(layers="unroll"), mixer=MODEL.mixer.replace(form="associative")
    )
    program = traffic._compiled(run, model, backward=True)
    assert hlo.cost(program.as_text()).bytes == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.02)


def test_bytes_of_kernels_loops_slices_and_updates():
    n = 4 * 256 * 256
    chain = compiled(lambda x, y: jnp.sin(x) * y + 1, (256, 256), (256, 256))
    assert hlo.cost(chain.as_text()) == hlo.Cost(3 * n, 1)

    def loop(length):
        def repeat(x):
            return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=length)[0]

        return hlo.cost(compiled(repeat, (256, 256)).as_text())

    each = (loop(20).bytes - loop(10).bytes) / 10
    assert each == (loop(40).bytes - loop(20).bytes) / 20
    assert 5 * n <= each < 8 * n, "sine 2, product 3, and perhaps a copy"
    part = compiled(lambda x: jnp.sin(jax.lax.dynamic_slice(x, (3, 0), (16, 256))), (256, 256))
    assert hlo.cost(part.as_text()).bytes == pytest.approx(2 * n / 16, rel=0.01)


PROGRAM = """
%body (carry: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %carry = (s32[], f32[4,6]{1,0}) parameter(0)
  %x = f32[4,6]{1,0} get-tuple-element(%carry), index=1
  %pair = (f32[4,6]{1,0}, bf16[2]{0}) all-reduce(%x, %x), to_apply=%add
}
%condition (carry: (s32[], f32[4,6])) -> pred[] {
  %carry = (s32[], f32[4,6]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %last = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %last), direction=LT
}
%wrapped (x: f32[4,6]) -> f32[2,6] {
  ROOT %scattered = f32[2,6]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%add
}
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}
ENTRY %main (x: f32[4,6]) -> f32[8,6] {
  %x = f32[4,6]{1,0} parameter(0)
  %known = (s32[], f32[4,6]{1,0}) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %loop = (s32[], f32[4,6]{1,0}) while(%x), condition=%condition, body=%body
  %started = (f32[4,6]{1,0}, f32[8,6]{1,0}) all-gather-start(%x), dimensions={0}
  %whole = f32[8,6]{1,0} all-gather-done(%started)
  %other = ((f32[4,6]{1,0}), f32[2,6]{1,0}, s32[]) async-start(%x), calls=%wrapped
  %slice = f32[2,6]{1,0} async-done(%other), calls=%wrapped
}
"""


def test_collectives_count_as_often_as_they_run_and_started_ones_once():
    assert hlo.collectives(PROGRAM) == {
        "all-reduce": hlo.Traffic(arrays=2 * (5 + 3), bytes=(5 + 3) * (4 * 24 + 2 * 2)),
        "all-gather": hlo.Traffic(1, 4 * 48),
        "reduce-scatter": hlo.Traffic(1, 4 * 12),
    }
    assert (8, 6) in hlo.shapes(PROGRAM)
    assert (6, 8) not in hlo.shapes(PROGRAM)


@pytest.mark.slow
def test_command_writes_its_table(run, tmp_path, capsys):
    argv = ["quickstart", "--what", "traffic", "--topologies", "ihc", "--streams", "2", "--out", str(tmp_path)]
    argv += ["--model.width", "8", "--model.layers", "2", "--data.seq-len", "16", "--data.batch-size", "2"]
    benchmark.main(argv)
    found = json.loads((tmp_path / "traffic-quickstart.json").read_text())
    assert markdown(found["rows"]) in (tmp_path / "traffic-quickstart.md").read_text()
    assert terminal(found["rows"]) in capsys.readouterr().out
    assert [row["topology"] for row in found["rows"]] == ["plain, all of it", "ihc"]


def test_every_row_is_set_against_the_plain_step_of_its_own_turns(run, monkeypatch):
    spent = {"2": 3.0, "4": 5.0, "plain": 2.0, "again": 2.5}

    def turns(steps, *, rounds, calls):
        assert (rounds, calls) == (1, 2)
        return {name: [[spent[name]] * calls] for name in steps}

    def trainer(config):
        facts = {"parameters": 7, "temporary MiB": None, "compile s": 1.0}
        return topologies.Trainer(step=lambda: None, facts=facts)

    monkeypatch.setattr(topologies, "take_turns", turns)
    monkeypatch.setattr(topologies, "trainer", trainer)
    rows, _ = topologies.table(run, ("mhc",), (2, 4), rounds=1, calls=2)
    found = {(row["topology"], row["n"]): (row["ms"], row["plain ms"], row["ratio"]) for row in rows}
    assert found == {
        ("plain", None): (2000, 2000, 1),
        ("plain again", None): (2500, 2000, 1.25),
        ("mhc", 2): (3000, 2000, 1.5),
        ("mhc", 4): (5000, 2000, 2.5),
    }


def test_a_report_says_which_machine_it_is_of(tmp_path, monkeypatch):
    monkeypatch.setattr(report.os, "getloadavg", lambda: (1.239, 9.0, 8.0))
    monkeypatch.setattr(report.sys, "argv", ["x", "gpt2", "--what", "a b"])
    found = report.machine()
    assert found["load_before"] == 1.24
    assert found["command"] == "python -m train.benchmark gpt2 --what 'a b'"
    assert (found["system"], found["python"]) == (platform.platform(), platform.python_version())
    assert (found["jax"], found["flax"]) == (jax.__version__, importlib.metadata.version("flax"))
    assert found["memory_gib"] == round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    assert datetime.datetime.fromisoformat(found["date"]).utcoffset() == datetime.timedelta(0)
    assert report._version("no-such-package") is None
    report.write(tmp_path / "new" / "folder", "speed", {"cores": 2, "config": {"a": 1}}, [{"ms": 3}], ["A note."])
    stored = json.loads((tmp_path / "new/folder/speed.json").read_text(encoding="utf-8"))
    assert stored == {"cores": 2, "config": {"a": 1}, "rows": [{"ms": 3}], "notes": ["A note."]}
    text = (tmp_path / "new/folder/speed.md").read_text(encoding="utf-8")
    assert text.startswith("# speed\n\n- cores: 2\n\n")
    assert text.endswith("\n\nA note.\n")


def test_the_processor_is_the_first_that_is_named(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name\t: First: 2 GHz\nprocessor: 1\nmodel name\t: Second\n", encoding="utf-8")
    monkeypatch.setattr(report, "Path", lambda _: info)
    assert report._processor() == "First: 2 GHz"


def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)


def test_traffic_is_that_of_one_site_in_units_of_its_activations(run, monkeypatch):
    """What a layer of two sites adds: bytes over those of one activation, kernels as they are, each halved."""
    model = run.model.replace(mlp=GeluMLPConfig(), execution=Execution(policy="bfloat16"))
    unit = run.data.batch_size * run.data.seq_len * model.width * 2
    monkeypatch.setattr(
        traffic, "_added", lambda *_, backward: np.array([6.0 * unit, 4.0 * unit, 10.0]) * (1 + backward)
    )
    assert traffic.site(run, model) == {"forward": 3.0, "both": 6.0, "both (XLA)": 4.0, "kernels": 10.0}


@pytest.mark.slow
def test_models_of_other_configurations_take_turns(tmp_path, monkeypatch, capsys):
    """They keep the vocabulary, the length and the precision of the named one."""
    register("config", "wide")(lambda: RunConfig(model=MODEL.replace(width=16, vocab_size=99, max_len=None)))
    try:
        argv = ["quickstart", "--what", "models", "--others", "wide", "--rounds", "2", "--calls", "1"]
        flags = "--model.width 8 --model.layers 1 --data.seq-len 8 --data.batch-size 2 --objective.chunk 8"
        sizes = flags.split()
        benchmark.main([*argv, *sizes, "--out", str(tmp_path)])
        rows = json.loads((tmp_path / "models-quickstart.json").read_text())["rows"]
        assert [row["model"] for row in rows] == ["quickstart", "wide", "quickstart again"]
        assert [row["FLOPs ratio"] for row in rows[::2]] == [1, 1]
        assert rows[1]["FLOPs ratio"] > 2
        assert rows[1]["parameters"] > rows[0]["parameters"] == rows[2]["parameters"]
        assert rows[0]["ratio"] == 1
        with pytest.raises(ConfigError, match="quickstart is there twice"):
            benchmark.main([*argv[:4], "quickstart", *sizes])
        with pytest.raises(ConfigError, match="name what to compare with: --others"):
            benchmark.main([*argv[:3], *sizes])
        with pytest.raises(ConfigError, match="unknown config 'wider'; did you mean 'wide'"):
            benchmark.main([*argv[:4], "wider", *sizes])
    finally:
        registry._REGISTRY["config"].pop("wide")
