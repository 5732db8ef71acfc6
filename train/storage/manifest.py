"""A digest of every file under a folder, in a file of the format of ``sha256sum``: check it with ``sha256sum -c``."""

import enum
import hashlib
import os
from pathlib import Path

NAME = "manifest.sha256"


class Status(enum.IntEnum):
    """The result of :func:`verify`."""

    GOOD = 0
    UNVERIFIED = 1
    BAD = 2


def seal(path: Path) -> None:
    """Writes the manifest of ``path`` atomically, after everything under it has reached the disk."""
    for file in _files(path):
        _sync(file)
    temporary = path / f"{NAME}.tmp"
    temporary.write_bytes(_digests(path))
    _sync(temporary)
    temporary.replace(path / NAME)
    _sync(path)


def exists(path: Path) -> bool:
    """Whether ``path`` was sealed."""
    return (path / NAME).is_file()


def verify(path: Path) -> tuple[Status, str]:
    """GOOD; BAD if anything differs from the manifest by a byte; UNVERIFIED if there is no manifest."""
    if not path.is_dir():
        return Status.BAD, "does not exist"
    if not exists(path):
        return Status.UNVERIFIED, f"has no {NAME} (its writer was stopped before certifying it)"
    recorded, found = (path / NAME).read_bytes(), _digests(path)
    if recorded == found:
        return Status.GOOD, ""
    changed = [line.partition(b"  ")[2].decode() for line in found.splitlines() if line not in recorded.splitlines()]
    return Status.BAD, f"is damaged ({', '.join(changed) or 'a file is missing'}: not as in {NAME})"


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(NAME))


def _digests(path: Path) -> bytes:
    """The exact contents that the manifest must have."""
    lines = []
    for file in _files(path):
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.relative_to(path)}\n")
    return "".join(lines).encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
