"""Configuration records: JSON there and back, and one clear line for each fault."""

import contextlib
import dataclasses
import json
import math
import re
from typing import ClassVar

import jax
import pytest

import mhc_jax
from mhc_jax import ConfigError, LMConfig, registry
from mhc_jax.accounting import summary
from mhc_jax.config import Config, FieldError
from mhc_jax.functional import param_shapes
from mhc_jax.models import gpt2, mhc_ssm, nanogpt, with_topology
from mhc_jax.nn.mixers import AttentionConfig, DiagonalSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.precision import policy


@pytest.mark.parametrize("variant", ["baseline", "mhc", "adapters"])
@pytest.mark.parametrize("form", ["default", "original"])
def test_json_there_and_back(variant, form):
    config = mhc_ssm(variant, form)
    config.validate()
    assert LMConfig.from_json(config.to_json()) == config
    assert hash(LMConfig.from_json(config.to_json())) == hash(config)


def changed(path, value):
    data = mhc_ssm("adapters").to_dict()
    *parents, last = path.split(".")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "LMConfig: not valid JSON"),
        ("[]", "LMConfig: expected a JSON object"),
        (changed("widht", 3), "unknown field 'widht'; did you mean 'width'"),
        (changed("width", "wide"), "LMConfig: width must be a whole number, got 'wide'"),
        (changed("width", True), "LMConfig: width must be a whole number, got True"),
        (changed("norm", "batch"), "NormConfig: unknown norm 'batch'; known: ln, rms"),
        (changed("kind", "llm"), "unknown model 'llm'; did you mean 'lm'"),
        (changed("residual.kind", "static_mch"), "unknown residual 'static_mch'; did you mean 'static_mhc'"),
        (changed("residual", {"streams": 2}), '"kind" is missing; known: .*plain'),
        (changed("mixer.taps", 3), "DiagonalSSMConfig: unknown field 'taps'"),
        (changed("mixer.kind", []), r'MixerConfig: "kind" must be a name, got \[\]'),
        (changed("mixer.conv_kernel", "3"), "conv_kernel must be a whole number, got '3'"),
        (changed("mixer.init", ["original"]), "init must be one of 'time_scales', 'original', got"),
        (changed("adapters.dropout", "0.1"), "StreamAdaptersConfig: dropout must be a number, got '0.1'"),
        (changed("dropout", True), "LMConfig: dropout must be a number, got True"),
        (changed("dropout", 10**400), "LMConfig: dropout must be finite, got 1000"),
        (changed("dropout", 1e39), "LMConfig: dropout must fit float32, whose largest number is 3.4e38, got 1e\\+39"),
        (changed("width", 10**3000), "LMConfig: width must fit 64 bits, got 1000"),
        (changed("width" * 5000, 1), r"unknown field 'widthwidth.*\.\.\."),
        (b"\xff{}", r"LMConfig: not UTF-8 \(byte 0\)"),
        ("[" * 100_000, r"LMConfig: not valid JSON \(nested too deeply\)"),
        ('{"width": ' + "9" * 5000 + "}", r"LMConfig: not valid JSON \(Exceeds the limit"),
    ],
)
def test_faults_have_one_clear_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LMConfig.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("older", "norm"),
    [
        ({"norm": "rms", "norm_bias": True, "norm_eps": None}, RMSNormConfig()),
        ({"norm": "rms", "norm_bias": False, "norm_eps": 0.5}, RMSNormConfig(eps=0.5)),
        ({"norm": "ln"}, LayerNormConfig()),
        ({"norm": "ln", "norm_bias": False, "norm_eps": 0.5}, LayerNormConfig(eps=0.5, bias=False)),
        ({"norm_eps": 0.5}, RMSNormConfig(eps=0.5)),
        ({"norm": {"kind": "ln", "eps": 0.25, "bias": True}, "norm_bias": False}, LayerNormConfig(0.25, False)),
    ],
)
def test_norms_of_older_records_are_read(older, norm):
    record = {name: value for name, value in mhc_ssm().to_dict().items() if name != "norm"}
    assert LMConfig.from_dict(record | older) == mhc_ssm(norm=norm)


def test_sizes_that_were_open_as_0_are_none():
    record = mhc_ssm().to_dict() | {"vocab_size": 0, "max_len": 0}
    config = LMConfig.from_dict(record)
    assert config == mhc_ssm(vocab_size=None, max_len=None)
    assert config.open_sizes == ("vocab_size", "max_len")
    assert LMConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("door", [lambda config: mhc_jax.init(config, jax.random.key(0)), param_shapes, summary])
@pytest.mark.parametrize("size", ["vocab_size", "max_len"])
def test_a_model_alone_needs_its_sizes(door, size):
    with pytest.raises(ConfigError, match=f"lm: {size} must be given; only in a run can it follow the data"):
        door(mhc_ssm(**{size: None}))


