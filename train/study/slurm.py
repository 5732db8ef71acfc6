"""The runs of a study as an array job of SLURM: one script, whose index picks a run."""

import dataclasses
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mhc_jax.config import Config, ConfigError, within
from train.storage.folder import DIVERGED_FILE
from train.study.plan import LOGS, Job, Plan

SCRIPT_FILE = "study.sbatch"
# The flag of sbatch for each field of a profile.
FLAGS = {"account": "account", "partition": "partition", "time": "time", "cpus": "cpus-per-task", "mem": "mem"}


@dataclasses.dataclass(frozen=True)
class Slurm(Config):
    """What each run asks of the cluster; what is empty or 0 is left to its defaults.

    Attributes:
        profile: TOML file with values of the other fields; a flag that is given counts more.
        account: who pays.
        partition: which nodes.
        time: longest time of a run, as 12:00:00.
        gpus: of each run, on one node.
        cpus: of each run.
        mem: memory of each run, as 64G.
        at_once: largest number of runs at a time; 0 for no limit.
        env: line of shell before the run, such as ``source .venv/bin/activate``; its ``python`` then trains.
    """

    profile: str = ""
    account: str = ""
    partition: str = ""
    time: str = ""
    gpus: int = 0
    cpus: int = 0
    mem: str = ""
    at_once: int = 0
    env: str = ""

    def validate(self):
        super().validate()
        self.require_counts(0, "gpus", "cpus", "at_once")
        for field in dataclasses.fields(self):
            self.require("\n" not in str(getattr(self, field.name)), f"{field.name} must be a single line")

    def settled(self) -> "Slurm":
        """The fields with those of the profile where they are not given.

        Raises:
            ConfigError: a profile that cannot be read, or a field that is wrong.
        """
        with within("slurm"):
            settled = Slurm.from_dict(_profile(self.profile) | self._given())
            settled.validate()
        return settled

    def _given(self) -> dict[str, Any]:
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


def _profile(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"--slurm.profile {path}: {error}") from None


def script(plan: Plan, jobs: Sequence[Job], slurm: Slurm) -> str:
    """The batch script of these runs. Everything is in it, because other scripts may be written before it starts."""
    limit = f"%{slurm.at_once}" if slurm.at_once else ""
    options = {
        "job-name": f"study-{plan.out.name}",
        "array": f"0-{len(jobs) - 1}{limit}",
        "output": f"{plan.out.absolute() / LOGS}/%A-%a.log",
        "open-mode": "append",
        **{option: getattr(slurm, field) for field, option in FLAGS.items()},
        "gres": f"gpu:{slurm.gpus}" if slurm.gpus else "",
    }
    python = "python" if slurm.env else sys.executable
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}={shlex.quote(value)}" for option, value in options.items() if value),
            "",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            *filter(None, [slurm.env]),
            'case "$SLURM_ARRAY_TASK_ID" in',
            *(_case(index, python, plan, job) for index, job in enumerate(jobs)),
            "esac",
            "status=$?",
            f'[ "$status" = 3 ] && touch "$folder/{DIVERGED_FILE}"  # its loss was no longer finite',
            'exit "$status"',
            "",
        ]
    )


def _case(index: int, python: str, plan: Plan, job: Job) -> str:
    folder = shlex.quote(str(job.folder(plan.out)))
    return f"  {index}) folder={folder}; {shlex.join([python, *plan.command(job)])} ;;"


def write(plan: Plan, jobs: Sequence[Job], slurm: Slurm) -> Path:
    """Writes the script into the folder of the study."""
    (plan.out / LOGS).mkdir(parents=True, exist_ok=True)
    file = plan.out / SCRIPT_FILE
    file.write_text(script(plan, jobs, slurm), encoding="utf-8")
    return file


def check() -> None:
    """Raises ConfigError where nothing can be submitted."""
    if not shutil.which("sbatch"):
        raise ConfigError("sbatch is not on this machine; with --dry-run the script is only written")


def submit(file: Path) -> str:
    """What ``sbatch`` says.

    Raises:
        ConfigError: it refuses.
    """
    done = subprocess.run(["sbatch", str(file)], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ConfigError(f"sbatch {file}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout.strip()
