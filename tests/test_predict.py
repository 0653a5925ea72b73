"""Using a run: sampling rules, the cache, filling masks, tasks, vectors, mistakes."""

import functools
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import convert
import finetune
import models
import predict
import train
import use
from configs import bert_mini, foreword_masked, gpt_mini
from configs.finetune import choice, glue, similarity, squad, tagging
from data import cache, inputs, labelled, tokenizer_training, tokenizers
from data.labelled import Record
from errors import UserError
from models.transformer import logits
from use import (
    embedding,
    filling,
    generation,
    inspection,
    sampling,
    scoring,
    unmasking,
)

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
        config.model.num_layers = 1
        config.run.mesh.data = 1
        assert train.train(config, folder / config.name).exit_status == 0
    yield SimpleNamespace(
        folder=folder, gpt=folder / "gpt_mini_tiny", bert=folder / "bert_mini_tiny"
    )
    patch.undo()


def call(capsys, *arguments):
    status = predict.main(["predict.py", *map(str, arguments)])
    assert status == 0
    return capsys.readouterr().out


LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def drawn(**settings):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens = jax.vmap(lambda key: sampling.sample_token(LOGITS, key, **settings)[0])(
        keys
    )
    return np.bincount(tokens, minlength=4) / len(keys)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
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


@pytest.mark.parametrize("parallel", [1, 3, 5])
def test_unmasking_keeps_the_surest_of_all_masked_words(parallel):
    """Written out, turn by turn; nothing banned is drawn."""
    fields = foreword_masked.get_config("tiny").model.to_dict()
    model = models.build(fields | {"vocab_size": 50, "init_std": 0.5})
    prompt, mask, banned = np.array([[3, 1, 4], [1, 5, 9]]), 4, [4, 7]
    params = model.init(jax.random.key(0), {"tokens": jnp.asarray(prompt)})
    found = unmasking.unmask_tokens(
        model,
        params,
        jnp.asarray(prompt),
        jax.random.key(0),
        num_tokens=5,
        mask=mask,
        parallel=parallel,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        banned=jnp.array(banned),
    )
    tokens = np.pad(prompt, ((0, 0), (0, 5)), constant_values=mask)
    is_masked = np.arange(8)[None] >= np.array([[3], [3]])
    apply = jax.jit(lambda tokens: model.apply(params, {"tokens": tokens})["masked_lm"])
    while is_masked.any():
        scores = np.array(logits(apply(jnp.asarray(tokens))))
        scores[..., banned] = -np.inf
        shares = np.asarray(jax.nn.softmax(scores, axis=-1))
        for row in range(2):
            order = np.argsort(-np.where(is_masked[row], shares[row].max(-1), -1))
            for place in order[: min(parallel, is_masked[row].sum())]:
                tokens[row, place] = shares[row, place].argmax()
                is_masked[row, place] = False
    np.testing.assert_array_equal(found, tokens[:, 3:])


def test_greedy_generation_equals_recomputing_everything_without_a_cache():
    fields = gpt_mini.get_config("tiny").model.to_dict()
    fields |= {"vocab_size": 50, "init_std": 0.5, "position_init_std": 0.5}
    model = models.build(fields)
    prompt = jnp.array([[3, 1, 4], [1, 5, 9]], jnp.int32)
    params = model.init(jax.random.key(0), {"tokens": prompt})
    banned = jnp.array([7], jnp.int32)
    found = generation.generate_tokens(
        model,
        params,
        prompt,
        jax.random.key(0),
        num_tokens=10,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        banned=banned,
    )
    tokens = jnp.pad(prompt, ((0, 0), (0, 10)))  # causal: what follows is not seen
    apply = jax.jit(lambda tokens: model.apply(params, {"tokens": tokens})["causal_lm"])
    for length in range(3, 13):
        scores = logits(apply(tokens))[:, length - 1].at[:, banned].set(-jnp.inf)
        tokens = tokens.at[:, length].set(scores.argmax(-1))
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


def test_help_shows_the_defaults(capsys):
    for command, defaults in (
        ("generate", f"[{generation.MAX_TOKENS}, [1] [0.8] [0] [1.0]"),
        ("tag", "[table]"),
    ):
        with pytest.raises(SystemExit):
            predict.main(["predict.py", command, "--help"])
        shown = capsys.readouterr().out
        assert all(default in shown for default in defaults.split())


def test_generate_needs_no_prompt(runs, capsys):
    assert call(capsys, "generate", "--workdir", runs.gpt, "--max_tokens=5")


def test_generate_fits_the_model_and_slides_where_more_is_asked_for(runs, capsys):
    run, prompt = use.open_run(runs.gpt), "the model reads"
    limit = run.config.model.max_positions
    room = limit - 1 - len(run.tokenizer.encode_batch([prompt])[0])
    (fits,) = use.generate(run, prompt, temperature=0.0)
    assert fits == use.generate(run, prompt, temperature=0.0, max_tokens=room)[0]
    assert not capsys.readouterr().err
    (longer,) = use.generate(run, prompt, temperature=0.0, max_tokens=3 * limit)
    assert longer.startswith(fits) and len(longer) > len(fits)
    assert f"the model has {limit} positions" in capsys.readouterr().err
    assert use.generate(run, "the model " * limit, max_tokens=2)  # reads its end


