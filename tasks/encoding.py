"""Labelled records to encoded examples: the input transformations of GPT-1 and BERT.

An encoded example is one sequence, or several that belong together (the answers of a
choice, the two orders of a similarity). Every sequence is `first A last` or
`first A between B last`, with the special tokens of the model's family, which also says
at which end it is read out:

                        first    between      last        readout
    BERT, section 3.2   [CLS]    [SEP]        [SEP]       first
    GPT-1, section 3.3  _start_  _delimiter_  _classify_  last
    ELMo                <S>      </S>         </S>        mean

Labels are names here and in files; ids, their places in `labels`, exist only in the
arrays. `packing` lays encoded examples out in rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from ml_collections import ConfigDict

from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError

Slot = Mapping[str, np.ndarray | np.generic]
Sequences = Sequence[dict[str, Shaped[np.ndarray, " _"]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a labelled task is made of.

    Attributes:
        kind: a key of `tasks.KINDS`.
        text_columns: the text, or several; what they are to it each kind says.
        label_column: what is to be predicted.
        labels: the names, in the order of the ids; None: learnt from the training data.
        question_columns, answer_columns: of the kinds that have such.
        own: the settings that only the kind reads, by their whole names.
    """

    kind: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] | None
    question_columns: tuple[str, ...] = ()
    answer_columns: tuple[str, ...] = ()
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example: its sequences in a row, and what is to be predicted.

    Attributes:
        arrays: `tokens`, `segment_ids` (1, 2, .. for its sequences), `positions`,
            `token_types` (0 in A, 1 in B; of a model that reads them), and what its
            kind says of every token, all [N].
        slot: what it contributes to [B, E] arrays.
        places: the same, of positions, counted from its start.
        origin: what its kind needs to read the scores; span: the window that it shows.
    """

    arrays: dict[str, Shaped[np.ndarray, " N"]]
    slot: Slot
    places: Slot
    origin: Any = None

    def __len__(self) -> int:
        return len(self.arrays["tokens"])


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split, encoded.

    Attributes:
        labels: names in the order of their ids; empty for a kind that has none.
        encoded: one a record; of a kind that reads through windows one a window.
        cuts: a line for every record that lost text or its answer, with its place.
        pad: id of the padding.
    """

    labels: tuple[str, ...]
    encoded: list[Encoded]
    cuts: list[str]
    pad: int

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        return np.array([len(example) for example in self.encoded])


def cut_report(examples: Examples, max_length: int) -> str:
    """How much was lost, for the log; names the first place."""
    if not examples.cuts:
        return f"every text fits into max_length={max_length}"
    count, more = len(examples.cuts), ", ..." if len(examples.cuts) > 1 else ""
    return (
        f"max_length={max_length} cost {count} record(s) text or answer: "
        f"{examples.cuts[0]}{more}"
    )


