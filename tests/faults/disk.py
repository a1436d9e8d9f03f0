"""Disks that fill up: a small tmpfs where root may mount one, else a limit to the size of the daemon's files."""

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_BLOCK = bytes(1 << 16)
_LIMIT_BYTES = 4096


class Disk(Protocol):
    """The disk of a state folder. `preexec` is for the daemon that is started on it."""

    @property
    def preexec(self) -> Callable[[], None] | None: ...

    def fill(self, pid: int) -> None:
        """From now on nothing fits; `pid` is the daemon's."""

    def free(self, pid: int) -> None:
        """There is room again."""

    def release(self) -> None:
        """The end of the disk. What was on it stays in the folder."""


class Tmpfs:
    """A file system of 64 MiB mounted on the folder."""

    preexec = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True)
        _mount(folder, "64m")

    def fill(self, pid: int) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(_BLOCK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self, pid: int) -> None:
        self._ballast.unlink()

    def release(self) -> None:
        kept = self._folder.with_name("kept")
        shutil.copytree(self._folder, kept, ignore=shutil.ignore_patterns("*.sock", "ballast"))
        subprocess.run(["umount", self._folder], check=True)
        self._folder.rmdir()
        kept.rename(self._folder)


class FileSizeLimit:
    """No file of the daemon may be written beyond its first page (setrlimit(2), RLIMIT_FSIZE)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._full = False

    def preexec(self) -> None:
        if self._full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT_BYTES, resource.RLIM_INFINITY))

    def fill(self, pid: int) -> None:
        self._full = True
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_LIMIT_BYTES, resource.RLIM_INFINITY))

    def free(self, pid: int) -> None:
        self._full = False
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def release(self) -> None:
        pass


DiskKind = type[Tmpfs] | type[FileSizeLimit]


def kinds() -> list[DiskKind]:
    """The disks that can be had here."""
    return [Tmpfs, FileSizeLimit] if _can_mount() else [FileSizeLimit]


def _can_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _mount(Path(scratch), "64k")
        except subprocess.CalledProcessError:  # root of a container, without the capability
            return False
        subprocess.run(["umount", scratch], check=True)
    return True


def _mount(folder: Path, size: str) -> None:
    options = f"size={size},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "huiru-test", folder], check=True, capture_output=True)