def test_a_sliding_window_reads_the_last_half_again():
    seen = []

    def draw(window, key, *, num_tokens):
        """Counts on from the last token."""
        seen.append((np.asarray(window[0]).tolist(), num_tokens))
        return window[:, -1:] + 1 + np.arange(num_tokens)[None]

    settings = {"key": jax.random.key(0), "limit": 8, "end": 17}
    draw_windows = functools.partial(generation.generate_windows, draw, **settings)
    found = draw_windows(np.array([[1, 2, 3]]), num_tokens=10)
    assert found.tolist() == [[*range(4, 14)]]
    assert seen == [([1, 2, 3], 5), ([5, 6, 7, 8], 4), ([9, 10, 11, 12], 4)]
    found = draw_windows(np.arange(9)[None], num_tokens=2)  # a prompt that is too long
    assert found.tolist() == [[9, 10]] and seen[-1] == ([5, 6, 7, 8], 2)
    found = draw_windows(np.array([[1], [9]]), num_tokens=99)
    assert found.shape == (2, 19)  # until each has its end of text


@pytest.fixture(scope="module", params=[*tokenizer_training.ALGORITHMS, "gpt1"])
def joining(request):
    """A tokenizer that knows nine words."""
    if request.param == "gpt1":
        return tokenizers.load(str(ROOT / "tests/golden/openai_gpt"))
    return tokenizer_training.train(
        map(sentence, range(30)),
        algorithm=request.param,
        vocab_size=330,
        lowercase=True,
        strip_accents=False,
        unicode_form="none",
        special_tokens=tokenizers.BERT_SPECIAL_TOKENS,
        sample_bytes=100_000,
    )


@pytest.mark.parametrize("prompt", ["The model reads", "the model reads ", "The", ""])
def test_what_follows_a_prompt_is_joined_as_decoding_joins_it(joining, prompt):
    text = "the model reads a short text"
    pieces, new = joining.encode_batch([prompt, text[len(prompt) :]])
    if prompt and not prompt.endswith(" "):
        new = joining.encode_batch([text])[0][len(pieces) :]
    added = generation.continuation(joining, prompt, pieces.tolist(), new.tolist())
    if joining.decode(pieces)[-1:] == " ":  # the space is a piece of the prompt
        added = added.removeprefix(" ")
    assert prompt + added == prompt + text[len(prompt) :]
    # and what goes on with a word
    *before, last = pieces.tolist() or [0]
    added = generation.continuation(joining, "x", before, [last])
    assert joining.decode(before) + added == joining.decode([*before, last])


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


