"""Mistakes of the user, kept apart from our own, and the exit status they end in."""

import errno
import fnmatch
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Folders of the user's home that are written unasked, by the variable that moves them.
FOLDERS = {
    "FOREWORD_CACHE": "~/.cache/foreword",
    "HF_HOME": "~/.cache/huggingface",
    "TFDS_DATA_DIR": "~/tensorflow_datasets",
}
# What can be wrong with a path that the user gave, none of it our doing.
NO_RIGHT = "this process has no right to read or write there"
NO_FOLDER = "a file is in the place of a folder"
FAULTS = {
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.EROFS: "the file system can only be read",
    errno.ENOTDIR: NO_FOLDER,
    errno.EEXIST: NO_FOLDER,
    errno.EISDIR: "a folder is in the place of a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links lead in a circle",
}


class UserError(Exception):
    """Names the culprit, the value found and the way out; ends in exit status 2."""


def run(main: Callable[[list[str]], int]) -> None:
    """Runs an entry point and exits: 0 done, 2 the user's input, 130 Ctrl-C.

    2 is also what a full disk and a path that the system refuses end in. Anything else
    is our fault: a traceback and status 1.
    """
    sys.exit(status_of(main))


def check(reads: Callable[[list[str]], Any]) -> None:
    """Exits as `run` does where the command line cannot be read, before what takes
    seconds to import."""

    def read(argv: list[str]) -> int:
        reads(argv)
        return 0

    if status := status_of(read):
        sys.exit(status)


def status_of(main: Callable[[list[str]], int]) -> int:
    """The exit status of an entry point; says what it could not do."""
    try:
        return main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = system_fault(error, sys.argv)
        if not message:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def system_fault(error: Exception, argv: list[str]) -> str:
    """What a full disk, or a path that the system refuses, is told as; "" of all else.

    What is not there is no such path: we may have looked in the wrong place.
    """
    code, path = getattr(error, "errno", None), getattr(error, "filename", None)
    if found := re.search(r"os[ _]error(?:_code=')? ?(\d+)", str(error)):
        # The libraries that write checkpoints and weights have it in their text.
        code = int(found[1])
        path = next(iter(re.findall(r'"(/[^"]*)"', str(error))), None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: {error}. Free some space and run the same line again; "
            "what was whole before is kept"
        )
    if code not in FAULTS or not isinstance(path, str | bytes):
        return ""
    culprit = Path(os.fsdecode(path))
    if code == errno.EEXIST and culprit.is_dir():
        return ""  # it is a folder, which we should not have made
    while code == errno.ENOTDIR and not os.path.lexists(culprit):
        culprit = culprit.parent
    return f"{culprit}: {FAULTS[code]}. {other_place(culprit, argv)}"


def other_place(culprit: Path, argv: list[str]) -> str:
    """The way out, with the flag or the variable that names the path."""
    culprit = culprit.absolute()
    named = [
        word.partition("=")[::2] if word.startswith("-") else (flag, word)
        for flag, word in itertools.pairwise(argv)
    ]
    named += [(name, os.environ.get(name) or FOLDERS[name]) for name in FOLDERS]
    places = [
        (name, part, Path(os.path.expanduser(part)).absolute())
        for name, value in named
        for part in value.split(",")
        if part
    ]
    within = [*map(str, (culprit, *culprit.parents))]
    for name, part, place in places:
        if str(place) in within or fnmatch.filter(within, str(place)):
            return f"Make it usable, or name another place with {name} (now {part})"
    for name, part, place in places:
        if culprit in place.parents:
            return f"Make it usable, or name another place with {name} (now {part})"
    return (
        "Make it usable, or name another place: with the flag or setting that it comes "
        "from (--workdir, --output, ...), or FOREWORD_CACHE for the cache"
    )


def check_folder(folder: Path, flag: str) -> None:
    """Raises UserError where nothing can be written into a folder, made or not yet."""
    place = folder.expanduser().absolute()
    while not os.path.lexists(place):
        place = place.parent
    fault = ""
    if not place.is_dir():
        fault = NO_FOLDER
    elif not os.access(place, os.W_OK | os.X_OK):
        fault = "this process cannot write there"
    if fault:
        raise UserError(f"{flag}={folder}: {place}: {fault}. Name another folder")


def check_output(output: str | None) -> None:
    """Raises UserError where the file cannot be written, before anything is loaded."""
    if output is None:
        return
    path = Path(output)
    folder = path.resolve().parent
    if path.is_dir():
        raise UserError(f"--output={path} is a folder: name a file in it")
    if not folder.is_dir():
        raise UserError(f"--output={path}: there is no folder {folder}: make it")
