"""Writing a file so that a reader, or a crash, sees the old one or the new one and never a part."""

import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import BinaryIO

SLOW_SAVE_VARIABLE = "ACKTR_TEST_SLOW_SAVE"
"""Test aid: seconds to sleep when half of a file is written, so that a test can kill the process in mid-write."""

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`: temporary file in the same folder, fsync, rename over the target, fsync of the folder.

    Args:
        path: the file to create or replace; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the file could not be written (disk full, no permission); the temporary file is gone and whatever
            stood at `path` before is untouched.
    """

    def fill(handle: BinaryIO) -> None:
        half = len(data) // 2
        handle.write(data[:half])
        pause = float(os.environ.get(SLOW_SAVE_VARIABLE) or 0.0)
        if pause > 0.0:
            handle.flush()
            time.sleep(pause)
        handle.write(data[half:])

    _replace(path, fill)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, text.encode("utf-8"))


def write_whole(handle: FileIO, data: bytes) -> None:
    """Append all of `data` to an unbuffered file, which by itself may write a part.

    Raises:
        OSError: it could not be written; a part of it may be in the file.
    """
    while data:
        data = data[handle.write(data) :]


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` (hard link), or a copy of it where the file system has no links.

    Raises:
        OSError: neither a link nor a copy could be made; whatever stood at `target` before is untouched.
    """
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # no hard links here (FAT, some network mounts): copy instead

        def fill(handle: BinaryIO) -> None:
            with source.open("rb") as original:
                shutil.copyfileobj(original, handle)

        _replace(target, fill)
        return
    try:
        os.replace(temporary, target)
    finally:
        # rename(2) between two links of one file is a no-op that leaves the old name in place
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def temporary_name(path: Path) -> Path:
    """Name under which a replacement of `path` is prepared: hidden, beside it, one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left behind in `folder`; call it only where no other process is writing."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _replace(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename is not None:  # what the caller knows, not the name made here
            error.filename, error.filename2 = str(path), None
        raise
    except BaseException:  # KeyboardInterrupt too: nothing half-written stays behind
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; only POSIX systems can open a folder for it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