def test_normalised_heads_of_older_records_are_read():
    def read(**older):
        return LMConfig.from_dict(gpt2().to_dict() | {"mixer": {"kind": "attention"} | older}).mixer

    assert read(qk_norm=False, qk_norm_eps=1e-6) == AttentionConfig()
    assert read(qk_norm=True, qk_norm_eps=0.5) == AttentionConfig(qk_norm=RMSNormConfig(eps=0.5))
    assert read(qk_norm=True) == AttentionConfig(qk_norm=RMSNormConfig())


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        (mhc_ssm(width="3"), (), "lm: width must be a whole number, got '3'"),
        (mhc_ssm(dropout=math.nan), (), "lm: dropout must be finite, got nan"),
        (mhc_ssm(residual="plain"), (), "lm: residual must be a ResidualConfig, got 'plain'"),
        (mhc_ssm(mixer=DiagonalSSMConfig(init="orignal")), ("mixer",), "init must be one of 'time_scales', 'original'"),
        (mhc_ssm(mixer=AttentionConfig(heads=5)), ("mixer",), "heads 5 must divide the width 512"),
        (mhc_ssm(residual=StaticMHCConfig(streams=0)), ("residual",), "static_mhc: streams must be at least 1"),
    ],
)
def test_a_record_made_in_python_is_checked_as_one_from_json(config, path, message):
    with pytest.raises(FieldError, match=message) as caught:
        config.validate()
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mhc_ssm("adapter"), "unknown variant of mhc_ssm 'adapter'; did you mean 'adapters'?"),
        (lambda: mhc_ssm("plain"), "unknown variant of mhc_ssm 'plain'; known: adapters, baseline, mhc"),
        (lambda: mhc_ssm("baseline", "orig"), "unknown form of mhc_ssm 'orig'"),
        (lambda: mhc_ssm(["mhc"]), "unknown variant of mhc_ssm"),
        (lambda: nanogpt("mhcc"), "unknown topology of nanogpt 'mhcc'; did you mean 'mhc'?"),
        (lambda: nanogpt("hc", "orignal"), "unknown form of nanogpt 'orignal'; did you mean 'original'?"),
        (lambda: nanogpt(value_residual="fre"), "unknown value_residual 'fre'; did you mean 'free'?"),
        (lambda: gpt2("125M"), "unknown size of gpt2 '125M'; did you mean '124M'?"),
        (lambda: with_topology(mhc_ssm(), "mhc_light"), "unknown topology 'mhc_light'; did you mean 'mhc_lite'?"),
        (lambda: with_topology(mhc_ssm(), "static_mhc"), "'static_mhc' is a residual, which a topology must name"),
        (lambda: policy("float23"), "unknown policy 'float23'; did you mean 'float32'?"),
    ],
)
def test_names_are_checked_and_met_with_the_nearest(build, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build()


def test_long_lists_of_names_are_cut():
    names = [f"name{i}" for i in range(500)]
    assert registry.listed(names) == f"{', '.join(names[:12])} and 488 more"
    assert registry.listed(names[:3]) == "name0, name1, name2"


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @registry.register("mixer", "taken")
    class First:
        pass

    assert registry.get("mixer", "taken") is First
    assert First.kind == "taken"
    with pytest.raises(ValueError, match="already registered"):

        @registry.register("mixer", "taken")
        class Second:
            pass


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="unknown axis 'mixers'; did you mean 'mixer'"):
        registry.register("mixers", "taken")


def test_fields_that_no_dataclass_makes_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    class Bare(Config):
        axis: ClassVar[str] = "mixer"
        alpha: float = 0.5

    fault = r"Bare is no dataclass, so alpha would be ignored; put @dataclasses.dataclass\(frozen=True\) between"
    with pytest.raises(ValueError, match=fault):
        registry.register("mixer", "bare")(Bare)
    assert registry.names("mixer") == []

    class WithoutFields(Named):
        axis: ClassVar[str] = "mixer"

    registry.register("mixer", "bare")(dataclasses.dataclass(frozen=True)(Bare))
    registry.register("mixer", "inherits")(WithoutFields)


@dataclasses.dataclass(frozen=True)
class Named(Config):
    name: str = ""


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "nul\0"])
def test_texts_that_can_name_no_file_are_refused(text):
    Named("bytes of a name: \udcff").validate()  # as Python writes those that are not UTF-8
    with pytest.raises(ConfigError, match="name must be UTF-8 text without NUL"):
        Named(text).validate()


@dataclasses.dataclass(frozen=True)
class Whole(Config):
    number: int = 0


@pytest.mark.parametrize(
    ("number", "fits"), [(-(2**63), True), (2**63 - 1, True), (-(2**63) - 1, False), (2**63, False)]
)
def test_whole_numbers_fit_64_bits(number, fits):
    with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="number must fit 64 bits"):
        Whole(number).validate()
