"""The families that a config's `model.family` can name, and a model ready for use."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from errors import UserError
from models import bert, elmo, foreword, gpt
from models.family import Family, Fields, TextFrame
from models.transformer import VOCABULARY_MULTIPLE, padded_size

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "gpt": gpt.FAMILY,
    "foreword": foreword.FAMILY,
    "elmo": elmo.FAMILY,
}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """A module, and the arrays of a batch that it reads, as far as they are there."""

    module: nn.Module
    inputs: tuple[str, ...]

    def init(self, key: Any, batch: Mapping[str, Any]) -> Any:
        """Fresh parameters, float32; of the batch only the shapes matter."""
        return self.module.init(key, **self._read(batch))["params"]

    def apply(
        self, params: Any, batch: Mapping[str, Any], dropout_key: Any = None
    ) -> dict:
        """The outputs for a batch; without a key dropout is off.

        Dropout draws by the numbers in `batch["rows"]`, where a batch is a part of
        another, or else by 0, 1, ...
        """
        if dropout_key is None:
            return self.module.apply({"params": params}, **self._read(batch))
        rows = batch["rows"] if "rows" in batch else jnp.arange(len(batch["tokens"]))
        return self.module.apply(
            {"params": params},
            **self._read(batch),
            dropout_rows=rows,
            rngs={"dropout": dropout_key},
        )

    def seeing(self, sides: str) -> "Model":
        """The same model, of the same weights, that sees those sides, "left" or "both",
        where its module can do either."""
        if not hasattr(self.module, "sees"):
            return self
        return dataclasses.replace(self, module=self.module.clone(sees=sides))

    def _read(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in self.inputs if name in batch}


def family_of(fields: Fields) -> Family:
    return FAMILIES[fields["family"]]


def build(fields: Fields, remat: str = "none", fused_attention: bool = False) -> Model:
    """The model with these fields of a config.

    `remat` names what is kept for the backward pass, of `transformer.REMAT`;
    `fused_attention` is that of `attention.attention`.
    """
    family = family_of(fields)
    own = {
        name: frozen(fields[name])
        for name in fields
        if name not in ("family", "precision")
    }
    module = family.module(
        **own,
        dtype=PRECISIONS[fields["precision"]],
        remat=remat,
        fused_attention=fused_attention,
    )
    return Model(module, family.inputs)


def frozen(value: Any) -> Any:
    """A value as a module can have it: what JSON has as lists is tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def empty_row(fields: Fields) -> dict[str, np.ndarray]:
    """A row of two places that the model with these fields can read."""
    row = {"tokens": np.zeros((1, 2), np.int32)}
    if "characters" in family_of(fields).inputs:
        row["characters"] = np.zeros((1, 2, fields["max_characters"]), np.int32)
    return row


def sees(fields: Fields) -> str:
    """What a position of the model with these fields sees, "left" or "both" sides."""
    frames = family_of(fields).frames
    return next(iter(frames)) if len(frames) == 1 else fields["sees"]


def seeing(fields: Fields, sides: str) -> dict[str, Any]:
    """The fields of the same model, with the same weights, that sees those sides where
    its family can do either."""
    is_free = len(family_of(fields).frames) > 1
    return {**fields, "sees": sides} if is_free else {**fields}


def frame_of(fields: Fields) -> TextFrame:
    """Of a task's text."""
    return family_of(fields).frames[sees(fields)]


def outputs_of(fields: Fields, new_heads: bool = False) -> set[str]:
    """What the model with these fields can predict; with new heads what it could."""
    outputs = family_of(fields).outputs
    return {
        name
        for name, needed in outputs.items()
        if all(
            fields[field] == value
            for field, value in needed.items()
            if not (new_heads and value is True)
        )
    }


def only_with(fields: Fields, outputs: tuple[str, ...]) -> dict[str, Any]:
    """The fields without the heads of pre-training, but for those of some outputs."""
    family = family_of(fields)
    heads = {
        name: False
        for needed in family.outputs.values()
        for name, value in needed.items()
        if value is True
    }
    for output in outputs:
        heads |= family.outputs[output]
    return {**fields, **heads}


def check_cuts(fields: Fields, mesh: Mapping[str, int]) -> None:
    """Raises UserError where an axis of the mesh, by its size, cannot cut a model."""
    for axis, names in family_of(fields).cut_sizes.items():
        for name in names:
            padding = VOCABULARY_MULTIPLE if name == "vocab_size" else 1
            rows = -(-fields[name] // padding) * padding
            if rows % mesh[axis]:
                multiple = math.lcm(mesh[axis], padding)
                larger = -(-fields[name] // multiple) * multiple
                raise UserError(
                    f"model.{name}={fields[name]} does not divide over run.mesh."
                    f"{axis}={mesh[axis]}: use a divisor of {rows} there or, for a new "
                    f"model, model.{name}={larger}"
                )


def cut_vocabulary(params: Any, fields: Fields) -> Any:
    """Parameters, a tree or by path, without the rows that pad the vocabulary."""
    size = fields["vocab_size"]
    return _change_vocabulary(params, fields, lambda array: array[:size])


def fill_vocabulary(params: Any, fields: Fields) -> Any:
    """NumPy parameters, a tree or by path, with the rows of 0 that pad the vocabulary,
    which those of older runs lack."""
    size = padded_size(fields["vocab_size"])

    def filled(array: np.ndarray) -> np.ndarray:
        missing = max(0, size - len(array))
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    return _change_vocabulary(params, fields, filled)


def _change_vocabulary(params: Any, fields: Fields, change: Callable) -> Any:
    def changed(path: Any, array: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return change(array) if has_vocabulary(name, fields) else array

    return jax.tree_util.tree_map_with_path(changed, params)


def count(params: Any, fields: Fields) -> int:
    """Number of parameters, of which shapes will do, without the padding."""
    cut = jax.eval_shape(lambda params: cut_vocabulary(params, fields), params)
    return sum(leaf.size for leaf in jax.tree.leaves(cut))


def has_vocabulary(path: str, fields: Fields) -> bool:
    """Whether the first axis of a parameter is the vocabulary."""
    patterns = family_of(fields).vocabulary
    return any(re.fullmatch(pattern, path) for pattern in patterns)
