"""What the rest of the house must know of a family of models, as a typed record."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from flax.linen.initializers import Initializer
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from settings import Rule, Setting

Fields = Mapping[str, Any] | ConfigDict  # `model` of a config


@dataclasses.dataclass(frozen=True)
class TextFrame:
    """How a task's text is framed, by the roles of special tokens.

    A sequence is `first A last` or, of two sides, `first A between B last`.

    Attributes:
        readout: of a sequence, its "first" or "last" token, or the "mean" of all.
    """

    first: str
    between: str
    last: str
    readout: str


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family is to the others.

    Attributes:
        module: built from the fields of `model`, and dtype, remat, fused_attention; one
            that can continue a text has an `empty_cache`, see `models/gpt.py`.
        inputs: the arrays of a batch that it reads, as far as they are there.
        frames: of a task's text, by what a position sees, "left" or "both" sides; one
            that can do either has a field `sees`.
        outputs: what it can predict, each with the fields that must be so.
        pooler: what a readout goes through before a task's layer: "base", its own
            pre-trained pooler, "new", a fresh one, or "none".
        initializer: of the kernels of a new head.
        vocabulary: patterns of the parameters whose first axis is the vocabulary,
            padded to a multiple.
        placement: ordered (path pattern, mesh axes); see `training/parallel.py`.
        cut_sizes: mesh axis -> fields that it must divide, "vocab_size" as padded.
        pretraining_only: pattern of the parameters that a task may not need.
        depth: (fields, path) -> from 0, the input, upwards: for rates by layer.
        forward_flops: (fields, sizes by path, length, predicted) -> of a token.
        dropouts: fields that fine-tuning sets anew.
        settings: of its fields; those of a run are complete without what came later.
        rules: what must fit what.
        tiny: fields at a size that trains in seconds.
    """

    module: type[nn.Module]
    inputs: tuple[str, ...]
    frames: Mapping[str, TextFrame]
    outputs: Mapping[str, Mapping[str, Any]]
    pooler: Callable[[Fields], str]
    initializer: Callable[[Any], Initializer]
    vocabulary: tuple[str, ...]
    placement: tuple[tuple[str, PartitionSpec], ...]
    cut_sizes: Mapping[str, tuple[str, ...]]
    pretraining_only: str
    depth: Callable[[Fields, str], int]
    forward_flops: Callable[[Fields, Mapping[str, int], int, int], float]
    dropouts: tuple[str, ...]
    settings: tuple[Setting, ...]
    tiny: Mapping[str, Any]
    rules: tuple[Rule, ...] = ()
