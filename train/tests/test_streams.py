"""Stream statistics during training: what is logged, where it goes, and that meshes and processes agree."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import diagnostics
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm, transformer_scan, with_topology
from mhc_jax.nn.residual import Residual
from mhc_jax.nn.residual.mhc import StreamsConfig
from train.data import eval_batches
from train.loop.resolve import resolve
from train.loop.run import run
from train.measure import streams
from train.measure.log import MetricsLog, TensorBoard, WeightsAndBiases
from train.report.quantities import QUANTITIES, by_site
from train.storage.folder import read_metrics
from train.storage.restore import load_run
from train.tests.runs import finish, offer, start_two, tiny_run


def streamed(folder, **train):
    """The tiny run with two layers of four streams, and statistics every third step."""
    config = tiny_run(folder)
    model = mhc_ssm("mhc", vocab_size=None, max_len=None, width=16, layers=2)
    steps = config.train.replace(steps=7, eval_every=0, **train)
    return config.replace(model=model, train=steps, log=config.log.replace(streams_every=3))


def logged(folder):
    return {line["step"]: line["streams"] for line in read_metrics(folder / "metrics.jsonl") if "streams" in line}


@pytest.mark.slow
def test_statistics_are_logged_when_due_and_are_those_of_one_micro_batch(tmp_path):
    config = streamed(tmp_path, accumulate=2)
    config = config.replace(checkpoint=config.checkpoint.replace(every=6))
    run(config.replace(train=config.train.replace(steps=6)))
    lines = logged(tmp_path / "run")
    assert list(lines) == [3, 6]

    resolved, params = load_run(tmp_path / "run", "last")
    batch = next(iter(config.data.load().evaluation()))
    taps = mhc_jax.apply(resolved.model, params, batch["inputs"][::2], taps=True).taps
    expected = diagnostics.statistics(taps)
    assert lines[6].keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(lines[6][name], values, rtol=1e-4, atol=1e-5)
    assert np.shape(lines[6]["h_res"]) == (2, 4, 4)
    assert lines[3]["stream_cosine"] != lines[6]["stream_cosine"]


@pytest.mark.slow
def test_statistics_change_nothing_else(tmp_path):
    config = streamed(tmp_path)
    silent = config.replace(run_dir=str(tmp_path / "silent"), log=config.log.replace(streams_every=0))
    assert run(config).summary["val_loss"] == run(silent).summary["val_loss"]
    assert not logged(tmp_path / "silent")


@pytest.mark.slow
def test_two_processes_log_what_one_logs(tmp_path):
    config = streamed(tmp_path, accumulate=2)
    offer(config, tmp_path)
    run(config.replace(run_dir=str(tmp_path / "alone")))
    finish(*start_two(tmp_path, "together"))
    alone, together = logged(tmp_path / "alone"), logged(tmp_path / "together")
    assert list(alone) == list(together) == [3, 6]
    for step, statistics in alone.items():
        for name, values in statistics.items():
            np.testing.assert_allclose(together[step][name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_windows_that_fill_up_the_batch_do_not_count(tmp_path):
    config = resolve(streamed(tmp_path))
    params = mhc_jax.init(config.model, jax.random.key(0))
    batch = next(iter(eval_batches(np.arange(40) % 50, config.data)))  # two windows of 16 in a batch of 8
    step = streams.make_stream_step(config)
    expected = step(params, {name: x[:2] for name, x in batch.items()})
    for name, values in step(params, batch).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_of_a_scan_the_reader_is_measured_where_it_reads_something(tmp_path):
    config = streamed(tmp_path)
    scan = with_topology(transformer_scan("tiny", vocab_size=50, max_len=7, chunk=3, reader_layers=2), "mhc")
    counts = scan.layer_mask(np.array([[True] * 7, [False] * 7]))
    rows = [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert counts.astype(int).tolist() == rows + [[0] * 6] * 3

    params = mhc_jax.init(scan, jax.random.key(0))
    tokens = np.arange(7)[None]
    found = streams.measure(config.replace(model=scan), params, {"inputs": tokens})
    sites = diagnostics.site_names(scan)
    assert sites == ["0 mixer", "0 mlp", "1 mixer", "1 mlp"]
    assert np.shape(found["h_res"]) == (4, 4, 4)
    states = mhc_jax.apply(scan, params, tokens, taps=True).taps["reader.blocks.mixer.state"]
    real = states[:, counts[:3]][:, None]  # one row of the places that count
    for layer, expected in enumerate(diagnostics.stream_geometry(real)["stream_cosine"]):
        assert found["stream_cosine"][2 * layer] == pytest.approx(float(expected), rel=1e-4)


def test_a_record_is_short_and_survives_what_is_not_finite(tmp_path):
    sites = {quantity.name: np.full(2, 1 / 3, np.float32) for quantity in QUANTITIES}
    recorded = streams.record({**sites, "forward_gain": np.array([1.0, np.inf], np.float32)})
    assert recorded["entropy"] == [0.333333] * 2
    written = {}
    fake = types.SimpleNamespace(
        write=lambda step, values: written.update(values),
        write_sites=lambda step, values: written.update(values),
        close=lambda: None,
    )
    with MetricsLog(tmp_path, tiny_run(tmp_path), start=0) as log:
        log._sinks.append(fake)
        log.write_streams(4, recorded)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["streams"]["forward_gain"] == [1.0, None]
    assert np.isnan(by_site(line["streams"])["forward_gain"][1])
    assert written["streams/entropy"] == pytest.approx(1 / 3, rel=1e-5)
    assert written["streams/forward_gain"] == np.inf
    assert written["streams_by_site/forward_gain"].tolist() == [1.0]


def test_trackers_receive_distributions(tmp_path, monkeypatch):
    written = []
    writer = types.SimpleNamespace(
        add_scalar=lambda *args: written.append(args), add_histogram=lambda *args: written.append(args)
    )
    tensorboard = types.SimpleNamespace(SummaryWriter=lambda folder: writer)
    project = types.SimpleNamespace(log=lambda values, step: written.append((values, step)))
    wandb = types.SimpleNamespace(init=lambda **options: project, Histogram=tuple)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    config = tiny_run(tmp_path)
    sites = {"streams_by_site/entropy": np.array([0.25, 0.5])}
    TensorBoard(tmp_path).write_sites(5, sites)
    WeightsAndBiases(tmp_path, config.replace(log=config.log.replace(wandb="x"))).write_sites(6, sites)
    assert written[0][0] == "streams_by_site/entropy"
    assert written[0][2] == 5
    assert written[1] == ({"streams_by_site/entropy": (0.25, 0.5)}, 6)


class Untapped(Residual):
    """Streams that are read and written without taps."""

    def pre(self, state, scope):
        return state.total(), None

    def post(self, state, y, ctx, scope):
        return state.each(lambda x: x + y.astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class UntappedConfig(StreamsConfig):
    kind = "untapped"

    def build(self, width, policy, init):
        return Untapped()


def test_streams_without_taps_are_not_taken_for_one_stream(tmp_path):
    config = resolve(streamed(tmp_path))
    config = config.replace(model=config.model.replace(residual=UntappedConfig()))
    assert not streams.mixes(config)
    with pytest.raises(ConfigError, match=r"this model \(.*residual untapped, 4 streams.*\) has none; set it to 0"):
        streams.check(config)


def test_nothing_to_look_at_is_said(tmp_path):
    config = tiny_run(tmp_path)
    with pytest.raises(ConfigError, match=r"needs sites that tap .* this model \(.*residual plain.*has none"):
        run(config.replace(log=config.log.replace(streams_every=5)))
    with pytest.raises(ConfigError, match="streams_every must not be negative"):
        run(streamed(tmp_path).replace(log=config.log.replace(streams_every=-1)))
