"""``python -m parity_tests`` on checkpoints, good and faulty."""

import importlib.util
import json

import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from parity_tests.__main__ import main
from parity_tests.faults import mutations
from parity_tests.mutations import seeded
from parity_tests.systems import SYSTEMS, Weights
from torch_ref import config as torch_config


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    config = SYSTEMS["mhc 4, original, rms"].config
    folder = tmp_path_factory.mktemp("exported") / "model"
    mhc_jax.save(folder, config, interop.from_torch(config, Weights(config)))
    return folder


@pytest.mark.slow
def test_a_good_checkpoint_is_certified(exported, tmp_path, capsys):
    main(["--checkpoint", str(exported), "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    assert "tensors agree" in out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    taps = {row["tap"] for row in rows}
    assert {"forward logits", "forward loss", "backward embed", "gradient embed.tokens"} <= taps
    assert {"forward blocks.1.mixer.state", "backward blocks.1.mixer.state", "forward logits by token"} <= taps


@pytest.mark.slow
def test_a_fault_is_named_and_gives_exit_status_1(exported, capsys):
    fault = next(mutation for mutation in mutations() if mutation.fault == "gate SiLU instead of sigmoid")
    with seeded(fault), pytest.raises(SystemExit) as exit:
        main(["--checkpoint", str(exported)])
    assert exit.value.code == 1
    out = capsys.readouterr().out
    assert "first divergence: checkpoint: forward and backward: forward blocks.0.mixer.y" in out
    assert "gradient final_norm.weight" in out  # all rows are printed first


def test_a_checkpoint_without_a_twin_is_one_line(exported, monkeypatch):
    monkeypatch.delitem(torch_config._KINDS["norm"], "rms")
    with pytest.raises(ConfigError, match="torch_ref: unknown norm kind 'rms'.*needs its PyTorch twin imported, too"):
        main(["--checkpoint", str(exported)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpont", "x"], "--checkpoint"),
        (["--json", "."], "--json . is a folder"),
        (["--import", "no_such_module"], "no_such_module"),
        (["--checkpoint", "x", "--golden"], "exclude"),
    ],
)
def test_bad_input_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        main(argv)


def test_without_pytorch_only_golden_numbers_are_offered(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(ConfigError, match="the comparison needs PyTorch.*--golden does not"):
        main(["--checkpoint", "run"])
