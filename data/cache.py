"""What is kept between runs: where, written whole or not at all, known by content."""

import errno
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from errors import FOLDERS, UserError

SETTLED_SECONDS = 2  # a file this old that changes again shows it by its time


def cache_folder() -> Path:
    """``$FOREWORD_CACHE``, or ``~/.cache/foreword``; made when first written to.

    Raises:
        UserError: this user has no home.
    """
    named = os.environ.get("FOREWORD_CACHE") or FOLDERS["FOREWORD_CACHE"]
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"the cache {named} is in the home of a user who has none: set "
            "FOREWORD_CACHE to a folder"
        ) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole.

    A link is followed: what it points at is written anew, and the link stays. A device
    or a pipe is no name to give, and written into as it is.

    Raises:
        UserError: the disk is full.
    """
    try:
        if _is_written_into(path):
            with path.open("ab") as file:
                yield file
            return
        path = path.resolve()
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:  # also on a full disk or Ctrl-C
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"the disk is full: writing {path.name} to {path.parent} failed with "
            f"{free / 1e6:.1f} MB free. Free some space, or name a place on a larger "
            "disk (of the cache: FOREWORD_CACHE); what is finished is kept, run again "
            "to go on"
        ) from error


def _is_written_into(path: Path) -> bool:
    """Whether there is something that is no regular file, or what stdout goes to."""
    if not path.exists():
        return False
    there = path.stat()
    if not stat.S_ISREG(there.st_mode):
        return True
    with suppress(OSError):  # a closed stdout
        return os.path.samestat(there, os.fstat(1))
    return False


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        file.write(content)


def digest(content: bytes, size: int = 16) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def file_digests(paths: list[Path]) -> list[str]:
    """Of the whole content of each file; of those that did not change since the last
    time, by size and time, it is remembered."""
    memory = cache_folder() / "digests.json"
    remembered = json.loads(memory.read_text()) if memory.exists() else {}
    found, is_new = [], False
    for path in paths:
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        *known, content = remembered.get(str(path.resolve()), [None])
        if known != stamp:
            with path.open("rb") as file:
                hashed = hashlib.file_digest(
                    file, lambda: hashlib.blake2b(digest_size=16)
                )
            content = hashed.hexdigest()
            # Two changes within a tick of the clock look like one.
            if time.time() - state.st_mtime > SETTLED_SECONDS:
                remembered[str(path.resolve())] = [*stamp, content]
                is_new = True
        found.append(content)
    if is_new:
        write_whole(memory, json.dumps(remembered, indent=0).encode())
    return found
