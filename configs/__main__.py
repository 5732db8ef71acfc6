"""``python -m configs`` compares every configuration with its JSON, which shows a review the effect of new defaults."""

import dataclasses
import sys
from pathlib import Path

import configs
from mhc_jax.registry import listed
from train.terminal import cli

GOLDEN = Path(__file__).parent / "golden"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare every configuration with its file in configs/golden; exit status 1 if one differs.

    Attributes:
        write: whether to write the files anew instead.
    """

    write: bool = False


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m configs")
    texts = {GOLDEN / f"{name}.json": configs.load(name).to_json() for name in configs.names()}
    changed = [file for file, text in texts.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    if flags.write:
        GOLDEN.mkdir(exist_ok=True)
        for file in changed:
            file.write_text(texts[file], encoding="utf-8")
    names = listed(file.stem for file in changed)
    print(f"{len(texts) - len(changed)} of {len(texts)} files are current" + (f"; not {names}" if names else ""))
    if changed and not flags.write:
        print("if the changes are meant, run: python -m configs --write")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
