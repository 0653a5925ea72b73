"""GPT-1 as OpenAI released it: the folder `model` of finetune-transformer-lm.

All arrays lie end to end in ten .npy files; params_shapes.json has their shapes, the
positions first, then the words, then the layers.
"""

import operator
from functools import partial
from pathlib import Path

import numpy as np

from configs import gpt1
from data import tokenizers
from errors import UserError
from formats.names import ARCHITECTURES
from formats.source import Source, Weight, read_json

HEAD_DIM = 64
# The arrays of a layer in the order in which OpenAI's code makes them.
OPENAI_LAYER = (
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_1.weight",
    "ln_1.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
)


def read_openai(folder: Path) -> Source:
    """Reads the folder; its tokenizer files lie there, too.

    Raises:
      UserError: missing or damaged files, or a number of arrays that is no GPT-1's.
    """
    found = read_json(folder / "params_shapes.json")
    try:
        shapes = [tuple(map(operator.index, shape)) for shape in found]
    except TypeError as error:
        raise UserError(
            f"{folder}/params_shapes.json is no list of shapes: {error}"
        ) from error
    layers, rest = divmod(len(shapes) - 2, len(OPENAI_LAYER))
    if rest:
        raise UserError(
            f"{folder}/params_shapes.json has {len(shapes)} shapes, not 2 + "
            f"{len(OPENAI_LAYER)} a layer"
        )
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [f"h.{i}.{name}" for i in range(layers) for name in OPENAI_LAYER]
    try:
        shards = [np.load(folder / f"params_{n}.npy") for n in range(10)]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: params_0.npy to params_9.npy: {error}") from error
    flat = np.concatenate([shard.ravel() for shard in shards])
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    if len(flat) != ends[-1]:
        raise UserError(
            f"{folder} has {len(flat):,} numbers in params_0.npy to params_9.npy, but "
            f"params_shapes.json {int(ends[-1]):,}"
        )
    weights = {}
    parts = np.split(flat, ends[:-1])
    for name, shape, array in zip(names, shapes, parts, strict=True):
        bare = shape[-2:]  # less the kernels' leading 1
        weights[name] = Weight(bare, partial(np.reshape, array, bare))
    max_positions, hidden_size = shapes[0]
    if hidden_size % HEAD_DIM or not hidden_size:
        raise UserError(
            f"{folder}/params_shapes.json has the width {hidden_size}, which is not "
            f"divisible by heads of {HEAD_DIM}"
        )
    fields = gpt1.get_config().model.to_dict() | {
        "vocab_size": shapes[1][0],
        "max_positions": max_positions,
        "num_layers": layers,
        "num_heads": hidden_size // HEAD_DIM,
        "hidden_size": hidden_size,
        "ffn_size": 4 * hidden_size,
    }
    architecture = next(a for a in ARCHITECTURES if a.name == "OpenAIGPTLMHeadModel")
    tokenizer = tokenizers.load(str(folder))
    return Source(architecture, fields, (), 0.1, weights, (), tokenizer)
