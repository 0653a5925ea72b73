"""The sizes that docs/model_sizes.md shows, against the published ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import models
from docs.model_sizes import (
    GPT3,
    PUBLISHED,
    all_configs,
    forward_flops,
    predictions,
    sizes,
)
from models.transformer import logits
from objectives.cross_entropy import weighted_cross_entropy
from training.optimizers import decay_mask

PAGE = Path(__file__).parents[1] / "docs" / "model_sizes.md"
CONFIGS = {config.name: config for config in all_configs()}
# Decayed, not decayed: by name in BERT's release, by rank in GPT-1's and nanoGPT.
DECAY = {
    "bert_base": (109_951_488, 154_940),
    "gpt1": (116_414_976, 119_808),
    "gpt2_small": (124_318_464, 121_344),
}


def test_parameters_are_the_published_ones_and_on_the_page():
    page = PAGE.read_text()
    assert PUBLISHED.keys() <= CONFIGS.keys()
    for name, config in CONFIGS.items():
        count = sum(sizes(config).values())
        if name in PUBLISHED:
            assert count == PUBLISHED[name][1], name
        assert f"| `{name}` | {count:,} |" in page, "run python -m docs.model_sizes"


def test_decayed_parameters_are_those_of_the_releases():
    for name, published in DECAY.items():
        by_path = sizes(CONFIGS[name])
        mask = decay_mask(by_path, CONFIGS[name].optim.no_decay)
        decayed = sum(size for path, size in by_path.items() if mask[path])
        assert (decayed, sum(by_path.values()) - decayed) == published, name


def test_flops_are_the_closed_form():
    """With the words padded to a multiple of 128, as they are computed."""
    config = CONFIGS["gpt3_175b"]
    layers, width = GPT3[-1][0], 12288
    products = layers * (12 * width**2 + 2 * width * 2048) + 50304 * width
    assert forward_flops(config) == 2 * products
    # BERT: 20 of 128 positions through the output, one through the pooler.
    head = 20 / 128 * (768 * 768 + 30592 * 768) + (768 * 768 + 768 * 2) / 128
    products = 12 * (12 * 768**2 + 2 * 768 * 128) + head
    assert abs(forward_flops(CONFIGS["bert_base"]) / (2 * products) - 1) < 1e-12


@pytest.mark.parametrize("name", ["gpt_mini", "bert_mini"])
def test_flops_are_those_that_xla_counts(name):
    """XLA's are a little more, since it counts norms, softmax and the like as well."""
    config = CONFIGS[name]
    model = models.build(config.model.to_dict())
    tokens = jnp.zeros((1, config.data.sequence_length), jnp.int32)
    places = jnp.zeros((1, predictions(config)), jnp.int32)
    batch = {"tokens": tokens, "predict_positions": places}

    def loss(params):
        scores = logits(model.apply(params, batch)[config.objective.name])
        return weighted_cross_entropy(scores, places, places + 1.0)[0]

    params = jax.eval_shape(lambda key: model.init(key, batch), jax.random.key(0))
    for function, passes in ((loss, 1), (jax.grad(loss), 3)):
        counted = jax.jit(function).lower(params).cost_analysis()["flops"]
        derived = passes * forward_flops(config) * tokens.size
        assert 1 < counted / derived < 1.03
