"""The choice of folders that are checkpoints, and of those that are kept."""

from pathlib import Path

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from train.storage import manifest

# What only a save puts into a folder.
MARKS = (manifest.NAME, "_CHECKPOINT_METADATA")


class LatestAndBest(PreservationPolicy):
    """Keeps the ``keep`` latest steps and the one of lowest metric."""

    def __init__(self, keep: int, metrics: dict[int, float | None]):
        self.keep, self.metrics = keep, metrics

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        measured = [step for step in steps if self.metrics.get(step) is not None]
        kept = {*steps[-self.keep :], *sorted(measured, key=lambda step: (self.metrics[step], -step))[:1]}
        return [step in kept for step in steps]


class Steps(ocp.path.step.NameFormat):
    """Shows Orbax only checkpoints, because it deletes everything that looks like an old one."""

    def build_name(self, step):
        return str(step)

    def find_all(self, base_path):
        paths = Path(base_path).iterdir()
        return (_orbax_step(path) for path in paths if is_checkpoint(path))

    def find_step(self, base_path, step):
        path = Path(base_path) / str(step)
        if not is_checkpoint(path):
            raise ValueError(f"{path} is not a checkpoint")
        return _orbax_step(path)


def _orbax_step(path: Path) -> ocp.path.step.Metadata:
    return ocp.path.step.Metadata(step=int(path.name), path=epath.Path(path))


def is_checkpoint(path: Path) -> bool:
    """A folder that a save made, damaged or not."""
    made = path.is_dir() and not path.is_symlink() and any((path / mark).exists() for mark in MARKS)
    return made and path.name.isdecimal() and path.name == str(int(path.name))


def is_foreign(path: Path) -> bool:
    return path.name.isdecimal() and not is_checkpoint(path)