# Sequences


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a family reads a task's text; see the head of this file.

    Attributes:
        readout: of a sequence, its "first" or "last" token, or the "mean" of all.
        sees_both: whether a position sees what follows it.
        has_types: whether the model reads `token_types`.
    """

    first: int
    between: int
    last: int
    readout: str
    sees_both: bool
    has_types: bool

    def around(self, *sides: Int[np.ndarray, " _"]) -> dict[str, Int[np.ndarray, " N"]]:
        """The tokens of a sequence of one or two sides, and their types."""
        parts = [[self.first], sides[0]]
        for side in sides[1:]:
            parts += [[self.between], side]
        tokens = np.concatenate([*parts, [self.last]]).astype(np.int32)
        if not self.has_types:
            return {"tokens": tokens}
        types = np.zeros(len(tokens), np.int32)
        if len(sides) > 1:
            types[len(sides[0]) + 2 :] = 1
        return {"tokens": tokens, "token_types": types}

    def readouts(self, sequences: Sequences) -> Int[np.ndarray, " R"]:
        """Where sequences that stand one after the other are read out; of a mean the
        first token stands for all."""
        ends = np.cumsum([len(sequence["tokens"]) for sequence in sequences])
        if self.readout == "last":
            return (ends - 1).astype(np.int32)
        return np.concatenate([[0], ends[:-1]]).astype(np.int32)


def make_frame(tokenizer: Tokenizer, fields: Mapping[str, Any] | ConfigDict) -> Frame:
    """The frame of the model with these fields, in the ids of a tokenizer.

    Raises:
        UserError: the tokenizer lacks some of its special tokens.
    """
    import models  # and with it jax, which reading a task needs not

    frame, special = models.frame_of(fields), tokenizer.special_ids
    roles = (frame.first, frame.between, frame.last)
    missing = {role for role in roles if role not in special}
    if missing:
        raise UserError(
            f"a task's texts are framed for this model by the special tokens "
            f"{', '.join(dict.fromkeys(roles))}; the tokenizer has no "
            f"{', '.join(sorted(missing))} (it has "
            f"{', '.join(sorted(special)) or 'none'}): say which they are, as by "
            f"--config.data.tokenizer.special_tokens='{min(missing)}=PIECE'"
        )
    return Frame(
        *(special[role] for role in roles),
        readout=frame.readout,
        sees_both=models.sees(fields) == "both",
        has_types="token_types" in models.family_of(fields).inputs,
    )


def longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    """How many pieces each side keeps, the longer losing one until both fit.

    At equal lengths B loses. (BERT, run_classifier.py, _truncate_seq_pair.)
    """
    excess = max(0, a + b - room)
    to_equal = min(excess, abs(a - b))
    rest = excess - to_equal
    a -= (to_equal if a > b else 0) + rest // 2
    return a, room - a if excess else b


def joined(
    sequences: Sequences, slot: Slot, places: Slot, origin: Any = None
) -> Encoded:
    """Sequences one after the other, numbered, positions counted anew in each."""
    sizes = [len(sequence["tokens"]) for sequence in sequences]
    arrays = {
        name: np.concatenate([sequence[name] for sequence in sequences])
        for name in sequences[0]
    }
    numbers = np.arange(1, len(sizes) + 1, dtype=np.int32)
    arrays["segment_ids"] = np.repeat(numbers, sizes)
    counted = [np.arange(size, dtype=np.int32) for size in sizes]
    arrays["positions"] = np.concatenate(counted)
    return Encoded(arrays, slot, places, origin)


def word_prefix(tokenizer: Tokenizer) -> str:
    """What to put before a word on its own so that it counts as the start of a word.

    A space for byte-level BPE, whose pieces of words within a sentence begin with it.
    """
    alone, spaced = tokenizer.encode_batch(["a", " a"])
    marks_words = (
        tokenizer.starts_word[spaced[0]] and not tokenizer.starts_word[alone[0]]
    )
    return " " if marks_words else ""


# Records


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split, and all that it takes to encode them."""

    records: list[Record]
    task: Task
    tokenizer: Tokenizer
    frame: Frame
    labels: tuple[str, ...]
    labelled: bool  # False: the label column is not looked at and all weights are 0
    max_length: int

    def pieces(
        self, columns: tuple[str, ...], prefix: str = ""
    ) -> list[Int[np.ndarray, " _"]]:
        """The pieces of each record's columns, joined by spaces; never none."""
        texts = [
            prefix + " ".join(text_of(record, column) for column in columns)
            for record in self.records
        ]
        pieces = self.tokenizer.encode_batch(texts)
        for record, ids in zip(self.records, pieces, strict=True):
            check_pieces(ids, record, columns[0])
        return pieces

    def texts(self) -> tuple[list[list[Int[np.ndarray, " _"]]], list[str]]:
        """The pieces of each text column of each record, as many as fit, and the cuts.

        Of two texts the longer one loses its end, for a model that sees left only, too
        (GPT-1's code cuts each to half the room).
        """
        columns = [self.pieces((column,)) for column in self.task.text_columns]
        room = self.max_length - 1 - len(columns)
        shown, cuts = [], []
        for record, *sides in zip(self.records, *columns, strict=True):
            lengths = [len(side) for side in sides]
            kept = [min(lengths[0], room)]
            if len(sides) == 2:
                kept = [*longest_first(*lengths, room)]
            if sum(kept) < sum(lengths):
                cuts.append(f"{record.place}: {lengths} to {kept} pieces")
            shown.append([side[:size] for side, size in zip(sides, kept, strict=True)])
        return shown, cuts

    def label_slot(self, record: Record) -> Slot:
        """`labels` and `weights` of a record with one label."""
        label = self.label_ids(record, label_of)[0] if self.labelled else 0
        return {"labels": np.int32(label), "weights": np.float32(self.labelled)}

    def label_ids(
        self, record: Record, labels_of: Callable[[Record, Task], list[str]]
    ) -> list[int]:
        """The ids of a record's labels."""
        names = labels_of(record, self.task)
        unknown = next((name for name in names if name not in self.labels), None)
        if unknown is not None:
            here = in_order(x for r in self.records for x in labels_of(r, self.task))
            raise UserError(
                f"{record.place}: the label {unknown!r} in column "
                f"{self.task.label_column!r} is not one of the {len(self.labels)} "
                f"labels {', '.join(map(repr, self.labels))}, which come from the "
                "training data or from task.labels; the labels in this file are "
                f"{', '.join(map(repr, here))}; correct it, or list all in task.labels"
            )
        return [self.labels.index(name) for name in names]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, sorted; as numbers where all are integers."""
    distinct = {*names}
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


# Fields


def field(record: Record, column: str) -> Any:
    if column not in record.fields:
        raise UserError(
            f"{record.place}: no column {column!r}; the columns there are "
            f"{', '.join(map(repr, record.fields))}; every record needs it"
        )
    return record.fields[column]


def text_of(record: Record, column: str) -> str:
    value = field(record, column)
    if not isinstance(value, str):
        raise UserError(
            f"{record.place}: the column {column!r} holds a {type(value).__name__} "
            f"({str(value)[:40]}) where text is expected"
        )
    if not value.strip():
        raise UserError(
            f"{record.place}: the column {column!r} is empty; fill it, or remove the "
            "record"
        )
    return value


def list_of(record: Record, column: str, expected: str) -> list[str]:
    value = field(record, column)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(
            f"{record.place}: the column {column!r} holds a {type(value).__name__} "
            f"({str(value)[:40]}) where {expected} is expected"
        )
    return value


def label_of(record: Record, task: Task) -> list[str]:
    """The label of a record that has one, without the white space around it."""
    return [text_of(record, task.label_column).strip()]


def answers_of(record: Record, task: Task) -> list[str]:
    """Of the one column that holds a list, or of a column for each."""
    if len(task.answer_columns) == 1:
        return list_of(record, task.answer_columns[0], "a list of answers")
    return [text_of(record, column) for column in task.answer_columns]


def check_pieces(ids: Int[np.ndarray, " _"], record: Record, column: str) -> None:
    if not len(ids):
        raise UserError(
            f"{record.place}: the tokenizer finds no text in column {column!r} (only "
            "white space or control characters); fill it, or remove the record"
        )
