"""What the rest of the house must know of a way to pre-train, as a typed record.

No jax here nor at the head of the ways' files: workers that only write shards import
them, and the loss terms import it when they are made.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from data.shards import Framing, Shards
from data.tokenizers import Tokenizer
from data.windows import Batch, Examples, Rows
from settings import Rule, Setting

Objective = Any  # `objective` of a config


class Line(NamedTuple):
    """What a model must beat to have learnt anything, of those that count alone.

    Attributes:
        metric: of a held-out evaluation that it is compared with, in whose unit it is.
    """

    name: str
    metric: str
    value: float


@dataclasses.dataclass(frozen=True)
class Measure:
    """What held-out text is judged by beside the loss, whatever the recipe's own rows.

    Attributes:
        examples: (tokenizer, sequence_length) -> (split) -> its examples.
        loss_terms: as that of a way to pre-train.
    """

    examples: Callable[[Tokenizer, int], Callable[[Shards], Examples]]
    loss_terms: Callable[[Objective, Any, int], Callable]


class HeldOut(NamedTuple):
    """Held-out text that lines are drawn for.

    Attributes:
        batches: that the loss is of.
        measured: those of each measure, by its name.
        vocab_size: words that the model predicts.
    """

    split: Shards
    batches: Iterable[Batch]
    measured: Mapping[str, Iterable[Batch]]
    vocab_size: int


class Carry(NamedTuple):
    """What the rows of a batch of training hand on to those of the next one, of the
    text that follows; an evaluation's begin anew.

    Attributes:
        loss_terms: as that of a way to pre-train, of batches with "goes_on" [B] and
            "carried", but -> (terms, what is carried on).
        shapes: (model fields, rows) -> of what is carried, zeros at first, each with
            the axis of rows in front.
    """

    loss_terms: Callable[[Objective, Any, int], Callable]
    shapes: Callable[[Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What a way to pre-train is to the others.

    Attributes:
        special_tokens: of a tokenizer that is trained for it.
        roles: special tokens that it cannot do without.
        may_lack: of these, what a tokenizer may lack if the config says so.
        framing: (tokenizer) -> how documents lie in the shards.
        examples: (objective, tokenizer, sequence_length) -> (split) -> its examples, or
            by name those of each of the batches in a batch.
        outputs: of a model, all of which it needs.
        sees: what a position of the model must see, "left" or "both" sides; of two the
            model must be able to do either.
        loss_terms: (objective, model, logit_chunks) -> (params, batch, dropout key) ->
            terms.
        predicted: (objective, sequence_length) -> positions of a row at most, or by
            name those of each of the batches in a batch.
        measures: of held-out text beside the loss, by name.
        lines: (objective, tokenizer, training split, held-out text) -> lines to beat;
            the first one is that of a model which knows frequencies alone.
        evaluation: (means of the terms, held-out split) -> what else is told of an
            evaluation.
        commands: of predict.py that a run of it can do, beside embed.
        settings: of its `objective`, the name aside.
        rules: what must fit what.
        tiny: (objective, sequence_length) -> settings for rows as short as that.
        rows: (objective, batch_size) -> rows of a batch, or by name those of each of
            the batches in it.
        carry: (objective) -> how rows go on in the next batch; None: they do not.
    """

    special_tokens: tuple[str, ...]
    roles: tuple[str, ...]
    framing: Callable[[Tokenizer], Framing]
    examples: Callable[
        [Objective, Tokenizer, int],
        Callable[[Shards], Examples | Mapping[str, Examples]],
    ]
    outputs: tuple[str, ...]
    sees: tuple[str, ...]
    loss_terms: Callable[[Objective, Any, int], Callable]
    predicted: Callable[[Objective, int], int | Mapping[str, int]]
    measures: Mapping[str, Measure]
    lines: Callable[[Objective, Tokenizer, Shards, HeldOut], tuple[Line, ...]]
    evaluation: Callable[[Mapping[str, float], Shards], dict[str, float]]
    commands: tuple[str, ...]
    settings: tuple[Setting, ...]
    rules: tuple[Rule, ...]
    tiny: Callable[[Objective, int], Mapping[str, Any]]
    may_lack: tuple[str, ...] = ()
    rows: Callable[[Objective, int], Rows] = lambda _, batch_size: batch_size
    carry: Callable[[Objective], Carry | None] = lambda _: None
