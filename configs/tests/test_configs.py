"""Every configuration resolves to what its golden file says, and is what its name promises."""

import json
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import __main__ as command
from configs.__main__ import GOLDEN
from configs.mhc_ssm import matched_width, parameter_count
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm as models
from mhc_jax.tests.own import own
from train.config import RunConfig
from train.update.optimizer import schedule


@pytest.mark.parametrize("name", own("config"))
def test_golden_file_is_current(name):
    config = configs.load(name)
    golden = (GOLDEN / f"{name}.json").read_text()
    assert config.to_json() == golden, "if the change is meant, run: python -m configs --write"
    assert RunConfig.from_json(golden) == config
    assert config.name == name


def test_a_run_of_older_days_is_read():
    """Its fields have other names by now, and some did not exist."""
    text = (Path(__file__).parents[2] / "train" / "tests" / "run_of_2026_11.json").read_text()
    config = configs.load("mhc_ssm_adapters")
    scanned = config.model.execution.replace(layers="scan")
    model = config.model.replace(stream_diversity=0.25, execution=scanned)
    assert RunConfig.from_json(text) == config.replace(model=model)
    record = json.loads(text)
    record["train"] |= {"loss_chunk": 48, "sample_tokens": 9}
    moved = RunConfig.from_dict(record)
    assert (moved.objective.chunk, moved.data.sample_tokens) == (48, 9)


def test_only_write_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "GOLDEN", tmp_path / "golden")
    monkeypatch.setattr(configs, "names", lambda: ["quickstart"])
    with pytest.raises(SystemExit, match="^0$"):
        command.main(["--help"])
    assert "--write" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^1$"):
        command.main([])
    assert capsys.readouterr().out.startswith("0 of 1 files are current; not quickstart\n")
    assert not (tmp_path / "golden").exists()
    command.main(["--write"])
    assert (tmp_path / "golden" / "quickstart.json").read_text() == (GOLDEN / "quickstart.json").read_text()
    capsys.readouterr()
    command.main([])
    assert capsys.readouterr().out == "1 of 1 files are current\n"


def test_golden_files_have_no_orphans():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == own("config")


@pytest.mark.parametrize("name", configs.names())
def test_is_valid_once_the_data_is_known(name):
    config = configs.load(name)
    config.validate()
    if config.model.open_sizes:
        with pytest.raises(ConfigError, match="must be given; only in a run can it follow the data"):
            config.model.validate()
    sized = config.sized(50_304)
    sized.validate()
    assert not sized.model.open_sizes
    assert (config.model.vocab_size or 50_304, config.model.max_len or config.data.seq_len) == (
        sized.model.vocab_size,
        sized.model.max_len,
    )


def test_the_default_is_valid_and_its_faults_are_those_of_its_fields():
    RunConfig().validate()
    with pytest.raises(ConfigError, match="width must be at least 1"):
        RunConfig(model=models(vocab_size=None, max_len=None, width=0)).validate()
    with pytest.raises(ConfigError, match="max_len 8 is shorter than data.seq_len 256"):
        RunConfig(model=models(vocab_size=None, max_len=8)).validate()
    with pytest.raises(ConfigError, match="vocab_size must be at least 1, got -1"):
        RunConfig(model=models(vocab_size=-1, max_len=None)).validate()


@pytest.mark.parametrize(
    ("variant", "count"), [("baseline", 32_203_776), ("mhc", 33_254_596), ("adapters", 33_791_684)]
)
def test_parameter_counts_are_the_published_ones(variant, count):
    assert parameter_count(models(variant)) == count


def test_matched_control_is_the_nearest_width():
    target = parameter_count(models("mhc"))
    width = matched_width(models("baseline"), target)
    error = {w: abs(parameter_count(models("baseline", width=w)) - target) for w in (width - 1, width, width + 1)}
    assert min(error, key=error.get) == width


def test_original_runs_decay_everything_at_a_constant_rate():
    for name in ("mhc_ssm_original", "mhc_ssm_baseline_original", "mhc_ssm_adapters_original"):
        config = configs.load(name)
        assert (config.optim.decay, config.optim.schedule, config.optim.warmup_steps) == ("all", "constant", 0)
        assert (config.train.epochs, config.data.source) == (10, "wikitext-2-raw-v1")
    assert config.model.adapters.dropout == 0.1


FORMS = ("mhc_ssm", "mhc_ssm_baseline", "mhc_ssm_adapters", "nanogpt_mhc", "nanogpt_hc_48l", "shakespeare_char_hc")


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_of_a_system_train_on_the_same_tokens(name):
    assert configs.load(name).data == configs.load(f"{name}_original").data


def test_controls_train_on_the_tokens_of_what_they_control():
    for name in ("mhc_ssm_dense", "mhc_ssm_matched", "mhc_ssm_baseline", "mhc_ssm_adapters"):
        assert configs.load(name).data == configs.load("mhc_ssm").data


# Less what the published models create and never use: 2,042 numbers a site of mHC.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nanogpt", 20_758_176),
        ("nanogpt_vres", 20_758_188),
        ("nanogpt_hc_original", 20_782_680),
        ("nanogpt_mhc_original", 20_758_464),
        ("nanogpt_48l", 20_673_750),
        ("nanogpt_hc_48l_original", 20_777_046),
        ("nanogpt_vres_48l", 20_673_846),
    ],
)
def test_parameter_counts_of_nanogpt_are_the_published_ones(name, count):
    assert parameter_count(configs.load(name).model) == count


def test_published_settings_of_nanogpt():
    for name, tokens in (("nanogpt_mhc_original", 131_072), ("nanogpt_mhc_48l_original", 32_768)):
        config = configs.load(name)
        assert config.data.batch_size * config.data.seq_len == tokens
        assert (config.data.windows, config.train.steps, config.optim.lr) == ("random", 5001, 6e-4)
        assert (config.optim.decay, config.optim.beta2, config.optim.warmup_steps) == ("kernels", 0.95, 200)
        assert config.model.norm_streams
        rate = schedule(config.optim, config.train.steps)
        published = [6e-4 / 201, 6e-4 * 200 / 201, 6e-4, 3.3e-4, 6e-5]
        np.testing.assert_allclose([rate(step) for step in (0, 199, 200, 2600, 5000)], published, rtol=1e-5)
    config = configs.load("shakespeare_char_hc_original").replace()
    assert (config.model.dropout, config.model.mixer.dropout, config.optim.decay_steps) == (0.2, 0.2, 2000)
    assert configs.load("nanogpt_vres").optim.value_lr == 1e-2


def test_a_configuration_takes_another_topology():
    config = configs.load("gpt2@mhc_lite")
    assert config.name == "gpt2@mhc_lite"
    assert config.model.residual.projection.kind == "permutations"
    assert config.data == configs.load("gpt2").data
    with pytest.raises(ConfigError, match=r"did you mean 'mhc_lite'\?"):
        configs.load("gpt2@mhc_light")


def test_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'mhc_ssm_baseline'\?"):
        configs.load("mhc_ssm_baselin")
