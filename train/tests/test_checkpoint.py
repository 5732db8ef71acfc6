"""Checkpoints: what is kept, what is refused, and that no kill and no changed byte goes unnoticed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.functional import param_shapes
from mhc_jax.models import mhc_ssm
from mhc_jax.tests.own import slow_unless
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.storage import manifest
from train.storage.checkpoint import CheckpointError, Checkpoints
from train.storage.restore import load_run
from train.tests.checkpoint_writer import state_at

WRITER = Path(__file__).with_name("checkpoint_writer.py")
SHAPES = jax.eval_shape(lambda: state_at(0))


def save(checkpoints, step, metric=None, state=None):
    state = state_at(step) if state is None else state
    checkpoints.save(step, state, {"position": step}, {"config": {"lr": 0.1}}, metric=metric)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 10 and 20; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=2) as checkpoints:
        save(checkpoints, 10)
        save(checkpoints, 20)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def assert_is_step(found, step):
    state, data_state, _ = found
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    assert data_state == {"position": step}


def test_state_data_and_meta_come_back_bitwise(saved):
    state, data_state, meta = Checkpoints(saved, 2).restore(SHAPES)
    assert jax.tree.structure(state) == jax.tree.structure(state_at(20))
    assert all(x.dtype == y.dtype for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(20))))
    assert_is_step((state, data_state, meta), 20)
    assert meta == {"config": {"lr": 0.1}}
    assert_is_step(Checkpoints(saved, 2).restore(SHAPES, step=10), 10)


def test_the_saved_state_may_be_donated_at_once(tmp_path):
    """The next step overwrites the buffers while the thread still writes."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = jax.tree.map(jnp.array, state_at(5))
    with Checkpoints(tmp_path, 1) as checkpoints:
        save(checkpoints, 5, state=state)
        for _ in range(20):
            state = overwrite(state)
    assert_is_step(Checkpoints(tmp_path, 1).restore(SHAPES), 5)


def test_the_latest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        for step, metric in enumerate([3.0, 0.0, 1.0, None, float("nan")], start=1):
            save(checkpoints, step, metric)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (5, 2)
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # another process remembers which was best
        save(checkpoints, 6, 0.5)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 5, 6], 2)
        save(checkpoints, 7, -1.0)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best_step()) == ([6, 7], 7)


def test_a_run_that_goes_back_leaves_no_later_step(run):
    """The newest step is the truth, even if it comes after a rewind and there is room for the step before."""
    with Checkpoints(run, keep=2) as checkpoints:
        save(checkpoints, 15)
    assert Checkpoints(run, 2).steps() == [10, 15]
    assert_is_step(Checkpoints(run, 2).restore(SHAPES), 15)


def test_a_damaged_step_that_was_passed_over_is_gone_after_the_next_save(run):
    """It was the best; a run that goes on from the step before neither resumes it nor takes it for the best again."""
    with Checkpoints(run, keep=2) as checkpoints:
        save(checkpoints, 30, metric=0.5)
    damage(run / "checkpoints/30")
    with Checkpoints(run, keep=2) as checkpoints:
        assert_is_step(checkpoints.restore(SHAPES), 20)
        save(checkpoints, 25, metric=0.7)
    checkpoints = Checkpoints(run, 2)
    assert (checkpoints.steps(), checkpoints.best_step()) == ([20, 25], 25)
    assert_is_step(checkpoints.restore(SHAPES), 25)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_state_is_not_saved(run, poison):
    state = state_at(30)
    state.params["blocks"]["norm"] = state.params["blocks"]["norm"].at[1, 2].set(poison)
    with Checkpoints(run, 2) as checkpoints, pytest.raises(CheckpointError, match="NaN or infinite"):
        save(checkpoints, 30, state=state)
    assert Checkpoints(run, 2).steps() == [10, 20]


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_the_manifest_covers_every_file(saved):
    recorded = (saved / "checkpoints/20" / manifest.NAME).read_text().splitlines()
    present = {str(file.relative_to(saved / "checkpoints/20")) for file in files(saved / "checkpoints/20")}
    assert {line.split("  ")[1] for line in recorded} == present - {manifest.NAME}


