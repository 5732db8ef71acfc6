"""The resources of this machine."""

import os


def machine_memory() -> int:
    """Bytes of the machine that this process runs on."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
