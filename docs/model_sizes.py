"""Writes the tables of docs/model_sizes.md: parameters, FLOPs, memory of every config.

python -m docs.model_sizes    (only shapes are computed, nothing is allocated)
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import models
from configs import gpt2
from models.transformer import logits
from objectives.cross_entropy import weighted_cross_entropy
from pretraining import PRETRAININGS

ROOT = Path(__file__).parent.parent
# Config -> label of the paper (and of the release), exact number of the released
# weights; of GPT-3, which has none, V d + C d + L (12 d^2 + 13 d) + 2 d.
PUBLISHED = {
    "bert_base": ("110M", 110_106_428),
    "bert_large": ("340M", 336_226_108),
    "gpt1": ("117M", 116_534_784),
    "gpt2_small": ("117M, 124M", 124_439_808),
    "gpt2_medium": ("345M, 355M", 354_823_168),
    "gpt2_large": ("762M, 774M", 774_030_080),
    "gpt2_xl": ("1542M, 1558M", 1_557_611_200),
    "gpt3_small": ("125M", 125_226_240),
    "gpt3_medium": ("350M", 355_871_744),
    "gpt3_large": ("760M", 760_300_032),
    "gpt3_xl": ("1.3B", 1_315_723_264),
    "gpt3_2.7b": ("2.7B", 2_651_553_280),
    "gpt3_6.7b": ("6.7B", 6_658_404_352),
    "gpt3_13b": ("13.0B", 12_853_386_240),
    "gpt3_175b": ("175.0B", 174_604_259_328),
}
# Layers, heads, width of a head. XL is printed with 24 heads, 13B with width 5,140.
GPT3 = [(12, 12, 64), (24, 16, 64), (24, 16, 96), (24, 16, 128), (32, 32, 80)]
GPT3 += [(32, 32, 128), (40, 40, 128), (96, 96, 128)]
RUNS = {  # config -> tokens, the source's rule, what it names
    "gpt3_175b": (300e9, "GPT-3", 3.14e23),
    "bert_base": (1e6 * 256 * 512, "ELECTRA", 6.43e19),
    "bert_large": (1e6 * 256 * 512, "ELECTRA", 1.917e20),
    "gpt1": (960_800 * 128 * 512, "ELECTRA", 3.97e19),
}


def all_configs() -> Iterator[ConfigDict]:
    """Every config of BERT and GPT in configs/, and the sizes of GPT-3."""
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        for size in gpt2.SIZES if path.stem == "gpt2" else [""]:
            config = import_module(f"configs.{path.stem}").get_config(size)
            if config.model.family in ("bert", "gpt"):
                yield config
    names = [name for name in PUBLISHED if name.startswith("gpt3")]
    for name, (layers, heads, head_dim) in zip(names, GPT3, strict=True):
        config, width = gpt2.get_config(), heads * head_dim
        config.name, config.data.sequence_length = name, 2048
        config.model.update(num_layers=layers, num_heads=heads, head_dim=head_dim)
        config.model.update(hidden_size=width, ffn_size=4 * width, max_positions=2048)
        yield config


def sizes(config: ConfigDict) -> dict[str, int]:
    """Parameters by path, without the rows that pad the vocabulary.

    layer_0 is traced alone and stands for all layers.
    """
    fields = config.model.to_dict() | {"num_layers": 1}
    batch = {"tokens": jnp.zeros((1, 2), jnp.int32)}

    def init(key: Any, batch: Any) -> Any:
        params = models.build(fields).init(key, batch)
        return models.cut_vocabulary(flatten_dict(params, sep="/"), fields)

    layers = {"layer_0": config.model.num_layers}
    flat = jax.eval_shape(init, jax.random.key(0), batch).items()
    return {path: leaf.size * layers.get(path.split("/")[0], 1) for path, leaf in flat}


def predictions(config: ConfigDict) -> int:
    """Positions of a row whose words are predicted."""
    way = PRETRAININGS[config.objective.name]
    return way.predicted(config.objective, config.data.sequence_length)


def forward_flops(config: ConfigDict) -> float:
    """Of a token."""
    fields, length = config.model.to_dict(), config.data.sequence_length
    family = models.family_of(fields)
    return family.forward_flops(fields, sizes(config), length, predictions(config))


def saved_bytes(config: ConfigDict, num_layers: int, rows: int) -> int:
    """What reverse-mode differentiation saves between forward and backward pass."""
    fields = config.model.to_dict() | {"num_layers": num_layers}
    model = models.build(fields)
    tokens = jnp.zeros((rows, config.data.sequence_length), jnp.int32)
    places = jnp.zeros((rows, predictions(config)), jnp.int32)
    batch = {"tokens": tokens, "predict_positions": places}

    def saved(key: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            out = model.apply(params, batch, key)
            (words, *_) = PRETRAININGS[config.objective.name].outputs
            scores = logits(out[words])
            return weighted_cross_entropy(scores, places, places + 1.0)[0]

        return jax.vjp(loss, model.init(key, batch))[1]

    leaves = jax.tree.leaves(jax.eval_shape(saved, jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def activation_bytes(config: ConfigDict) -> int:
    """Of one row: the differences of one and two rows, of one and two layers."""
    one, two = (saved_bytes(config, n, 2) - saved_bytes(config, n, 1) for n in (1, 2))
    return one + (config.model.num_layers - 1) * (two - one)


def size_row(config: ConfigDict) -> str:
    """Of the table of sizes; FLOPs and bytes in 1e9."""
    count, forward = sum(sizes(config).values()), forward_flops(config)
    label, exact = PUBLISHED.get(config.name, ("", 0))
    numbers = [forward, 3 * forward, 4 * count, 16 * count, activation_bytes(config)]
    cells = [f"`{config.name}`", f"{count:,}", f"{exact:,}" if exact else "", label]
    cells += [f"{config.data.sequence_length:,}"]
    cells += [f"{number / 1e9:,.{3 if number < 1e11 else 0}f}" for number in numbers]
    return f"| {' | '.join([*cells, config.model.precision])} |\n"


def run_row(config: ConfigDict) -> str:
    """Of the table of runs: training FLOPs counted here, by the source, as named."""
    tokens, rule, published = RUNS[config.name]
    if "max_predictions" in config.objective:
        config.data.sequence_length, config.objective.max_predictions = 512, 80
    forward, count = forward_flops(config), sum(sizes(config).values())
    look_up = 2 * config.model.vocab_size * config.model.hidden_size
    by_rule = 6 * count if rule == "GPT-3" else 2 * (forward + look_up)
    numbers = [tokens, 3 * forward * tokens, by_rule * tokens, published]
    cells = [f"{number:.3g}".replace("+", "") for number in numbers]
    return f"| {' | '.join([f'`{config.name}`', *cells, rule])} |\n"


if __name__ == "__main__":
    page = ROOT / "docs" / "model_sizes.md"
    parts = page.read_text().split("|---|\n")  # a table's rows end at an empty line
    rows = list(all_configs())
    tables = ["".join(map(size_row, rows))]
    tables += ["".join(run_row(row) for row in rows if row.name in RUNS)]
    for i, table in enumerate(tables, 1):
        parts[i] = table + "\n" + parts[i].partition("\n\n")[2]
    page.write_text("|---|\n".join(parts).rstrip("\n") + "\n")
