"""A family: each position sees the mean of the words so far, through one layer."""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal
from jax.sharding import PartitionSpec

from models.attention import dropout
from models.family import Family, TextFrame
from models.transformer import Prediction, depth, without_padding, word_table
from settings import Setting


class RunningMean(nn.Module):
    vocab_size: int
    max_positions: int
    num_layers: int
    hidden_size: int
    rate: float
    dtype: object
    remat: str
    fused_attention: bool

    @nn.compact
    def __call__(self, tokens, segment_ids=None, dropout_rows=None):
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        table = word_table(self.vocab_size, self.hidden_size, normal(0.1))
        hidden = table[tokens]
        for layer in range(self.num_layers):
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            seen = jnp.tril(same.astype(jnp.float32))
            mean = seen @ hidden / jnp.maximum(seen.sum(-1, keepdims=True), 1)
            dense = nn.Dense(self.hidden_size, dtype=self.dtype, name=f"layer_{layer}")
            key = None if dropout_rows is None else self.make_rng("dropout")
            hidden = jnp.tanh(dense(dropout(mean, self.rate, key, dropout_rows)))
        bias = without_padding(None, self.vocab_size)
        return {"hidden": hidden, "causal_lm": Prediction(hidden, table, bias)}


FAMILY = Family(
    module=RunningMean,
    inputs=("tokens", "segment_ids"),
    frames={"left": TextFrame("start", "delimiter", "extract", readout="last")},
    outputs={"causal_lm": {}},
    pooler=lambda _: "none",
    initializer=lambda _: normal(0.1),
    vocabulary=(r"token/embedding",),
    placement=((r"token/embedding", PartitionSpec("tensor", "fsdp")),),
    cut_sizes={"fsdp": ("hidden_size",)},
    pretraining_only=r"(?!)",
    depth=lambda fields, path: 0 if path.startswith("token/") else depth(fields, path),
    forward_flops=lambda fields, sizes, length, predicted: 2.0 * sum(sizes.values()),
    dropouts=("rate",),
    settings=(
        Setting("model.vocab_size", int, "Words of the table.", ">=1"),
        Setting("model.max_positions", int, "The longest text.", ">=1"),
        Setting("model.num_layers", int, "Layers.", ">=1"),
        Setting("model.hidden_size", int, "Width.", ">=1"),
        Setting("model.rate", float, "Of dropout.", ">=0 <1"),
    ),
    tiny={"vocab_size": 512, "max_positions": 32, "num_layers": 2, "hidden_size": 16},
)
