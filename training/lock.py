"""One writer: a run folder belongs to one process at a time."""

import contextlib
import errno
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from errors import UserError
from training.parallel import is_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Makes the folder this process's own; of several of a run, the first one's.

    The lock is the system's, on the file `lock`, and ends with the process, however
    that ends. Windows has none of this kind, and neither have some network file systems
    (a bucket mounted as a folder, Lustre without `flock`): there nothing is locked. NFS
    passes it on to the other machines.

    Raises:
      UserError: another process has it; names that one.
    """
    if fcntl is None or not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read() or "a process that has just begun"
            raise UserError(
                f"{folder} is being written by {owner}: wait for it or stop it, or use "
                "another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {now}")
        file.flush()
        yield
