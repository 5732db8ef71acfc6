"""The areas of the code, and a seeded sample of the mutants of each."""

import random
from fnmatch import fnmatch
from pathlib import Path

from mutants.operators import Mutant, mutants

# The first pattern that matches a file names its area.
AREAS = {
    "mhc_jax/ops/*": "ops",
    "mhc_jax/nn/*": "nn",
    "mhc_jax/interop/*": "interop",
    "mhc_jax/*": "library",
    "train/data/*": "data",
    "train/objectives/*": "update",
    "train/prepare*": "data",
    "train/devices/sharding.py": "update",
    "train/update/*": "update",
    "train/benchmark/*": "benchmark",
    "train/compare.py": "reports",
    "train/inspect.py": "reports",
    "train/measure/cost.py": "reports",
    "train/measure/streams.py": "reports",
    "train/report/*": "reports",
    "train/study/*": "reports",
    "train/terminal/table.py": "reports",
    "train/*": "loop",
}


def sources(root: Path) -> dict[str, list[Path]]:
    """The files of every area, without tests."""
    found: dict[str, list[Path]] = {area: [] for area in AREAS.values()}
    for path in sorted(file for folder in ("mhc_jax", "train") for file in (root / folder).rglob("*.py")):
        name = path.relative_to(root)
        if "tests" not in name.parts:
            # A pattern's * also spans folders.
            area = next(area for pattern, area in AREAS.items() if fnmatch(str(name), pattern))
            found[area].append(path)
    return found


def sample(root: Path, each: int, seed: int) -> dict[str, list[Mutant]]:
    """``each`` mutants of every area, drawn alike from all that its files have."""
    drawn = {}
    for area, files in sources(root).items():
        texts = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in files}
        candidates = [mutant for name, text in texts.items() for mutant in mutants(name, text)]
        random.Random(f"{seed} {area}").shuffle(candidates)
        parsing = (mutant for mutant in candidates if mutant.parses(texts[mutant.file]))
        drawn[area] = [mutant for mutant, _ in zip(parsing, range(each), strict=False)]
    return drawn