def test_flips_and_truncations_of_any_file_are_detected(run):
    """Every file, at its first, middle and last byte, and one random bit of each; restored afterwards."""
    rng, step, count = np.random.default_rng(0), run / "checkpoints/20", 0
    for file in files(step):
        content = file.read_bytes()
        damages = [content + b"x"]
        for at in {0, len(content) // 2, len(content) - 1, int(rng.integers(max(1, len(content))))} if content else ():
            flipped = bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            damages += [bytes(flipped), content[:at]]
        for damage in damages:
            file.write_bytes(damage)
            assert manifest.verify(step)[0] == manifest.Status.BAD, (file, damage)
            count += 1
        file.write_bytes(content)
        file.rename(file.with_name("elsewhere"))
        assert manifest.verify(step)[0] != manifest.Status.GOOD
        file.with_name("elsewhere").rename(file)
        assert manifest.verify(step)[0] == manifest.Status.GOOD
    assert count > 50


def damage(step_folder):
    """Flips one bit of the largest file: an array."""
    file = max(files(step_folder), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_with_one_warning_line(run, capsys):
    damage(run / "checkpoints/20")
    assert_is_step(Checkpoints(run, 2).restore(SHAPES), 10)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert warning.count("\n") == 1
    assert str(run / "checkpoints/20") in warning
    assert f"using {run / 'checkpoints/10'}" in warning


def test_training_goes_on_after_a_fallback(run):
    """The damaged step stands in the way of the next save of the same step, and counts as none of the last."""
    damage(run / "checkpoints/20")
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.restore(SHAPES)
        save(checkpoints, 20)
    assert_is_step(Checkpoints(run, 1).restore(SHAPES), 20)


def test_when_none_is_good_one_error_names_all(run):
    damage(run / "checkpoints/10")
    (run / "checkpoints/20/state/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        Checkpoints(run, 2).restore(SHAPES)
    assert "no good checkpoint" in str(error.value)
    assert "checkpoints/10 is damaged" in str(error.value)
    assert "checkpoints/20 is damaged" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_run_has_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no good checkpoint in"):
        Checkpoints(tmp_path, 2).restore(SHAPES)
    assert not (tmp_path / "checkpoints").exists()


def test_an_uncertified_step_is_used_only_if_it_restores(run, capsys):
    (run / "checkpoints/20" / manifest.NAME).unlink()
    assert_is_step(Checkpoints(run, 2).restore(SHAPES), 20)
    warning = capsys.readouterr().err
    assert f"has no {manifest.NAME}" in warning
    assert warning.count("\n") == 1
    (run / "checkpoints/20" / manifest.NAME).unlink()
    for file in (run / "checkpoints/20/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert_is_step(Checkpoints(run, 2).restore(SHAPES), 10)
    assert "cannot be read" in capsys.readouterr().err


def test_whatever_was_left_uncertified_is_certified_by_the_run_that_resumes(tmp_path):
    """The best one too, however old; what cannot be read stays without a certificate."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, metric in ((10, 1.0), (20, 2.0), (30, 3.0)):
            save(checkpoints, step, metric)
    for step in (10, 20, 30):
        (tmp_path / f"checkpoints/{step}" / manifest.NAME).unlink()
    for file in files(tmp_path / "checkpoints/20/state"):
        file.write_bytes(b"")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert_is_step(checkpoints.restore(SHAPES), 30)
    found = [manifest.verify(tmp_path / f"checkpoints/{step}")[0] for step in (10, 20, 30)]
    assert found == [manifest.Status.GOOD, manifest.Status.UNVERIFIED, manifest.Status.GOOD]


def test_only_a_checkpoint_counts_as_one(run, capsys):
    """Neither folders, files nor links with a number for a name are read, deleted or followed."""
    folder = run / "checkpoints"
    (folder / "2024").mkdir()
    (folder / "2024/mine.txt").write_text("mine")
    (folder / "007").mkdir()
    (folder / "99").write_text("a file")
    (folder / "98").symlink_to(folder / "20")
    (folder / "97").symlink_to(folder / "nowhere")
    mine = {"2024", "007", "99", "98", "97"}
    with Checkpoints(run, keep=1) as checkpoints:
        assert checkpoints.latest_step() == 20
        assert_is_step(checkpoints.restore(SHAPES), 20)
        save(checkpoints, 30)
        save(checkpoints, 40)
    assert {path.name for path in folder.iterdir()} == {"40", *mine}
    assert (folder / "2024/mine.txt").read_text() == "mine"
    assert (folder / "98").is_symlink()
    (warning,) = capsys.readouterr().err.splitlines()
    assert all(name in warning for name in mine)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_in_the_way_of_a_checkpoint_is_named_and_left(run, kind):
    mine = run / "checkpoints/30"
    if kind == "folder":
        (mine / "notes").mkdir(parents=True)
    elif kind == "file":
        mine.write_text("mine")
    else:
        mine.symlink_to(run / "elsewhere")
    with Checkpoints(run, 2) as checkpoints, pytest.raises(CheckpointError, match="checkpoints/30 is not a checkpoint"):
        save(checkpoints, 30)
    assert os.path.lexists(mine)
    assert Checkpoints(run, 2).steps() == [10, 20]


def test_an_asked_for_step_is_that_step_or_an_error(run):
    damage(run / "checkpoints/20")
    with pytest.raises(CheckpointError, match="checkpoints/20 is damaged"):
        Checkpoints(run, 2).restore(SHAPES, step=20)
    with pytest.raises(CheckpointError, match="checkpoints/11 does not exist"):
        Checkpoints(run, 2).restore(SHAPES, step=11)


def test_a_misfit_lists_every_difference_in_one_line(saved):
    other = jax.eval_shape(lambda: state_at(0))
    other.params["embed"]["tokens"] = jax.ShapeDtypeStruct((65, 32), jnp.float32)
    other.params["blocks"] = {"scale": jax.ShapeDtypeStruct((3, 32), jnp.float32)}
    with pytest.raises(CheckpointError) as error:
        Checkpoints(saved, 2).restore(other)
    fault = str(error.value)
    assert "does not fit this configuration" in fault
    assert "params.embed.tokens is float32[64,32] in the checkpoint, float32[65,32] here" in fault
    assert "params.blocks.norm is only in the checkpoint" in fault
    assert "params.blocks.scale is missing from the checkpoint" in fault
    assert "\n" not in fault


def test_parameters_alone(run, capsys):
    with Checkpoints(run, 1) as checkpoints:
        save(checkpoints, 30, metric=1.0)
        save(checkpoints, 40, metric=2.0)
    checkpoints = Checkpoints(run, 1)
    for which, step in (("best", 30), ("last", 40)):
        found = checkpoints.restore_params(SHAPES.params, which)
        jax.tree.map(np.testing.assert_array_equal, found, state_at(step).params)
    damage(run / "checkpoints/30")
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_params(SHAPES.params, "best"), state_at(40).params)
    assert "checkpoints/30 is damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("delay", slow_unless({0.03}, [0.0, 0.01, 0.03, 0.08, 0.15]))
def test_kill_during_a_save_leaves_the_steps_before(tmp_path, delay):
    """SIGKILL ``delay`` seconds after the third save began: whatever is committed is whole."""
    command = [sys.executable, str(WRITER), str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, text=True
    ) as writer:
        sealed = 0
        for line in writer.stdout:
            if line.startswith("sealed"):
                sealed = int(line.split()[1])
            elif line.strip() == "3":
                break
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            sealed = int(line.split()[1]) if line.startswith("sealed") else sealed
    checkpoints = Checkpoints(tmp_path, 2)
    assert sealed >= 2
    assert checkpoints.latest_step() >= sealed
    state, data_state, _ = checkpoints.restore(SHAPES)
    assert_is_step((state, data_state, {}), int(state.step))
    assert int(state.step) >= sealed
    with checkpoints:  # what the killed writer left half done is cleared by the next save
        save(checkpoints, int(state.step) + 1)
    assert not list(checkpoints.directory.glob("*tmp*"))
    assert_is_step(Checkpoints(tmp_path, 2).restore(SHAPES), int(state.step) + 1)


def test_a_run_directory_is_loaded_with_its_parameters(tmp_path):
    config = RunConfig(
        model=mhc_ssm(vocab_size=32, max_len=8, width=8, layers=1), data=CorpusConfig(seq_len=8, tokenizer="bytes")
    )
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), param_shapes(config.model))
    (tmp_path / "config.json").write_text(config.to_json())
    state = state_at(1)
    state.params.clear()
    state.params.update(params)
    with Checkpoints(tmp_path, 1) as checkpoints:
        save(checkpoints, 1, state=state)
    found, loaded = load_run(tmp_path, "last")
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "does not exist"),
        ({}, "neither a run's config.json nor a model.safetensors"),
        ({"config.json": "{"}, "config.json: not valid JSON"),
        (
            {"config.json": json.dumps({"trian": {}})},
            "config.json: unknown field 'trian'; did you mean 'train'",
        ),
        ({"config.json": RunConfig(model=mhc_ssm()).to_json()}, "no good checkpoint in"),
    ],
)
def test_what_is_no_run_is_one_clear_error(tmp_path, content, fault):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        load_run(folder)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_damaged_is_named_and_nothing_else(run):
    checkpoint = run / "checkpoints/20"
    files = [file for file in checkpoint.rglob("*") if file.is_file() and not file.name.startswith(manifest.NAME)]
    flipped = max(files, key=lambda file: file.stat().st_size)
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    status, fault = manifest.verify(checkpoint)
    named = {file for file in files if str(file.relative_to(checkpoint)) in fault}
    assert status is manifest.Status.BAD
    assert named == {flipped}
