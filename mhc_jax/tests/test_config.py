"""Configuration records: JSON there and back, and one clear line for each fault."""

import json

import pytest

from mhc_jax import ConfigError, LMConfig, registry
from mhc_jax.models import mhc_ssm


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
        (changed("width", "wide"), "LMConfig.width: expected int, got 'wide'"),
        (changed("width", True), "LMConfig.width: expected int, got True"),
        (changed("norm", "batch"), "LMConfig.norm: 'batch' is not one of 'rms', 'ln'"),
        (changed("kind", "llm"), "unknown model 'llm'; did you mean 'lm'"),
        (changed("residual.kind", "static_mch"), "unknown residual 'static_mch'; did you mean 'static_mhc'"),
        (changed("residual", {"streams": 2}), '"kind" is missing; known: .*plain'),
        (changed("mixer.taps", 3), "DiagonalSSMConfig: unknown field 'taps'"),
    ],
)
def test_faults_have_one_clear_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LMConfig.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_once():
    @registry.register("test axis", "taken")
    class First:
        pass

    assert registry.get("test axis", "taken") is First
    assert First.kind == "taken"
    with pytest.raises(ValueError, match="already registered"):

        @registry.register("test axis", "taken")
        class Second:
            pass
