"""Schedules of Pallas kernels by the compiler of TPUs, which estimates no cycles of them."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

LABEL = "final_bundles"
# A bundle of instructions: its address, whether a loop's body begins, and how deep in loops it lies unless it is empty.
BUNDLE = re.compile(r" *(?:0x[0-9a-f]+|\d+) +(\w\w)? *: *(>*) *({}?)")
EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/")


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
    """Bundles of a schedule, each as often as the loops around it go, whose numbers of trips it states."""
    loops = [[0, 1]]  # bundles of a trip, and trips

    def end(depth):
        while len(loops) > depth + 1:
            bundles, trips = loops.pop()
            loops[-1][0] += bundles * trips

    for line in schedule.splitlines():
        if not (bundle := BUNDLE.match(line)):
            continue
        depth = len(loops) - 1 if bundle[3] == "{}" else len(bundle[2])
        end(depth - 1 if bundle[1] == "LB" else depth)
        loops.extend([0, 1] for _ in range(depth + 1 - len(loops)))
        loops[-1][0] += 1
        if test := EXIT.search(line):
            loops[-1][1] = int(test[1])
    end(0)
    return loops[0][0]
