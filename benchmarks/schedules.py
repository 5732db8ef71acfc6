"""Schedules of Pallas kernels by the compiler of TPUs, which estimates no cycles of them."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

LABEL = "final_bundles"
# A bundle of instructions: its address, and whether the body of a loop begins with it. A loop goes on until a predicate
# holds, whose test states the number of trips, and ends with a branch by that predicate.
BUNDLE = re.compile(r" *(?:0x[0-9a-f]+|\d+) +(\w\w)? *:")
EXIT = re.compile(r"%(\w+) = scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/")


@contextlib.contextmanager
def dumped() -> Iterator[Path]:
    """A folder that the compiler writes its schedules to; it has to be loaded inside, and caches are off."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={LABEL}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {options}"
        jax.config.update("jax_enable_compilation_cache", False)
        yield Path(folder)


def cycles_of_kernels(program: str, folder: Path) -> int:
    """Cycles of all Pallas kernels of a compiled program, each run once, if nothing waits for memory."""
    found = 0
    for instruction in re.findall(r"%(\S+) = \S+.* custom-call\(.*tpu_custom_call", program):
        [file] = folder.glob(f"*-{instruction}-[0-9]*-{LABEL}.txt")
        found += cycles(file.read_text())
    return found


def cycles(schedule: str) -> int:
    """Bundles of a schedule, each as often as the loops around it go.

    Raises:
        ValueError: it does not state the number of trips of a loop.
    """
    loops: list[Any] = [[0, 1, None]]  # bundles of a trip, trips, and the predicate

    for line in schedule.splitlines():
        if not (bundle := BUNDLE.match(line)):
            continue
        if bundle[1] == "LB":
            loops.append([0, None, None])
        loops[-1][0] += 1
        if test := EXIT.search(line):
            loops[-1][1:] = int(test[2]), test[1]
        if loops[-1][2] and f"sbr.rel (!%{loops[-1][2]})" in line:
            bundles, trips, _ = loops.pop()
            loops[-1][0] += bundles * trips
    if len(loops) > 1:
        raise ValueError(f"a schedule does not state how often a loop of {loops[-1][0]} bundles goes")
    return loops[0][0]
