"""Whatever configurations, flags and files the command is given: it starts, or says in one line why not."""

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import configs
import train.__main__ as train_command
from mhc_jax import registry
from train.config import RunConfig
from train.loop import run as train_run
from train.terminal.flags import flags_of
from train.tests import fuzz
from train.tests.runs import tiny_run

FLAGS = dict(flags_of(configs.load("mhc_ssm_adapters")))


class Reached(SystemExit):
    """Training would begin now."""

    def __init__(self, *_):
        super().__init__(0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny configuration, registered, whose training ends where it would claim its folder."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = tiny_run(folder)
    registry.register("config", "tiny_for_fuzz")(lambda: config)
    with mock.patch.object(train_run, "_claim", _reached):
        yield config, folder
    del registry._REGISTRY["config"]["tiny_for_fuzz"]


def _reached(config):
    raise Reached


def read(text):
    RunConfig.from_json(text).validate()


def check_json(data):
    fuzz.works_or_says_why(read, data.draw(fuzz.altered_json(configs.load("mhc_ssm_adapters").to_dict())))


def check_flags(data, folder):
    flags = data.draw(st.lists(st.sampled_from(sorted(FLAGS)) | fuzz.TEXTS.map("--{}".format), min_size=1, max_size=2))
    values = fuzz.INTEGERS.map(repr) | fuzz.FLOATS.map(repr) | fuzz.TEXTS | st.sampled_from(["3", "0.5", "True"])
    with fuzz.unlimited_integers():
        argv = [word for flag in flags for word in (flag, data.draw(values))]
    fuzz.command(train_command.main, ["tiny_for_fuzz", *argv], folder)


def check_file(data, config, folder, suffix, content):
    file = folder / f"given{suffix}"
    file.write_bytes(data.draw(content))
    try:
        fuzz.command(train_command.main, ["--config", str(file), "--run-dir", str(folder / "run")], folder)
    finally:
        file.unlink()


@fuzz.FEW
@given(st.data())
def test_any_configuration_is_read_or_refused(data):
    check_json(data)


@pytest.mark.slow
@fuzz.FEW
@given(st.data())
def test_any_flags_are_taken_or_refused(tiny, data):
    check_flags(data, tiny[1])


@fuzz.FEW
@given(st.data())
def test_any_file_is_taken_or_refused(tiny, data):
    check_file(data, *tiny, ".json", fuzz.altered_json(tiny[0].to_dict()))


@pytest.mark.slow
@fuzz.MANY
@given(st.data())
def test_many_configurations(data):
    check_json(data)


@pytest.mark.slow
@fuzz.MANY
@given(st.data())
def test_many_flags(tiny, data):
    check_flags(data, tiny[1])


@pytest.mark.slow
@fuzz.MANY
@given(st.data())
def test_many_files(tiny, data):
    toml = f"name = 'tiny_for_fuzz'\n[optim]\nlr = {1e-3}\n[data]\nseq_len = 16\n".encode()
    check_file(data, *tiny, ".json", fuzz.altered_json(tiny[0].to_dict()))
    check_file(data, *tiny, ".toml", fuzz.damaged(toml))
