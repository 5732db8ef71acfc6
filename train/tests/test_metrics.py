"""Speed, utilisation and the lines of the log, against a clock and devices that are known."""

import json
import math
import types

import jax
import pytest

from mhc_jax.config import ConfigError
from train.config import LogConfig, RunConfig
from train.measure import log, speed
from train.measure.log import MetricsLog
from train.measure.speed import Meter
from train.storage.folder import read_metrics

KINDS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v4": 275e12,
    "cpu": None,
}


TOKENS = 16 * 256  # of one step of a configuration left as it is


class Clock:
    """Stands still but when told."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


@pytest.mark.parametrize(("kind", "peak"), KINDS.items())
def test_utilisation_is_of_all_devices_of_their_kind(kind, peak, clock, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    meter = Meter(tokens_per_step=1000, flops_per_token=10**9)
    meter.step()
    clock.now += 0.5
    found = meter.read()
    assert found["flops_per_second"] == pytest.approx(2e12)
    assert found.get("mfu") == (None if peak is None else pytest.approx(2e12 / (4 * peak)))


def test_speed_between_readings_and_over_the_whole_run(clock):
    meter = Meter(tokens_per_step=100, flops_per_token=7)
    assert meter.average() is None
    for _ in range(3):
        meter.step()
    with meter.waiting():
        clock.now += 1.0
    with meter.waiting():
        clock.now += 0.5
    clock.now += 2.5
    assert meter.read() == pytest.approx({"tokens_per_second": 75.0, "data_wait": 0.375, "flops_per_second": 525.0})
    meter.step()
    clock.now += 50.0  # what passes before a restart counts nowhere
    meter.restart()
    meter.step()
    clock.now += 1.0
    assert meter.read() == pytest.approx({"tokens_per_second": 100.0, "data_wait": 0.0, "flops_per_second": 700.0})
    assert meter.average() == pytest.approx(80.0)


def test_lines_are_read_back_and_a_resumed_log_forgets_what_follows_its_start(tmp_path):
    config = RunConfig()
    with MetricsLog(tmp_path, config, start=0) as lines:
        for step in (1, 2, 3):
            lines.write(step, {"loss": 1.0 / step, "grad_norm": math.inf if step == 2 else 1.5})
            assert len(read_metrics(tmp_path / "metrics.jsonl")) == step  # written at once
    second = {"step": 2, "total_tokens": 2 * TOKENS, "loss": 0.5, "grad_norm": None}
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == second
    with MetricsLog(tmp_path, config, start=2) as lines:
        lines.write(3, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 9.0),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_half_a_line_at_the_end_is_dropped_and_damage_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]
    file.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl"):
        read_metrics(file)


class Recorded:
    """A sink that keeps what it is given."""

    def __init__(self, *_):
        self.calls = []

    def write(self, step, values):
        self.calls.append((step, values))

    def close(self):
        self.calls.append("closed")


def test_sinks_get_every_line_and_are_closed(tmp_path, monkeypatch):
    made = []
    for name in ("TensorBoard", "WeightsAndBiases"):
        monkeypatch.setattr(log, name, lambda *_: made.append(Recorded()) or made[-1])
    config = RunConfig(log=LogConfig(tensorboard=True, wandb="project"))
    with MetricsLog(tmp_path, config, start=0) as lines:
        lines.write(4, {"loss": 0.5})
    assert [sink.calls for sink in made] == [[(4, {"total_tokens": 4 * TOKENS, "loss": 0.5}), "closed"]] * 2
    with MetricsLog(tmp_path, config.replace(log=LogConfig()), start=4):
        assert len(made) == 2


@pytest.mark.parametrize(
    ("asked", "package"), [(LogConfig(tensorboard=True), "tensorboardX"), (LogConfig(wandb="p"), "wandb")]
)
def test_a_sink_without_its_package_is_refused(asked, package, monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed"):
        log.check_sinks(asked)
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: object())
    log.check_sinks(asked)
    log.check_sinks(LogConfig())


def test_a_mean_is_of_what_came_since_it_was_read():
    mean = log.Mean()
    assert math.isnan(mean.read(forget=False))
    for value in (2.0, math.nan, 4.0):
        mean.add(value)
    assert mean.read(forget=False) == 3.0
    assert log.Mean(mean.state).read(forget=True) == 3.0
    assert mean.read(forget=True) == 3.0
    mean.add(7.0)
    assert mean.read(forget=True) == 7.0