def test_fill_mask_without_its_head_is_the_users_mistake(runs, tmp_path):
    config = json.loads((runs.bert / "config.json").read_text())
    config["model"]["masked_lm_head"] = False
    shutil.copytree(runs.bert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["fill_mask", f"--workdir={tmp_path}", "--text=a [MASK]"]
    with pytest.raises(UserError, match=r"has none: .*predict\.py embed"):
        predict.main(["predict.py", *arguments])


def test_fill_mask_probabilities_sum_to_one(runs):
    run = use.open_run(runs.bert)
    ids, masked = filling.encode_masked(run, "the [MASK] reads")
    special = run.tokenizer.special_ids
    assert ids[0] == special["cls"]
    assert ids[-1] == special["sep"]
    assert (ids[masked] == special["mask"]).all()
    probabilities = filling.mask_probabilities(run, ids, masked)
    words = probabilities[:, : run.config.model.vocab_size]
    assert not probabilities[:, run.config.model.vocab_size :].any()
    np.testing.assert_allclose(words.sum(), 1.0, rtol=1e-5)


LEARNT = {*tokenizer_training.ALGORITHMS} - {*tokenizer_training.COUNTED}


@pytest.mark.parametrize(
    ("algorithm", "text", "shown"),
    [
        ("symbols", "7 12 [MASK] 7", "7 12 12 7"),
        ("characters", "C(=O)[MASK]C\nN", "C(=O)NC\nN"),
    ],
)
def test_a_mask_among_symbols_is_one_of_them(algorithm, text, shown):
    tokenizer = tokenizer_training.train(
        ["7 12 3 7 C(=O)N\n"],
        algorithm=algorithm,
        vocab_size=40,
        lowercase=False,
        strip_accents=False,
        unicode_form="none",
        special_tokens=tokenizers.BERT_SPECIAL_TOKENS,
        sample_bytes=100,
    )
    found = filling.pieces_around_masks(tokenizer, text.split("[MASK]"))
    (expected,) = tokenizer.encode_batch([shown])
    (place,) = np.flatnonzero(found == tokenizer.special_ids["mask"])
    expected[place] = tokenizer.special_ids["mask"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("algorithm", sorted(LEARNT))
def test_around_a_mask_are_the_pieces_of_the_whole_text(algorithm):
    """As training shows them: a word's own piece, with its space, is the mask."""
    texts = [
        "The model (it reads a text) learns,  the word\nmay follow it.",
        "대한민국의 봄날은 간다. 값싼 닭고기를 먹었다",
        "日本語のテキスト、がぎぐげご。カタカナも。",
    ]
    tokenizer = tokenizer_training.train(
        [*map(sentence, range(30)), texts[0] * 20, *texts],
        algorithm=algorithm,
        vocab_size=400,
        lowercase=False,
        strip_accents=False,
        unicode_form="none",
        special_tokens=tokenizers.BERT_SPECIAL_TOKENS,
        sample_bytes=100_000,
    )
    count = 0
    for text in texts:
        ((ids, spans),) = tokenizer.encode_batch_offsets([text])
        alone = {end for begin, end in spans if not text[begin:end].strip()}
        for word in re.finditer(r"\w+", text):
            begin, end = word.span()
            (own,) = np.nonzero((spans[:, 1] > begin) & (spans[:, 0] < end))
            if len(own) == 1 and begin not in alone:
                expected = ids.copy()
                expected[own] = tokenizer.special_ids["mask"]
                found = filling.pieces_around_masks(
                    tokenizer, [text[:begin], text[end:]]
                )
                np.testing.assert_array_equal(found, expected, word[0])
                count += 1
    assert count > 5
    # what merges with every neighbour is encoded apart
    parts = ["the ", " and un", "☃", "able"]
    found = filling.pieces_around_masks(tokenizer, parts)
    assert (found == tokenizer.special_ids["mask"]).sum() == 3


def test_fill_mask_knows_what_a_run_learnt_by_heart(runs, tmp_path):
    words = "one two three four five six seven eight nine ten".split()
    texts = [" ".join((words * 4)[i % 10 :][: 12 + i // 10]) for i in range(100)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    config = bert_mini.get_config("tiny")
    config.data.update(corpus=str(tmp_path / "corpus.txt"), heldout_fraction=0.2)
    config.data.tokenizer.update(algorithm="sentencepiece_unigram", vocab_size=400)
    config.optim.update(total_steps=1000, warmup_steps=20, learning_rate=1e-2)
    config.optim.eval_every_steps = config.run.log_every_steps = 1000
    config.model.num_layers = config.run.mesh.data = 1
    train.train(config, tmp_path / "run")
    run = use.open_run(tmp_path / "run")
    masked = [" ".join(words).replace(word, "[MASK]") for word in words]
    found = [use.fill_mask(run, text, top=1) for text in masked]
    assert [best for (((best, _),),) in found] == words


def test_lines_come_from_a_file(runs, capsys, tmp_path):
    (tmp_path / "lines.txt").write_text("the [MASK]\na [MASK]\n")
    path = f"--input={tmp_path / 'lines.txt'}"
    out = call(capsys, "fill_mask", "--workdir", runs.bert, path)
    assert out.count("[MASK]:") == 2


def test_blank_lines_have_a_row_or_are_passed_over(runs, capsys, tmp_path):
    path, target = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    path.write_text("the model\n\n \na text\n")
    line = ["embed", f"--workdir={runs.bert}", f"--input={path}"]
    found = read_json_lines(call(capsys, *line))
    assert [row["place"] for row in found] == [f"{path}, line {n}" for n in range(1, 5)]
    assert [row["embedding"] is None for row in found] == [False, True, True, False]
    predict.main(["predict.py", *line, f"--output={target}"])
    assert "line 3: no text, no embedding (NaN)" in capsys.readouterr().err
    vectors = np.load(target)
    assert np.isnan(vectors).all(1).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(vectors[0], np.float32(found[0]["embedding"]))
    found = read_json_lines(call(capsys, *line, "--skip_blank"))
    assert [row["place"] for row in found] == [f"{path}, line {n}" for n in (1, 4)]
    path.write_text("the [MASK]\n\na [MASK]\n")
    out = call(capsys, "fill_mask", "--workdir", runs.bert, f"--input={path}")
    assert [row == "" for row in out.splitlines()] == [False, False, True, False, False]
    path.write_text("\n")
    predict.main(["predict.py", *line, "--skip_blank"])
    assert capsys.readouterr().err == f"{path} holds no text\n"
    predict.main(["predict.py", *line, "--skip_blank", f"--output={target}"])
    assert np.load(target).shape == (0, vectors.shape[1])
    capsys.readouterr()


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_layers_and_single_pieces(runs, name):
    """All layers are those one by one; pieces are without their frame, which the mean
    counts; a text's vectors do not depend on its batch."""
    run = use.open_run(getattr(runs, name))
    texts = [("1", "the model reads"), ("2", ""), ("3", "a short text and more of it")]

    def embedded(texts, *how):
        return [*use.embed(run, texts, *how)]

    whole = embedded(texts, "none", "all")
    layers = run.config.model.num_layers + 1
    width = run.config.model.hidden_size
    for (_, text), one in zip(texts, whole, strict=True):
        (ids,) = run.tokenizer.encode_batch([text])
        assert one.pieces == [run.tokenizer.pieces[i] for i in ids]
        assert one.vectors.shape == (layers, len(ids), width)
    for layer in range(layers):
        for one, other in zip(embedded(texts, "none", str(layer)), whole, strict=True):
            np.testing.assert_array_equal(one.vectors, other.vectors[layer])
    for one, other in zip(embedded(texts, "none"), whole, strict=True):
        np.testing.assert_array_equal(one.vectors, other.vectors[-1])
    (alone,) = embedded(texts[:1], "none")
    np.testing.assert_allclose(alone.vectors, whole[0].vectors[-1], atol=1e-5)
    (pooled,) = embedded(texts[:1], "mean", "all")
    assert pooled.vectors.shape == (layers, width)
    (last,) = embedded(texts[:1], "mean")
    np.testing.assert_array_equal(pooled.vectors[-1], last.vectors)


def test_forms_of_embeddings(runs, capsys, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("the model\na text of more words\n")
    line = ["embed", f"--workdir={runs.bert}", f"--input={path}", "--pooling=none"]
    rows = read_json_lines(call(capsys, *line))
    assert [len(row["pieces"]) == len(row["embedding"]) for row in rows] == [True] * 2
    call(capsys, *line, f"--output={tmp_path / 'x.npz'}")
    with np.load(tmp_path / "x.npz") as found:
        assert found.files == ["0", "1", "places"]
        assert found["places"].tolist() == [row["place"] for row in rows]
        for number, row in enumerate(rows):
            expected = np.float32(row["embedding"])
            np.testing.assert_array_equal(found[str(number)], expected)
    call(capsys, *line, f"--output={tmp_path / 'x.parquet'}")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == rows
    call(capsys, *line[:3], f"--output={tmp_path / 'y.parquet'}")
    (first, _) = pq.read_table(tmp_path / "y.parquet")["embedding"].to_pylist()
    assert first == read_json_lines(call(capsys, *line[:3]))[0]["embedding"]


def test_neighbours(runs, capsys, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("the model\na text of more words\nthe model\n")
    line = ["embed", f"--workdir={runs.bert}", f"--input={path}", "--neighbours=1"]
    shown = call(capsys, *line).splitlines()
    assert shown[:2] == ["the model", "   1.000  the model"] == shown[4:]
    vectors = np.float32([[1, 0], [2, 0.1], [-1, 0], [np.nan, np.nan]])
    nearest, nearness = embedding.neighbours(vectors, 2)
    assert nearest[0].tolist() == [1, 2] and nearest[2].tolist() == [1, 0]
    np.testing.assert_allclose(nearness[0], [2 / np.hypot(2, 0.1), -1], rtol=1e-6)
    assert (nearness[3] == -np.inf).all()
    path.write_text("the model\n\na text of more words\n")
    shown = call(capsys, *line[:3], "--neighbours=5").splitlines()
    assert [text.strip().split("  ")[-1] for text in shown] == [
        "the model",
        "a text of more words",
        "",
        "a text of more words",
        "the model",
    ]


TEXT = "the model reads a short text"


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_what_is_inspected_is_what_the_model_does(runs, name):
    """The words are those of fill_mask, or those that scoring counts."""
    run = use.open_run(getattr(runs, name))
    found = inspection.inspect(run, TEXT)
    tokens, fields = found["tokens"], run.config.model
    shape = (fields.num_layers, fields.num_heads, len(tokens), len(tokens))
    attention = np.array(found["attention"])
    assert attention.shape == shape
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-3)
    is_later = np.triu(np.ones(shape[2:], bool), 1)
    assert bool(attention[..., is_later].any()) == (name == "bert")
    own = [one and one["probability"] for one in found["expected"]]
    if name == "bert":
        assert found["expects"] == "masked" and own[0] is None is own[-1]
        asked = TEXT.replace("short", "[MASK]")
        ((best, *_),) = use.fill_mask(run, asked, top=5)
        place = tokens.index("short") if "short" in tokens else None
        if place is not None:
            assert found["expected"][place]["best"][0] == [
                best[0],
                pytest.approx(best[1]),
            ]
    else:
        assert found["expects"] == "causal" and own[0] is None
        (text,) = scoring.whole_texts(run, "causal", [TEXT], ["x"])
        scores = scoring.log_probabilities(run, "causal", [text])
        np.testing.assert_allclose(np.log(own[1:]).sum(), scores.sums[0], rtol=1e-4)
    assert found["mix"] == []


def test_the_page_is_opened_and_clicked(runs, capsys, tmp_path, opened):
    """A click on a word, a layer, a head: what a browser shows then."""
    path = tmp_path / "page.html"
    line = ["inspect", "--workdir", runs.bert, f"--text={TEXT} </script>"]
    assert "open it in a browser" in call(capsys, *line, f"--output={path}")
    found = inspection.inspect(use.open_run(runs.bert), f"{TEXT} </script>")
    clicks = "document.querySelectorAll('.token')[3].click();"
    clicks += "document.querySelector('#layers button:last-child').click();"
    clicks += "document.querySelectorAll('#grid canvas')[1].click();"
    page = path.read_text()
    assert "http" not in page.replace(str(runs.bert), "")
    path.write_text(page.replace("</body>", f"<script>{clicks}</script></body>"))
    shown = opened(path)
    buttons = re.findall(r'<button class="token([^"]*)"[^>]*>([^<]*)</button>', shown)
    assert [html.unescape(text) for _, text in buttons] == found["tokens"]
    assert [i for i, (kind, _) in enumerate(buttons) if "chosen" in kind] == [3]
    best, share = found["expected"][3]["best"][0]
    bars = shown.split('<div id="bars">')[1]
    assert f">{html.escape(best, quote=False)}</span>" in bars.split("</div>")[0]
    percent = f"{100 * share:.{1 if share >= 0.1 else 2}f} %"
    assert percent in bars.split("</div>")[0]
    chosen = re.findall(r'<button class="pick on"[^>]*data-value="(-?\d+)"', shown)
    assert chosen == ["0", "1"]  # the head of the grid: layer 0, head 1


def test_a_picture_of_a_text(runs, capsys, tmp_path):
    for name in ("bert", "gpt"):
        path = tmp_path / f"{name}.png"
        line = ["inspect", "--workdir", getattr(runs, name), f"--text={TEXT}"]
        call(capsys, *line, f"--output={path}")
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_of_which_words_a_state_knows(runs):
    for folder, knows in ((runs.gpt, np.triu), (runs.bert, lambda ones: ones)):
        tokens, changes = inspection.influence(use.open_run(folder), "the model reads")
        size = len(tokens)
        assert changes.shape[:2] == (size, size)
        changed = np.abs(changes).max(axis=-1) > 1e-6
        np.testing.assert_array_equal(changed, knows(np.ones((size, size), bool)))
    with pytest.raises(UserError, match="has 0 tokens, and 1 to 128"):
        inspection.influence(use.open_run(runs.bert), "")


def test_pieces_that_the_tokenizer_does_not_know_are_told(runs, capsys):
    bert = use.open_run(runs.bert)
    known, strange = "the [MASK] reads", "모델은 [MASK] 읽는다"
    use.fill_mask(bert, known)
    list(use.embed(bert, [("x", "the model")]))
    assert "unknown" not in capsys.readouterr().err
    use.fill_mask(bert, strange)
    assert "100.0% of the pieces are unknown to the tok" in capsys.readouterr().err
    list(use.embed(bert, [("x", "the model"), ("y", "모델은 읽는다")]))
    assert "50.0% of the pieces are unknown to the tok" in capsys.readouterr().err


def test_functions_give_what_the_commands_print(runs, capsys, tmp_path):
    gpt, bert = use.open_run(runs.gpt), use.open_run(runs.bert)
    line = ["generate", "--workdir", runs.gpt, "--prompt=the model", "--seed=1"]
    (text,) = use.generate(gpt, "the model", max_tokens=9, seed=1)
    assert call(capsys, *line, "--max_tokens=9") == f"the model{text}\n"
    assert len(use.generate(gpt, "the", max_tokens=2, samples=3)) == 3
    asked = "the [MASK] reads"
    ((best, second),) = use.fill_mask(bert, asked, top=2)
    line = ["fill_mask", "--workdir", runs.bert, "--top=2", f"--text={asked}"]
    shown = "   ".join(f"{word} {share:.3f}" for word, share in (best, second))
    assert call(capsys, *line) == f"{asked}\n  [MASK]: {shown}\n"
    ((place, _, vector),) = use.embed(bert, [("a place", asked)], "first")
    line = ["embed", "--workdir", runs.bert, "--pooling=first", f"--text={asked}"]
    (printed,) = read_json_lines(call(capsys, *line))
    assert place == "a place" and printed["embedding"] == vector.tolist()
    for run, command, others in (
        (gpt, "fill_mask", "generate or embed or inspect"),
        (bert, "generate", "fill_mask or embed or inspect"),
        (bert, "classify", "fill_mask or embed or inspect"),
    ):
        with pytest.raises(UserError, match=f"{command} is not for .*py {others}, or"):
            run.check(command)
    with pytest.raises(UserError, match="generate is not for"):
        use.generate(bert, "the")
    with pytest.raises(UserError, match="fill_mask is not for"):
        use.fill_mask(gpt, "the [MASK]")


@pytest.mark.parametrize(
    ("case", "commands"),
    [
        ("gpt2", ("generate", "embed", "inspect")),
        ("bert_erf", ("fill_mask", "embed", "inspect")),
        ("bert_tagging", ("tag", "embed", "inspect")),
    ],
)
def test_an_imported_run_is_used(case, commands, tmp_path):
    convert.import_model(str(ROOT / "tests/golden" / case), tmp_path / "run")
    run = use.open_run(tmp_path / "run")
    assert run.commands == commands
    ((_, _, vector),) = use.embed(run, [("x", "the run")])
    assert np.isfinite(vector).all() and vector.any()
    if case == "gpt2":
        assert len(use.generate(run, "the", max_tokens=3)) == 1
    elif case == "bert_erf":
        assert len(use.fill_mask(run, "the [MASK]", top=3)[0]) == 3
    else:
        record = Record({"words": ["the", "run"]}, "x")
        ((_, found),) = use.predict(run, [record])
        assert len(found["tags"]) == 2 and {*found["tags"]} <= {*run.labels}


# Tasks


def sentence(number):
    words = "the model reads a short text and learns which word may follow it".split()
    return " ".join(words[number % 5 :][: 3 + number % 6])


def task_records(kind, count):
    """As files have them; the later ones are the test file."""
    for i in range(count):
        if kind == "tagging":
            words = sentence(i).split()
            yield {
                "words": words,
                "tags": ["B-X" if len(w) > 4 else "O" for w in words],
            }
        elif kind == "span":
            context = " ".join(sentence(i + j) for j in range(4))
            word = context.split()[i % 3]
            answers = {"text": [word], "answer_start": [context.index(word)]}
            question = f"which word is {i}"
            yield {"context": context, "question": question, "answers": answers}
        elif kind == "choice":
            answers = [sentence(i), sentence(i + 1), "it"]
            fields = {"context": sentence(i), "question": "which", "choices": answers}
            yield fields | {"answer": "012"[i % 3]}
        else:
            label = i % 5 if kind == "similarity" else glue.LABELS["mrpc"][i % 2]
            fields = {"sentence1": sentence(i), "sentence2": sentence(i + i % 3)}
            name = "score" if kind == "similarity" else "label"
            yield fields | {name: label, "idx": 100 - i}


TUNED = {
    "classify": ("classification", "bert", lambda: glue.get_config("mrpc:tiny")),
    "similarity": ("similarity", "gpt", lambda: similarity.get_config("tiny")),
    "tag": ("tagging", "bert", lambda: tagging.get_config("tiny")),
    "answer": ("span", "bert", lambda: squad.get_config("tiny")),
    "choose": ("choice", "gpt", lambda: choice.get_config("tiny")),
}


@pytest.fixture(scope="module", params=TUNED)
def tuned(request, runs):
    """A run of finetune.py for a command of predict.py, with a test split."""
    kind, base, get_config = TUNED[request.param]
    folder = runs.folder / request.param
    folder.mkdir()
    records = [json.dumps(record) + "\n" for record in task_records(kind, 30)]
    for name, part in (("train", records[:16]), ("test", records[16:])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    config = get_config()
    config.init_from = str(getattr(runs, base))
    train_file, test_file = (str(folder / f"{n}.jsonl") for n in ("train", "test"))
    config.data.update(train=train_file, eval=train_file, test=test_file)
    config.data.train_examples = 0
    config.data.max_length = 32 if kind == "choice" else 24
    config.optim.epochs = 1.0
    config.optim.groups = (("head/.*", {}), (".*", {"frozen": True}))
    config.objective.lm_weight = 0.0
    config.run.mesh.data = 1
    assert finetune.finetune(config, folder / "run").exit_status == 0
    return SimpleNamespace(
        command=request.param, kind=kind, run=folder / "run", test=test_file
    )


def read_json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def numbers(value):
    return [*value.values()] if isinstance(value, dict) else value


def test_a_file_gets_the_predictions_of_finetune(tuned, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", 6)  # of 14 records
    line = [tuned.command, "--workdir", tuned.run, "--input", tuned.test]
    output = tmp_path / "out.jsonl"
    assert not call(capsys, *line, "--format=jsonl", f"--output={output}")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    found = read_json_lines(output.read_text())
    expected = read_json_lines((tuned.run / "predictions_test.jsonl").read_text())
    assert len(found) == 14
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if name.startswith(("probab", "score", "null")):
                np.testing.assert_allclose(
                    numbers(one[name]), numbers(value), atol=1e-5
                )
            else:
                assert one[name] == value, name
    # and as a table, with the gold labels beside
    header, *rows = call(capsys, *line).splitlines()
    columns = {
        "classify": "label probability next gold text",
        "similarity": "score gold text",
        "tag": "tag probability gold text",
        "answer": "answer probability no answer gold text",
        "choose": "label probability answer gold text",
    }
    assert " ".join(header.split()) == columns[tuned.command]
    words = sum(len(line["tags"]) + 1 for line in found if "tags" in line)
    assert len(rows) == (words or 14)
    begin = header.index("gold")
    name = found[0]["gold"]
    name = name["text"][0] if tuned.kind == "span" else name
    assert rows[0][begin:].startswith(name[0] if tuned.kind == "tagging" else name)


@pytest.mark.parametrize("tuned", ["classify"], indirect=True)
def test_a_labelled_file_is_scored(tuned, capsys, tmp_path):
    line = [tuned.command, "--workdir", tuned.run]
    call(capsys, *line, "--input", tuned.test)  # stderr is left
    predict.main(["predict.py", *map(str, line), f"--input={tuned.test}"])
    results = json.loads((tuned.run / "results.json").read_text())["splits"]["test"]
    told = capsys.readouterr().err
    assert "14 records with labels: " in told
    for name in ("accuracy", "macro_f1"):
        assert f"{name} {results[name]:.4g}" in told
    # a label that the run does not know, and one that is missing
    records = [json.loads(row) for row in Path(tuned.test).read_text().splitlines()]
    records[0]["label"], records[1]["label"] = "perhaps", ""
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    predict.main(["predict.py", *map(str, line), f"--input={path}"])
    shown = capsys.readouterr()
    assert "12 records with labels: accuracy" in shown.err
    assert "1 records that were left out: 'perhaps' (1); it has" in shown.err
    assert " perhaps " in shown.out


@pytest.mark.parametrize("tuned", ["similarity"], indirect=True)
def test_labels_that_cannot_be_read_are_told_after_the_predictions(
    tuned, capsys, tmp_path
):
    path = tmp_path / "new.tsv"
    path.write_text("sentence1\tsentence2\tscore\nthe model\ta text\tmuch\n")
    assert not predict.main(
        ["predict.py", "similarity", f"--workdir={tuned.run}", f"--input={path}"]
    )
    shown = capsys.readouterr()
    assert "much" in shown.out.splitlines()[1]
    assert f"no score: {path}, line 2: the score in column 'score'" in shown.err


@pytest.mark.parametrize("tuned", ["classify", "choose"], indirect=True)
def test_columns_of_another_name_are_said_with_flags(tuned, capsys, tmp_path):
    task = use.open_run(tuned.run).task
    names = (*task.text_columns, *task.question_columns, *task.answer_columns)
    renamed = {name: f"my_{name}" for name in (*names, task.label_column)}
    records = [json.loads(row) for row in Path(tuned.test).read_text().splitlines()]
    path = tmp_path / "new.jsonl"
    path.write_text(
        "".join(
            json.dumps({renamed.get(name, name): x for name, x in record.items()})
            + "\n"
            for record in records
        )
    )
    line = [tuned.command, f"--workdir={tuned.run}", "--format=jsonl"]
    missing = r".*and no ".join(f"'{name}' .--" for name in sorted(names))
    message = rf"{path} has no column {missing}.*its columns are .*my_"
    with pytest.raises(UserError, match=message):
        predict.main(["predict.py", *line, f"--input={path}"])
    flags = [
        f"--{name}=" + ",".join(renamed[column] for column in getattr(task, name))
        for name in ("text_columns", "question_columns", "answer_columns")
        if getattr(task, name)
    ]
    flags.append(f"--label_column=my_{task.label_column}")
    found = call(capsys, *line, *flags, f"--input={path}")
    expected = call(capsys, *line, f"--input={tuned.test}")
    assert found.replace(str(path), tuned.test) == expected
    with pytest.raises(UserError, match="--label_column is for a labelled --input"):
        predict.main(["predict.py", *line, flags[-1], "--text=a"])
    with pytest.raises(UserError, match=r"names 3 column.s., but the run's task has"):
        predict.main(["predict.py", *line, "--text_columns=a,b,c", f"--input={path}"])
    with pytest.raises(UserError, match=r"no column 'nowhere' \(--label_column\)"):
        wrong = "--label_column=nowhere"
        predict.main(["predict.py", *line, *flags[:-1], wrong, f"--input={path}"])


@pytest.mark.parametrize("tuned", ["classify"], indirect=True)
def test_unknown_pieces_of_a_task_are_told(tuned, capsys):
    line = [tuned.command, "--workdir", tuned.run]
    for text, told in (("the model", False), ("모델은 읽는다", True)):
        predict.main(["predict.py", *map(str, line), f"--text={text}", "--text_b=a"])
        assert ("% of the pieces are unknown" in capsys.readouterr().err) == told


LINES = {
    "classify": ["--text=the model", "--text_b=a text"],
    "similarity": ["--text=the model", "--text_b=a text"],
    "tag": ["--text=the model reads"],
    "answer": ["--question=which word", "--text=the model reads a text"],
    "choose": [
        *("--text=the model", "--question=which"),
        *("--answers=a", "--answers=it", "--answers=may"),
    ],
}


def test_a_function_predicts_what_the_command_prints(tuned, capsys):
    run = use.open_run(str(tuned.run))
    assert run.commands == (tuned.command, "embed", "inspect")
    predicted = use.predict(run, labelled.read(tuned.test))
    line = [tuned.command, "--workdir", tuned.run, "--input", tuned.test]
    printed = read_json_lines(call(capsys, *line, "--format=jsonl"))
    assert [found for _, found in predicted] == printed and len(printed) == 14


def test_flags_and_lines_say_the_same(tuned, capsys, monkeypatch):
    line = [tuned.command, "--workdir", tuned.run, "--format=jsonl"]
    flags = LINES[tuned.command]
    (one,) = read_json_lines(call(capsys, *line, *flags))
    text = "\t".join(flag.split("=")[1] for flag in flags)
    lines = f" \n{text}\r\n\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    before, first, after = read_json_lines(call(capsys, *line))
    # Blank lines have a row, so that the rows stand as the lines do.
    for number, blank in ((1, before), (3, after)):
        assert blank.pop("place") == f"stdin, line {number}"
        assert blank == dict.fromkeys(name for name in first if name != "place")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    table = call(capsys, *line[:-1]).splitlines()
    assert len(table) > 3 and table[0].strip() and table[2]
    assert not table[1] and not table[-1]
    assert one.pop("place") == "--text"
    assert first.pop("place") == "stdin, line 2"
    assert one.keys() == first.keys() and "gold" not in one
    for name, value in one.items():
        assert first[name] == value, name


WRONG = {
    "classify": [
        (["--format=glue"], b"a\tb\n\n", "stdin, line 2 is blank: GLUE w"),
        ([], b"a\tb\tc\n", r"line 1: 3 text\(s\).* 2 \(sentence1, sentence2\)"),
        ([], b"a\t \n", "line 1: the sentence2 is empty"),
        ([], b"\xff\n", "stdin, line 1: not UTF-8"),
        (["--text=a"], b"", r"--text: 1 text\(s\), but this run's task takes 2"),
        (["--text_b=a"], b"", "--text_b goes with --text, which is missing"),
        (["--output=."], b"", "is a folder: name a file in it"),
    ],
    "similarity": [(["--format=glue"], b"", "config.name='similarity_tiny'")],
    "tag": [([], b"a\tb", r"takes 1 \(words\)")],
    "answer": [(["--text=a"], b"", "--question is missing")],
    "choose": [
        (["--text=a", "--question=b", "--answers=c"], b"", "takes 5 .*answer 0"),
    ],
}


def test_mistakes_with_tasks_are_named(tuned, monkeypatch):
    for flags, given, message in WRONG[tuned.command]:
        stdin = io.TextIOWrapper(io.BytesIO(given))
        monkeypatch.setattr(sys, "stdin", stdin)
        line = ["predict.py", tuned.command, *flags, f"--workdir={tuned.run}"]
        with pytest.raises(UserError, match=message):
            predict.main(line)
    other = "tag" if tuned.command != "tag" else "classify"
    for command in (other, "generate", "fill_mask"):
        with pytest.raises(UserError, match=f"use predict.py {tuned.command}"):
            predict.main(["predict.py", command, f"--workdir={tuned.run}"])


@pytest.mark.parametrize("tuned", ["classify"], indirect=True)
def test_a_glue_submission(tuned, capsys, tmp_path):
    line = [tuned.command, "--workdir", tuned.run, "--input", tuned.test]
    call(capsys, *line, "--format=glue", f"--output={tmp_path}/new/")
    header, *rows = (tmp_path / "new" / "MRPC.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    found = read_json_lines((tuned.run / "predictions_test.jsonl").read_text())
    values = [glue.LABELS["mrpc"].index(line["label"]) for line in found]
    # idx falls from 84 to 71
    assert rows == [f"{71 + i}\t{value}" for i, value in enumerate(reversed(values))]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("mnli", "tfds:glue/mnli@test_matched", "MNLI-m.tsv"),
        ("mnli", "test_mismatched.tsv", "MNLI-mm.tsv"),
        ("cola", None, "CoLA.tsv"),
    ],
)
def test_glue_files_have_their_names(tmp_path, name, source, expected):
    found = predict.glue_output(str(tmp_path), name, source)
    assert found == str(tmp_path / expected)
    assert predict.glue_output("x.tsv", name, source) == "x.tsv"


# Vectors


@pytest.mark.parametrize("base", ["bert", "gpt"])
def test_embeddings_do_not_depend_on_the_company(runs, base, capsys, tmp_path):
    folder = getattr(runs, base)
    texts = [sentence(i) for i in range(9)] + ["word " * 99]  # the last one is cut
    path = tmp_path / "texts.tsv"
    path.write_text("text\n" + "\n".join(texts) + "\n")
    vectors = {}
    for pooling in ("mean", "first", "last"):
        line = ["embed", f"--pooling={pooling}", "--workdir", folder]
        call(capsys, *line, f"--input={path}", f"--output={tmp_path / 'x.npy'}")
        vectors[pooling] = np.load(tmp_path / "x.npy")
        assert vectors[pooling].shape == (10, 16)
        assert vectors[pooling].dtype == np.float32
        if pooling != "mean":
            continue
        (alone,) = read_json_lines(call(capsys, *line, f"--text={texts[3]}"))
        assert alone["place"] == "--text"
        np.testing.assert_allclose(alone["embedding"], vectors[pooling][3], atol=1e-5)
    run = use.open_run(folder)
    before, after = embedding.text_frame(run)
    assert (len(before), len(after)) == ((1, 1) if base == "bert" else (1, 0))
    ids = [*before, *run.tokenizer.encode_batch([texts[3]])[0], *after]
    out = run.base.apply(run.params, {"tokens": jnp.array([ids], jnp.int32)})
    hidden = np.asarray(out["hidden"][0])
    expected = {"mean": hidden.mean(axis=0), "first": hidden[0], "last": hidden[-1]}
    for pooling, vector in expected.items():
        np.testing.assert_allclose(vectors[pooling][3], vector, atol=1e-5)


@pytest.mark.parametrize("tuned", ["choose"], indirect=True)
def test_a_fine_tuned_run_embeds_too(tuned, capsys):
    line = ["embed", "--workdir", tuned.run, "--text=the model reads"]
    (found,) = read_json_lines(call(capsys, *line))
    assert np.isfinite(found["embedding"]).all() and len(found["embedding"]) == 16


def test_embed_names_the_columns_there_are(runs, tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("a\tb\nx\ty\n")
    line = ["predict.py", "embed", f"--workdir={runs.bert}", f"--input={path}"]
    with pytest.raises(UserError, match=r"line 2: no text in a column 'text'.* a, b"):
        predict.main(line)


# Files out


def test_what_stands_at_the_output_is_written_into(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old")
    link.symlink_to(target)
    predict.write(["new"], str(link))
    assert link.is_symlink() and target.read_text() == "new\n"
    link.unlink()
    link.symlink_to(tmp_path / "made")  # of nothing yet
    predict.write(["new"], str(link))
    assert link.is_symlink() and (tmp_path / "made").read_text() == "new\n"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    predict.write(["through"], str(pipe))
    assert os.read(reader, 99) == b"through\n"
    os.close(reader)
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {
        *"target link made pipe".split()
    }


def test_a_full_device_is_told_and_stays():
    assert cache._is_written_into(Path("/dev/full"))  # else the next line destroys it
    with pytest.raises(UserError, match="the disk is full: writing full to /dev"):
        predict.write(["a"] * 9999, "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_dev_stdout_is_where_stdout_goes(tmp_path):
    program = (
        "from pathlib import Path; from data.cache import write_whole; "
        "write_whole(Path('/dev/stdout'), b'ours')"
    )
    (tmp_path / "log").write_text("before, ")
    with (tmp_path / "log").open("a") as log:  # >> log
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=log, check=True
        )
    assert (tmp_path / "log").read_text() == "before, ours"


def test_vectors_go_through_a_pipe(runs, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    reader = os.open(tmp_path / "pipe.npy", os.O_RDONLY | os.O_NONBLOCK)
    line = ["embed", "--workdir", runs.bert, "--text=the model"]
    call(capsys, *line, f"--output={tmp_path / 'pipe.npy'}")
    assert np.load(io.BytesIO(os.read(reader, 9999))).shape == (1, 16)
    os.close(reader)


# Mistakes


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("bert", ["fill_mask", "--text=no mask"], r"no \[MASK\] in 'no mask'"),
        ("bert", ["fill_mask", "--text=" + "[MASK] " * 40], "positions"),
        ("bert", ["fill_mask", "--input=nowhere"], "--input=nowhere is not a file"),
        ("bert", ["generate"], "masked_lm': use predict.py fill_mask or embed"),
        (
            "bert",
            ["classify", "--text=a"],
            "classify is not for .*predict.py fill_mask",
        ),
        ("bert", ["embed", "--text= "], "--text has no text"),
        ("bert", ["inspect", "--text= ", "--output=x.html"], "--text has no text"),
        (
            "bert",
            ["inspect", "--text=a", "--output=x.pdf"],
            "must end in .html or",
        ),
        ("bert", ["inspect", f"--text={'a ' * 200}", "--output=x.png"], "can be shown"),
        ("bert", ["embed", "--text="], "--text has no text"),
        ("bert", ["embed", "--text=a", "--layer=9"], "from 0, the embedded tokens, to"),
        ("bert", ["embed", "--text=a", "--layer=mix"], "has learnt no mix of its lay"),
        ("bert", ["embed", "--text=a", "--neighbours=1"], "there is one text; give"),
        ("bert", ["fill_mask", "--text="], r"no \[MASK\] in ''"),
        ("bert", ["fill_mask", "--text=[MASK]", "--top=0"], "--top=0 must be at least"),
        ("bert", ["embed", "--text=a", "--output=no/x.npy"], r"no folder .*no: make"),
        (
            "gpt",
            ["fill_mask", "--text=[MASK]"],
            "use predict.py generate or embed",
        ),
        ("gpt", ["generate", "--max_tokens=0"], "--max_tokens=0 is out of range"),
        ("gpt", ["generate", "--top_p=1.5"], "--top_p=1.5 is out of range"),
        ("gpt", ["generate", "--temperature=inf"], "--temperature=inf is out of range"),
        (
            "gpt",
            ["generate", f"--seed={2**64}"],
            "--seed=18446744073709551616 is out",
        ),
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
