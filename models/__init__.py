"""The model families that a config's `model.family` can name."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from errors import UserError
from models.bert import Bert
from models.gpt import Gpt

FAMILIES = {"bert": Bert, "gpt": Gpt}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Which mesh axes cut the axes of a parameter, by its path; the first match wins, and
# what is not here is small and stays whole. `tensor` cuts between the two products of a
# branch, by heads or by inner units (Shoeybi et al. 2019, section 3), and the
# vocabulary; `fsdp` cuts the width of the residual stream.
PLACEMENT = (
    (r"embeddings/token/embedding", PartitionSpec("tensor", "fsdp")),
    (r"embeddings/.*/embedding", PartitionSpec(None, "fsdp")),
    (r"layer_\d+/.*/(query|key|value|up)/kernel", PartitionSpec("fsdp", "tensor")),
    (r"layer_\d+/.*/(query|key|value|up)/bias", PartitionSpec("tensor")),
    (r"layer_\d+/.*/(output|down)/kernel", PartitionSpec("tensor", "fsdp")),
    (r"masked_lm/bias", PartitionSpec("tensor")),
    (r".*/kernel", PartitionSpec("fsdp")),
)
CUT_SIZES = {
    "fsdp": ("hidden_size",),
    "tensor": ("vocab_size", "num_heads", "ffn_size"),
}


def build(
    fields: dict[str, Any],
    precision: str,
    remat: str = "none",
    fused_attention: bool = False,
) -> Bert | Gpt:
    """The model with these fields, `family` aside; matrix products in `precision`.

    `remat` names what is kept for the backward pass, of `transformer.REMAT`;
    `fused_attention` is that of `attention.attention`.

    Raises:
      UserError: an unknown family, precision or field.
    """
    fields = dict(fields)
    family = fields.pop("family")
    for name, value, known in (
        ("model.family", family, FAMILIES),
        ("run.precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise UserError(f"{name}={value!r} is not known: use {' or '.join(known)}")
    try:
        return FAMILIES[family](
            **fields,
            dtype=PRECISIONS[precision],
            remat=remat,
            fused_attention=fused_attention,
        )
    except TypeError as error:
        raise UserError(f"model: {error}") from error


def check_cuts(fields: Mapping[str, Any], mesh: Mapping[str, int]) -> None:
    """Raises UserError where an axis of the mesh, by its size, cannot cut a model."""
    for axis, names in CUT_SIZES.items():
        for name in names:
            if fields[name] % mesh[axis]:
                larger = -(-fields[name] // mesh[axis]) * mesh[axis]
                raise UserError(
                    f"model.{name}={fields[name]} does not divide over run.mesh."
                    f"{axis}={mesh[axis]}: use a divisor of it there or, for a new "
                    f"model, model.{name}={larger}"
                )
