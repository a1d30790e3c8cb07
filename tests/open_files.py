"""Which files of a directory this process has open."""

from __future__ import annotations

import os
from pathlib import Path


def open_files_under(directory: Path) -> list[str]:
    """Return the descriptors of this process that lead below a directory (Linux; elsewhere nothing is known)."""
    if not os.path.isdir("/proc/self/fd"):
        return []
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found
