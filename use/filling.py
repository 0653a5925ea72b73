"""Filling in masked words."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import models
from errors import UserError
from models.transformer import logits
from use.run import Run


def fill_mask(run: Run, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each [MASK] in the text the `top` likeliest words, with their probabilities.

    Raises:
      UserError: the run cannot do it, no mask in the text, or a text that is too long.
    """
    run.check("fill_mask")
    if "masked_lm" not in models.outputs_of(run.config.model):
        raise UserError(
            f"fill_mask needs a masked LM head, and the model of {run.folder} has "
            "none: fine-tune it, or use predict.py embed"
        )
    ids, masked = encode_masked(run, text)
    found = []
    for row in mask_probabilities(run, ids, masked):
        best = np.argsort(row)[::-1][:top]
        found.append([(run.tokenizer.decode([i]), float(row[i])) for i in best])
    return found


def encode_masked(
    run: Run, text: str
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " P"]]:
    """`[CLS] text [SEP]`, the mask token's id at each [MASK], and where those are."""
    special = run.tokenizer.special_ids
    name = run.tokenizer.pieces[special["mask"]]
    if name not in text:
        raise UserError(f"no {name} in {text!r}: write {name} where a word is missing")
    parts = run.tokenizer.encode_batch(text.split(name))
    ids = [special["cls"], *parts[0]]
    for part in parts[1:]:
        ids += [special["mask"], *part]
    ids.append(special["sep"])
    if len(ids) > run.config.model.max_positions:
        raise UserError(
            f"the text has {len(ids)} tokens, but the model has "
            f"{run.config.model.max_positions} positions: shorten it ({text[:60]!r}...)"
        )
    tokens = np.asarray(ids, np.int32)
    return tokens, np.flatnonzero(tokens == special["mask"]).astype(np.int32)


def mask_probabilities(
    run: Run, ids: Int[np.ndarray, " T"], masked: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "P V"]:
    """Probabilities of the tokens at the masked positions."""
    batch = {"tokens": ids[None], "predict_positions": masked[None]}
    output = run.model.apply(run.params, jax.tree.map(jnp.asarray, batch))
    return np.asarray(jax.nn.softmax(logits(output["masked_lm"])[0], axis=-1))
