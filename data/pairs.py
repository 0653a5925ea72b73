"""Minimal pairs of sentences, of which one is good: a file a paradigm.

- ``.jsonl`` as BLiMP's (Warstadt et al. 2020), or another of `records.READERS`: the
  fields sentence_good and sentence_bad.
- ``.txt`` as Zorro's (Huebner et al. 2021): two lines a pair, the bad one first.

All but Parquet may be compressed, as in `records`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data import records
from errors import UserError

SUFFIXES = (*records.READERS, ".txt")
FIELDS = ("sentence_good", "sentence_bad")


class Pair(NamedTuple):
    """Two sentences, and where they stand: "island.jsonl, line 3"."""

    good: str
    bad: str
    place: str


def read(source: str) -> dict[str, list[Pair]]:
    """The pairs of each paradigm, of a file or of all those in a folder.

    Raises:
        UserError: no such file, none in the folder, two of one name, or a file that is
            malformed or has no pairs (with the line).
    """
    path = Path(source).expanduser()
    files = [path]
    if path.is_dir():
        named = (found for found in path.iterdir() if found.is_file())
        files = sorted(f for f in named if _stem(f.name) != f.name)
        if not files:
            raise UserError(f"{path} has no file of pairs ({' '.join(SUFFIXES)})")
    elif not path.is_file():
        raise UserError(f"--input={source}: no such file or folder")
    paradigms: dict[str, list[Pair]] = {}
    for file in files:
        name = _stem(file.name)
        if name in paradigms:
            raise UserError(f"{path} has two files of a paradigm {name!r}: remove one")
        paradigms[name] = [*_pairs_of(file)]
        if not paradigms[name]:
            raise UserError(f"{file} holds no pairs")
    return paradigms


def _stem(name: str) -> str:
    """Without its suffixes, as far as they are known."""
    plain = records.without_compression(name)
    for suffix in SUFFIXES:
        if plain.endswith(suffix):
            return plain.removesuffix(suffix)
    return name


def _pairs_of(file: Path) -> Iterator[Pair]:
    suffix = records.format_of(file, SUFFIXES)
    if suffix != ".txt":
        for fields, place, _ in records.read_file(file, suffix):
            good, bad = (_sentence(fields, name, place) for name in FIELDS)
            yield Pair(good, bad, place)
        return
    lines = [(number, line) for number, line, _ in records.numbered_lines(file)]
    for number, line in lines:
        if not line.strip():
            raise UserError(
                f"{file}, line {number} is blank, but every line is a sentence, the "
                "bad one of a pair before the good one: remove it"
            )
    if len(lines) % 2:
        raise UserError(
            f"{file} has {len(lines)} lines, but a pair has two, the bad one first: "
            f"the last one ({lines[-1][1][:40]!r}) has no good one"
        )
    for (number, bad), (_, good) in zip(lines[::2], lines[1::2], strict=True):
        yield Pair(good, bad, f"{file}, line {number}")


def _sentence(fields: dict, name: str, place: str) -> str:
    if name in fields and isinstance(fields[name], str) and fields[name].strip():
        return fields[name]
    found = f"{fields[name]!r}" if name in fields else f"only {', '.join(fields)}"
    raise UserError(
        f"{place}: no sentence in {name!r} (there is {found}); a pair has "
        f"{' and '.join(FIELDS)}"
    )
