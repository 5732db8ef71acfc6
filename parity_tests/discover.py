"""Catalogues that are folders: every file in one is found, so that adding a file is enough."""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package by name."""
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        yield importlib.import_module(f"{package.__name__}.{found.name}")
