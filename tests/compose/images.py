"""The images of docker-compose.yml: the real ones where they can be pulled, else stand-ins under their names."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.components import absent
from tests.compose.docker import COMPONENTS, Docker

HERE = Path(__file__).parent / "stand_ins"
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
LABEL = "spanledger.stand-in"
BASE = "spanledger-stand-in:base"
PULL_SECONDS = 180


class Images:
    """The images one engine has."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker

    def stand_in(self, name: str) -> str | None:
        """What stands in for this image or is below it: a stand-in's label is inherited. None for a real one."""
        (image,) = self._docker.inspect(name)
        label: str | None = (image["Config"]["Labels"] or {}).get(LABEL)
        return label

    def provide(self, names: Iterable[str]) -> None:
        missing = [name for name in names if not self._is_real(name) and not self._pull(name)]
        if missing:
            with build_context() as context:
                self._import_base()
                for name in missing:
                    self._build(name, context)

    def remove_stand_ins(self) -> None:
        """Also what was built on them: the label is inherited."""
        found = self._docker("image", "ls", "--quiet", "--filter", f"label={LABEL}").split()
        if found:
            self._docker("image", "rm", "--force", *dict.fromkeys(found), BASE)  # the newest first: none is below it

    def _is_real(self, name: str) -> bool:
        return bool(self._docker.inspect(name)) and self.stand_in(name) is None

    def _pull(self, name: str) -> bool:
        return self._docker.succeeds("pull", "--quiet", name, seconds=PULL_SECONDS)

    def _build(self, name: str, context: Path) -> None:
        match = re.fullmatch(r"(?:.+/)?(.+):.+", name)
        assert match, name
        # Not every network lets containers out.
        self._docker("build", "--network", "host", "--target", match[1], "--tag", name, str(context), seconds=600)

    def _import_base(self) -> None:
        """A bare Debian 12."""
        if self._docker.inspect(BASE):
            return
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            absent(
                "an image cannot be pulled, and only root with debootstrap (scripts/docker-components) can replace it"
            )
        with tempfile.TemporaryDirectory(dir=COMPONENTS) as directory:
            self._docker.run("debootstrap", "--variant=minbase", "bookworm", f"{directory}/root", seconds=600)
            self._docker.run(
                "tar", "--directory", f"{directory}/root", "--create", "--file", f"{directory}/tar", ".", seconds=120
            )
            self._docker("import", f"{directory}/tar", BASE, seconds=120)


@contextmanager
def provided(docker: Docker, names: Iterable[str]) -> Iterator[Images]:
    """These images, real or not. An engine of ours keeps what was built; on another the real names are set free."""
    images = Images(docker)
    try:
        images.provide(names)
        yield images
    finally:
        if not docker.ours:
            images.remove_stand_ins()


@contextmanager
def build_context() -> Iterator[Path]:
    """The directory the stand-ins are built from: ours, and the wheels for the Python among them."""
    wheels = COMPONENTS / "wheels" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    with tempfile.TemporaryDirectory(dir=_made(COMPONENTS)) as directory:
        if not wheels.is_dir():
            fetched = Path(directory, "fetched")
            # For the Python of Debian 12, whichever runs here.
            command = [sys.executable, "-m", "pip", "download", "-qq", "--require-hashes", "--no-deps"]
            command += ["--only-binary=:all:", "--python-version=3.11", "-r", str(LOCK), "--dest", str(fetched)]
            subprocess.run(command, check=True, timeout=600)
            fetched.rename(_made(wheels.parent) / wheels.name)
        context = Path(directory, "context")
        shutil.copytree(HERE, context)
        shutil.copytree(wheels, context / "wheels", copy_function=os.link)
        yield context


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
