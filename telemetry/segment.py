"""A segment: two files of rows, one line a row, written together, sealed together, loaded together.

Sealed files end with their last line. Open ones are mapped and longer: zeros follow the last line. No line has a
zero in it (`copytext` replaces it), so what a killed process left is whole up to the last newline before the first
zero; anything behind is torn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .mapped import MappedFile

VERSION = "v1"  # of the lines; in the file name, so that a later reader can tell them from its own
EXECUTIONS, STEPS = TABLES = ("executions", "steps")
OPEN = ".open"
SEEN = "seen"  # ending of the file that says that a segment was observed


@dataclass(frozen=True, slots=True)
class Segment:
    """A sealed pair of files, ready to be loaded."""

    directory: Path
    number: int

    def path(self, table: str) -> Path:
        return self.directory / f"{self.number:012d}.{VERSION}.{table}"

    def read(self, table: str) -> bytes:
        """The lines of one table; empty when the segment has none, or was removed by another drainer."""
        try:
            return self.path(table).read_bytes().rstrip(b"\0")
        except FileNotFoundError:
            return b""

    def lines(self) -> int:
        """How many rows it has."""
        return sum(self.read(table).count(b"\n") for table in TABLES)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(size_of(self.path(table)) for table in TABLES)

    def stat(self) -> tuple[float, int]:
        """When it was last written, in seconds since the epoch, and its bytes."""
        return self.written_at(), self.size()

    def written_at(self) -> float:
        """When it was last written, in seconds since the epoch."""
        try:
            return self.path(EXECUTIONS).stat().st_mtime
        except FileNotFoundError:
            return time.time()

    def remove(self) -> None:
        """Forget it: its rows are stored. Executions mark a segment sealed, so that they are seen outlasts them."""
        for table in (STEPS, EXECUTIONS, SEEN):
            self.path(table).unlink(missing_ok=True)

    def mark_seen(self) -> bool:
        """Note on disk that its rows are observed; False where that was noted before, or it is gone.

        Raises:
            OSError: The disk has no room for the note.
        """
        try:
            os.close(os.open(self.path(SEEN), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def write(self, lines: dict[str, bytes]) -> None:
        """Make the files anew, sealed.

        Raises:
            OSError: The disk refused.
        """
        for table in (STEPS, EXECUTIONS):
            draft = Path(f"{self.path(table)}{OPEN}")
            draft.write_bytes(lines[table])
            draft.chmod(0o600)
            draft.rename(self.path(table))

    def adopt(self) -> int:
        """Seal what a dead process left open of it; how many lines were torn.

        Raises:
            OSError: The disk refused, or another process was faster.
        """
        torn, kept = 0, {}
        for table in TABLES:
            path = Path(f"{self.path(table)}{OPEN}")
            if path.exists():
                data = path.read_bytes()
                kept[table] = data.rfind(b"\n", 0, end if (end := data.find(b"\0")) >= 0 else len(data)) + 1
                rest = data[kept[table] :].strip(b"\0")
                torn += max(1, rest.count(b"\n")) if rest else 0
        for table, size in reversed(kept.items()):
            path = Path(f"{self.path(table)}{OPEN}")
            if not any(kept.values()) and not self.path(STEPS).exists():
                path.unlink()
            else:
                os.truncate(path, size)
                path.rename(self.path(table))
        return torn


class OpenSegment:
    """A segment that is being written.

    Raises:
        OSError: The disk has no room for `capacity` bytes a table.
    """

    __slots__ = ("_files", "capacity", "segment", "sizes")

    def __init__(self, segment: Segment, capacity: int) -> None:
        self.segment = segment
        self.capacity = capacity
        self.sizes = dict.fromkeys(TABLES, 0)  # bytes of lines
        self._files: dict[str, MappedFile] = {}
        try:
            for table in TABLES:
                path = Path(f"{segment.path(table)}{OPEN}")
                # Every page of it is present: one that is missing would be asked of a disk that may stall.
                self._files[table] = MappedFile(path, capacity)
        except OSError:
            self.discard()  # half a segment would never be sealed
            raise

    def put(self, table: str, line: bytes) -> bool:
        """Add a line, with its newline; False where there is no room for it."""
        size = self.sizes[table]
        end = size + len(line)
        if end > self.capacity:
            return False
        self._files[table].bytes[size:end] = line
        self.sizes[table] = end
        return True

    def size(self) -> int:
        """Bytes of lines."""
        return sum(self.sizes.values())

    def lines(self) -> dict[str, bytes]:
        """What it holds."""
        return {table: os.pread(self._files[table].fd, size, 0) for table, size in self.sizes.items()}

    def seal(self, sync: Callable[[int], None]) -> OSError | None:
        """Cut the files to their lines, commit them by `sync` and rename them, steps first; what refused to commit.

        Then it is sealed all the same, for what the kernel has can be loaded.

        Raises:
            OSError: It could not be renamed; it is still open, and may be sealed later.
        """
        refused: OSError | None = None
        for table in (STEPS, EXECUTIONS):
            file = self._files[table]
            file.unmap()  # or each page that is written back interrupts every processor that runs this process
            try:
                os.ftruncate(file.fd, self.sizes[table])
                if self.sizes[table]:  # one that comes back uncut after a loss of power reads as empty too
                    sync(file.fd)
            except OSError as error:
                refused = error
        for table in (STEPS, EXECUTIONS):
            if self._files[table].path != self.segment.path(table):
                self._files[table].path = self._files[table].path.rename(self.segment.path(table))
        self.close()
        return refused

    def close(self) -> None:
        """Let go of the files, and leave them."""
        for file in self._files.values():
            file.close()

    def discard(self) -> None:
        """Let go of the files, and remove them."""
        self.close()
        for file in self._files.values():
            file.path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
