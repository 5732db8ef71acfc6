"""What a summary counts, against counts by hand; the version."""

import tomllib
from pathlib import Path

import pytest

import mhc_jax
from mhc_jax.accounting import flops_per_token
from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.adapters import StreamAdaptersConfig


def test_gpt2_of_the_published_size():
    found = mhc_jax.summary(gpt2())
    assert found.parameters == 124_439_808
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert found.training_flops == 6 * weights + 12 * 12 * 1024 * 768
    assert found.training_flops == pytest.approx(854e6, rel=0.01)
    assert mhc_jax.summary(gpt2(), 512).training_flops == 6 * weights + 12 * 12 * 512 * 768
    assert found.parameter_bytes == 4 * found.parameters
    assert found.training_bytes == 16 * found.parameters
    assert found.cache_bytes == 12 * 2 * 1024 * 768 * 4


def test_adapters_count_once_for_every_stream_they_serve():
    config = mhc_ssm("adapters", width=16, layers=3, vocab_size=11, max_len=8, adapters=StreamAdaptersConfig(rank=5))
    mixer = 3 * (16 * 32 + 16 * 16)
    down, up = 3 * 5 * 16 * (4 + 1), 3 * 5 * 16 * (4 + 4)  # before the read all four streams, before the write one
    assert flops_per_token(config) == 6 * (mixer + down + up + 16 * 64 + 11 * 16)


def test_a_branch_counts_for_every_one_of_its_inputs():
    config = gpt2(layers=2, width=24, vocab_size=11, max_len=8)
    several = with_topology(config, "multi_branch")
    branch = flops_per_token(config) - 6 * 11 * 24
    assert flops_per_token(several) == several.residual.branches * branch + 6 * 11 * 24


@pytest.mark.parametrize("config", [gpt2("1558M"), with_topology(gpt2(), "dynamic_mhc"), mhc_ssm("adapters")])
def test_the_table_fits_a_terminal(config):
    text = str(mhc_jax.summary(config))
    assert max(map(len, text.splitlines())) <= 80
    for part in mhc_jax.summary(config).parts:
        assert part.name in text


def test_the_version_has_one_source():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["version"]["path"] == "mhc_jax/__init__.py"
    assert "version" in project["project"]["dynamic"]
    assert mhc_jax.__version__.count(".") == 2


def test_public_names_are_documented():
    for name in mhc_jax.__all__:
        assert name == "__version__" or getattr(mhc_jax, name).__doc__
