"""What stands in a run's folder before it starts, and how its configuration is read back."""

import json

import pytest

from mhc_jax.config import ConfigError
from train import compare
from train.benchmark.__main__ import parse
from train.loop.resolve import check_resumes, refuse_overwrite, resolve
from train.storage.restore import load_run
from train.tests.runs import tiny_run


@pytest.fixture
def begun(tmp_path):
    """A run of which nothing but its configuration is there."""
    config = resolve(tiny_run(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(config.to_json(), encoding="utf-8")
    return config


def test_what_was_stopped_before_its_first_step_may_start_otherwise(begun, tmp_path):
    other = begun.replace(optim=begun.optim.replace(lr=0.5))
    refuse_overwrite(other)
    check_resumes(other)
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r": --optim\.lr was 0\.03 and is now 0\.5"):
        check_resumes(other)


def test_a_folder_with_a_configuration_of_something_else_is_not_taken(begun, tmp_path):
    text = begun.model.to_json()
    (tmp_path / "run/config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run/config\.json: .*; choose another --run-dir"):
        refuse_overwrite(begun)
    assert (tmp_path / "run/config.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("read", [load_run, compare.read_config])
def test_a_damaged_configuration_is_named_with_its_file(begun, tmp_path, read):
    file = tmp_path / "run/config.json"
    wrong = begun.to_dict() | {"optim": begun.optim.to_dict() | {"lr": "high"}}
    for content, says in (
        (begun.to_json().encode("utf-16"), r"not UTF-8 \(byte 0\)"),
        (json.dumps(wrong).encode(), "optim: lr must be a number, got 'high'"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"run/config\.json: {says}$"):
            read(tmp_path / "run")


def test_float64_without_64_bit_mode_is_refused_before_anything_is_claimed(begun):
    execution = begun.model.execution.replace(policy="float64")
    with pytest.raises(ConfigError, match="set JAX_ENABLE_X64=1"):
        resolve(begun.replace(model=begun.model.replace(execution=execution)))


def test_a_benchmark_beyond_all_memory_is_refused():
    with pytest.raises(ConfigError, match=r"parameters take .* in training.*--model\.width"):
        parse(["quickstart", "--no-torch", "--model.width", "1048576"])
