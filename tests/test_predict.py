"""Using a run: sampling rules, the cache, filling masks, and mistakes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import predict
import train
from configs import bert_mini, gpt_mini
from errors import UserError
from models.gpt import Gpt

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny GPT and a tiny BERT trained for two steps on forty documents."""
    folder = tmp_path_factory.mktemp("runs")
    words = "the model reads a short text and learns which word may follow it".split()
    texts = [" ".join(words[i % 5 :] + words[: i % 7]) + f" {i}." for i in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    patch = pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
    for module in (gpt_mini, bert_mini):
        config = module.get_config("tiny")
        config.data.update(corpus=str(folder / "corpus.txt"), heldout_fraction=0.3)
        config.data.tokenizer.vocab_size = 300
        config.optim.update(total_steps=2, warmup_steps=1)
        assert train.train(config, folder / config.name) == 0
    patch.undo()
    return SimpleNamespace(gpt=folder / "gpt_mini_tiny", bert=folder / "bert_mini_tiny")


def call(capsys, *arguments):
    status = predict.main(["predict.py", *map(str, arguments)])
    assert status == 0
    return capsys.readouterr().out


LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def drawn(**settings):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens = jax.vmap(lambda key: predict.sample_token(LOGITS, key, **settings)[0])(
        keys
    )
    return np.bincount(tokens, minlength=4) / len(keys)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (
            {"temperature": 0.5},
            np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365,
        ),
    ],
)
def test_sampling_follows_the_settings(settings, expected):
    shares = drawn(**settings)
    np.testing.assert_allclose(shares, expected, atol=0.03)
    assert (shares[np.asarray(expected) == 0] == 0).all()


def test_greedy_generation_equals_recomputing_everything_without_a_cache():
    model = Gpt(
        vocab_size=50,
        max_positions=16,
        num_layers=2,
        num_heads=2,
        head_dim=4,
        hidden_size=8,
        ffn_size=16,
        activation="gelu_tanh",
        pre_norm=True,
        norm_epsilon=1e-5,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        table_dropout=False,
        init_std=0.5,
        position_init_std=0.5,
        residual_scaling=True,
    )
    prompt = jnp.array([[3, 1, 4], [1, 5, 9]], jnp.int32)
    variables = model.init(jax.random.key(0), prompt, deterministic=True)
    banned = jnp.array([7], jnp.int32)
    found = predict.generate(
        model,
        variables["params"],
        prompt,
        jax.random.key(0),
        num_tokens=10,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        banned=banned,
    )
    tokens = jnp.pad(prompt, ((0, 0), (0, 10)))  # causal: what follows is not seen
    apply = jax.jit(lambda tokens: model.apply(variables, tokens, deterministic=True))
    for length in range(3, 13):
        logits = apply(tokens)["logits"][:, length - 1].at[:, banned].set(-jnp.inf)
        tokens = tokens.at[:, length].set(logits.argmax(-1))
    np.testing.assert_array_equal(found, tokens[:, 3:])
    assert 7 not in np.asarray(found)


def test_generate_is_a_function_of_its_seed(runs, capsys):
    line = ["generate", "--workdir", runs.gpt, "--prompt=the model", "--max_tokens=9"]
    one = call(capsys, *line, "--seed=1")
    assert one.startswith("the model")
    assert one == call(capsys, *line, "--seed=1")
    assert one != call(capsys, *line, "--seed=2")
    two = call(capsys, *line, "--samples=2", "--temperature=0")
    first, second = two.split("-" * 40 + "\n")[:2]
    assert first == second


def test_generate_needs_no_prompt(runs, capsys):
    assert call(capsys, "generate", "--workdir", runs.gpt, "--max_tokens=5")


def test_fill_mask_shows_candidates_with_probabilities(runs, capsys):
    out = call(
        capsys,
        "fill_mask",
        "--workdir",
        runs.bert,
        "--text=the [MASK] reads a [MASK]",
        "--top=3",
    )
    lines = out.splitlines()
    assert lines[0] == "the [MASK] reads a [MASK]"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "[MASK] 1",
        "[MASK] 2",
    ]
    shares = [float(word) for word in lines[1].split() if word.startswith("0.")]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)


def test_fill_mask_probabilities_sum_to_one(runs):
    run = predict.load_run(runs.bert)
    ids, masked = predict.encode_masked(run, "the [MASK] reads")
    special = run.tokenizer.special_ids
    assert ids[0] == special["cls"]
    assert ids[-1] == special["sep"]
    assert (ids[masked] == special["mask"]).all()
    probabilities = predict.fill_mask(run.model, run.params, ids, masked)
    assert probabilities.shape == (1, run.model.vocab_size)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-5)


def test_lines_come_from_a_file(runs, capsys, tmp_path):
    (tmp_path / "lines.txt").write_text("the [MASK]\na [MASK]\n")
    path = f"--input={tmp_path / 'lines.txt'}"
    out = call(capsys, "fill_mask", "--workdir", runs.bert, path)
    assert out.count("[MASK]:") == 2


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("bert", ["fill_mask", "--text=no mask"], r"no \[MASK\] in 'no mask'"),
        ("bert", ["fill_mask", "--text=" + "[MASK] " * 40], "positions"),
        ("bert", ["fill_mask", "--input=nowhere"], "--input=nowhere is not a file"),
        ("bert", ["generate"], "generate needs a causal_lm run"),
        ("gpt", ["fill_mask", "--text=[MASK]"], "fill_mask needs a masked_lm run"),
        ("gpt", ["generate", "--max_tokens=99"], "--max_tokens=99, but the model"),
        ("gpt", ["generate", "--top_p=1.5"], "--top_p=1.5 is out of range"),
    ],
)
def test_mistakes_are_named(runs, run, arguments, message):
    workdir = f"--workdir={getattr(runs, run)}"
    with pytest.raises(UserError, match=message):
        predict.main(["predict.py", *arguments, workdir])


def test_a_mistake_ends_in_status_2_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", "generate", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "is not a run folder" in done.stderr
