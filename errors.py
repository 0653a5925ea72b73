"""Mistakes of the user, kept apart from our own, and the exit status they end in."""

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Names the culprit, the value found and the way out; ends in exit status 2."""


def run(main: Callable[[list[str]], int]) -> None:
    """Runs an entry point and exits: 0 done, 2 the user's input, 130 Ctrl-C.

    Anything else is our fault: a traceback and status 1.
    """
    try:
        status = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (OSError, ValueError) as error:
        if not is_disk_full(error):
            raise
        print(
            f"error: the disk is full: {error}. Free some space and run the same line "
            "again; what was whole before is kept",
            file=sys.stderr,
        )
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def is_disk_full(error: Exception) -> bool:
    """Whether the system, or orbax's storage library on its behalf, says so."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return f"[os_error_code='{errno.ENOSPC}']" in str(error)
