"""One model trained two ways in each update: halves, order, devices, use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import models
import train
import use
from configs import foreword_mixed
from data import windows
from errors import UserError
from pretraining import PRETRAININGS
from training import parallel
from training.metrics import read_metrics
from use import scoring

ROWS = 16
SINGLE = {"causal": ("causal_lm", "left"), "masked": ("masked_lm", "both")}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    words = "the model reads a short text and learns which word may follow it".split()
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(words, size)) + "." for size in range(9, 59)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))

    def make(share=0.5) -> ConfigDict:
        config = foreword_mixed.get_config("tiny")
        config.data.update(corpus=str(folder / "corpus.txt"), heldout_fraction=0.3)
        config.data.batch_size = ROWS
        config.objective.causal_share = share
        config.data.tokenizer.vocab_size = 300
        config.model.update(num_layers=1, residual_dropout=0.1)
        config.optim.update(total_steps=3, warmup_steps=1, eval_every_steps=3)
        config.run.log_every_steps = 1
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
        yield make


@pytest.fixture(scope="module")
def data(config_of):
    return train.open_data(config_of(0.25), parallel.make_mesh(1))


@pytest.fixture(scope="module")
def trained(config_of, tmp_path_factory):
    """The folders of the same run by its devices, on one of them in two parts."""
    folder = tmp_path_factory.mktemp("runs")
    for devices in (1, 8):
        config = config_of()
        config.run.mesh.data = devices
        config.run.micro_batches = 2 if devices == 1 else 1
        train.train(config, folder / str(devices))
    return {devices: folder / str(devices) for devices in (1, 8)}


def single_examples(config, data, name, split):
    way, length = PRETRAININGS[SINGLE[name][0]], config.data.sequence_length
    return way.examples(config.objective, data.tokenizer, length)(split)


@pytest.mark.parametrize("name", SINGLE)
def test_each_half_has_the_loss_of_its_own_way(config_of, data, name):
    config, batch = config_of(0.25), jax.tree.map(jnp.asarray, data.batches[0][0])
    output, sides = SINGLE[name]
    model = models.build(config.model)
    params = model.init(jax.random.key(0), batch["masked"])
    own = models.build(models.seeing(config.model, sides))
    expected = PRETRAININGS[output].loss_terms(None, own, 1)(params, batch[name], None)
    found = PRETRAININGS["mixed"].loss_terms(None, model, 1)(params, batch, None)
    assert [*found] == ["causal_lm", "masked_lm"]
    assert jax.tree.leaves(found[output]) == jax.tree.leaves(expected[output])


def test_rows_are_those_of_the_share(data):
    batch = data.batches[0][0]
    assert {name: len(part["tokens"]) for name, part in batch.items()} == {
        "causal": 4,
        "masked": 12,
    }


@pytest.mark.parametrize("name", SINGLE)
def test_held_out_text_is_that_of_the_single_ways(config_of, data, name):
    """All of it once, though one half ends before the other."""
    examples = single_examples(config_of(), data, name, data.heldout)
    (expected,) = windows.evaluation_batches(examples, batch_size=len(examples))
    batches = [*data.heldout_batches["loss"]]
    assert len(batches) == -(-len(examples) // 4) > -(-len(examples) // 12)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)[name]
    assert joined.keys() == expected.keys()
    for key, array in joined.items():
        np.testing.assert_array_equal(array[: len(examples)], expected[key])
        assert not array[len(examples) :].any()


def test_batches_are_functions_of_seed_and_step_for_any_hosts(config_of, data):
    examples = {
        name: single_examples(config_of(), data, name, data.train) for name in SINGLE
    }

    def batches(visits=0, seed=0, host=0, hosts=1):
        return windows.training_batches(
            examples,
            batch_size={"causal": 4, "masked": 12},
            seed=seed,
            visits_before=visits,
            host_index=host,
            host_count=hosts,
        )

    def same(one, other):
        return jax.tree.all(jax.tree.map(np.array_equal, one, other))

    whole, halves = batches(), [batches(host=host, hosts=2) for host in range(2)]
    for step in (5, 0, 1000):
        assert same(whole[step], data.batches[0][step])
        parts = [part[step] for part in halves]
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        assert same(joined, whole[step])
        assert same(batches(visits=3 * ROWS)[step], whole[step + 3])
        assert not same(batches(seed=1)[step], whole[step])
    # Each in an order of its own.
    small = [part["tokens"][:, 1:9] for part in whole[0].values()]
    assert not np.array_equal(small[0], small[1][:4])


def test_eight_devices_or_parts_of_a_batch_give_the_losses_of_one(trained):
    runs = [read_metrics(folder / "metrics.jsonl") for folder in trained.values()]
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"train/learning_rate"}:
            if "second" not in name and "wait" not in name:
                np.testing.assert_allclose(other[name], one[name], rtol=2e-5)
    last = runs[0][-1]
    told = ("bits_per_byte", "masked_loss", "masked_accuracy", "causal_lm_loss")
    assert {f"eval/{name}" for name in told} <= last.keys()
    assert last["eval/loss"] == pytest.approx(
        last["eval/causal_lm_loss"] + last["eval/masked_lm_loss"]
    )


def test_a_run_is_used_both_ways(trained):
    """Whichever sides its config says that it sees."""
    run = use.open_run(trained[1])
    assert run.commands == ("generate", "fill_mask", "embed", "inspect")
    found = []
    for sides in ("left", "both"):
        config = ConfigDict(run.config.to_dict())
        config.model.sees = sides
        run = dataclasses.replace(run, config=config)
        written = use.generate(run, "the model", max_tokens=5)
        found.append((written, use.fill_mask(run, "the [MASK] reads a text")))
    assert found[0] == found[1] and all(found[0])
    with pytest.raises(UserError, match=r"--parallel is for a run of .*diffusion"):
        use.generate(run, "the model", parallel=2)
    found = {}
    for way in ("causal", "masked"):
        assert scoring.way_of(run, way) == way
        texts = scoring.whole_texts(run, way, ["the model reads"], ["here"])
        found[way] = scoring.log_probabilities(run, way, texts).sums[0]
    assert found["causal"] != found["masked"]


def test_rows_of_a_half_that_devices_cannot_share(config_of):
    mesh = parallel.make_mesh(8)
    with pytest.raises(UserError, match=r"=16, with 4 causal rows, does not .* 8 for"):
        train.open_data(config_of(0.25), mesh)
