"""ELMo: beside plain loops, packed, carried on, imported; its text, loss and sizes."""

import json
import sys
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import convert
import models
import use
from configs import elmo, elmo_mini
from data import spelling, tokenizer_training
from data.draws import Draws
from data.pairs import Pair
from data.shards import Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, ELMO_SPECIAL_TOKENS
from data.windows import Visits, lane_places, training_batches
from errors import UserError
from formats import allennlp
from models.elmo import fits_characters
from models.lstm import continues
from objectives.cross_entropy import weighted_cross_entropy
from objectives.sampled_softmax import sampled_cross_entropy
from pretraining import bidirectional_lm
from pretraining.counts import Ngrams, Stream
from training.optimizers import assign_groups, make_optimizer, parse_groups
from use.embedding import embed
from use.minimal_pairs import score_by_counts

OPTIONS = {
    "lstm": {
        "cell_clip": 0.8,
        "use_skip_connections": True,
        "n_layers": 2,
        "proj_clip": 0.5,
        "projection_dim": 3,
        "dim": 5,
    },
    "char_cnn": {
        "embedding": {"dim": 4},
        "filters": [[1, 2], [3, 5]],
        "n_highway": 2,
        "n_characters": 262,
        "max_characters_per_token": 12,
        "activation": "relu",
    },
}
TEXTS = (("a short one", "and a somewhat longer text , Straße"), ("b", "c d"))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder as AllenNLP has it, and the arrays of its weights by name."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "options.json").write_text(json.dumps(OPTIONS))
    generator, arrays = np.random.default_rng(0), {}
    fields = allennlp.read_options(folder / "options.json")
    with h5py.File(folder / "elmo_weights.hdf5", "w") as file:
        for _, name, shape in allennlp.places(fields):
            arrays[name] = generator.normal(0, 0.5, shape).astype(np.float32)
            file[name] = arrays[name]
    return folder, arrays


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "elmo"
    convert.import_model(str(released[0]), workdir)
    return use.open_run(workdir)


# bilm-tf written out: loops over words, gates and layers.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spelt_out(word, size=12):
    """The marks and bytes of a word; of a sentence's mark that mark alone."""
    inner = {"<S>": [256], "</S>": [257]}.get(word) or [*word.encode()][: size - 2]
    return [258, *inner, 259] + [260] * (size - 2 - len(inner))


def word_vector(arrays, word):
    table = arrays["char_embed"][spelt_out(word)]
    parts = []
    for i, (width, _) in enumerate(OPTIONS["char_cnn"]["filters"]):
        kernel = arrays[f"CNN/W_cnn_{i}"][0]
        places = [
            np.tensordot(table[at : at + width], kernel, 2)
            for at in range(len(table) - width + 1)
        ]
        parts.append(np.maximum(np.max(places, axis=0) + arrays[f"CNN/b_cnn_{i}"], 0))
    x = np.concatenate(parts)
    for i in range(2):
        own = {
            name: arrays[f"CNN_high_{i}/{name}"]
            for name in ("W_carry", "b_carry", "W_transform", "b_transform")
        }
        gate = sigmoid(x @ own["W_carry"] + own["b_carry"])
        new = np.maximum(x @ own["W_transform"] + own["b_transform"], 0)
        x = gate * new + (1 - gate) * x
    return x @ arrays["CNN_proj/W_proj"] + arrays["CNN_proj/b_proj"]


def lstm(arrays, way, layer, inputs, state):
    own = f"RNN_{way}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    (cell, output), outputs = state, []
    for x in inputs:
        gates = np.concatenate([x, output]) @ arrays[f"{own}/W_0"] + arrays[f"{own}/B"]
        enter, candidate, keep, leave = np.split(gates, 4)
        cell = sigmoid(keep + 1) * cell + sigmoid(enter) * np.tanh(candidate)
        cell = np.clip(cell, -0.8, 0.8)
        output = sigmoid(leave) * np.tanh(cell) @ arrays[f"{own}/W_P_0"]
        output = np.clip(output, -0.5, 0.5)
        outputs.append(output)
    return np.array(outputs), (cell, output)


def plain(arrays, words, states):
    """Layers [3, T, 6] of a text, and the states after it, by (way, layer)."""
    vectors = np.array([word_vector(arrays, word) for word in words])
    layers, after = [[vectors, vectors]], {}
    for layer in range(2):
        found = []
        for way in range(2):
            inputs = layers[-1][way]
            in_order = inputs[::-1] if way else inputs
            out, after[way, layer] = lstm(
                arrays, way, layer, in_order, states[way, layer]
            )
            out = out[::-1] if way else out
            found.append(out + inputs if layer else out)
        layers.append(found)
    return np.array([np.concatenate(both, axis=-1) for both in layers]), after


def nothing():
    zero = (np.zeros(5), np.zeros(3))
    return {(way, layer): zero for way in range(2) for layer in range(2)}


def framed(text):
    return ["<S>", *text.split(), "</S>"]


def batch_of(run, texts):
    """A text a row."""
    pieces = run.tokenizer.encode_batch([*texts])
    special = run.tokenizer.special_ids
    rows = [[special["cls"], *ids.tolist(), special["sep"]] for ids in pieces]
    length = max(map(len, rows))
    tokens = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    segments = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    batch = run.reads({"tokens": tokens, "segment_ids": segments.astype(np.int32)})
    inputs = {*run.base.inputs} & {*batch}  # but for the state of a batch before
    return {name: jnp.asarray(batch[name]) for name in inputs}


def test_an_import_is_bilm_written_out_and_goes_on_from_a_state(imported, released):
    """Two batches, the second from where the first one ended."""
    run, arrays = imported, released[1]
    module, state = run.base.module, None
    states = [nothing(), nothing()]
    for texts in TEXTS:
        batch = batch_of(run, texts)
        out = module.apply({"params": run.params}, **batch, state=state)
        state = out["state"]
        for row, text in enumerate(texts):
            words = framed(text)
            layers, states[row] = plain(arrays, words, states[row])
            for mine, theirs in zip(out["hidden_layers"], layers, strict=True):
                np.testing.assert_allclose(
                    mine[row, : len(words)], theirs, rtol=1e-5, atol=1e-5
                )
    np.testing.assert_array_equal(out["hidden"], out["hidden_layers"][-1])


def test_packed_texts_are_those_apart(imported):
    """Each begins anew in either direction, whatever stands beside it."""
    run = imported
    apart = batch_of(run, TEXTS[0])
    out = run.base.apply(run.params, apart)
    parts = [
        {name: array[row, : len(framed(text))] for name, array in apart.items()}
        for row, text in enumerate(TEXTS[0])
    ]
    packed = {
        name: jnp.concatenate([part[name] for part in parts])[None] for name in apart
    }
    sizes = [len(framed(text)) for text in TEXTS[0]]
    packed["segment_ids"] = jnp.asarray(np.repeat([1, 2], sizes)[None])
    found = run.base.apply(run.params, packed)
    for mine, theirs in zip(found["hidden_layers"], out["hidden_layers"], strict=True):
        np.testing.assert_allclose(
            mine[0],
            np.concatenate([theirs[0, : sizes[0]], theirs[1, : sizes[1]]]),
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_state_is_of_the_text_that_each_direction_reads_first():
    segments = jnp.asarray([[0, 1, 1, 2, 3, 0], [0, 0, 0, 0, 0, 0]])
    ahead, back = continues(segments)
    assert ahead[0].tolist() == [True, True, True, False, False, True]
    assert back[0].tolist() == [True, False, False, False, True, True]


def test_a_new_word_is_known_by_its_characters(imported):
    """And how long a text is, or what stands beside it, changes nothing."""
    texts = [("1", "wug"), ("2", "wugs are new words , all of them"), ("3", "wug")]
    first, second, third = (one.vectors for one in embed(imported, texts))
    np.testing.assert_allclose(first, third, rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    assert first.shape == (6,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": None}, "n_layers"),
        ({"use_skip_connections": False}, "use_skip_connections=false"),
        ({"projection_dim": 4}, r"W_proj is \(7, 3\), not \(7, 4\)"),
    ],
)
def test_options_that_do_not_fit(released, tmp_path, change, message):
    lstm = {k: v for k, v in (OPTIONS["lstm"] | change).items() if v is not None}
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS | {"lstm": lstm}))
    (tmp_path / "w_weights.hdf5").symlink_to(released[0] / "elmo_weights.hdf5")
    with pytest.raises(UserError, match=message):
        convert.import_model(str(tmp_path), tmp_path / "run")


def test_what_an_import_lacks_is_told(released, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py, which .*--extra elmo"):
        convert.import_model(str(released[0]), tmp_path / "run")


def test_weights_that_are_none(released, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
    with pytest.raises(UserError, match=r"must hold one \*weights\*.hdf5, and has no"):
        convert.import_model(str(tmp_path), tmp_path / "run")
    (tmp_path / "x_weights.hdf5").write_text("no HDF5")
    with pytest.raises(UserError, match="is no HDF5 file"):
        convert.import_model(str(tmp_path), tmp_path / "run")


# Sizes


def test_the_published_size():
    """The release's option file has 261 characters, as training; paper, section 3.4."""
    fields = elmo.get_config().model.to_dict()
    batch = {"characters": jnp.zeros((1, 1, 50), jnp.int32)}

    def count(**changes):
        model = models.build(fields | changes)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
        return models.count(shapes, fields)

    assert count(softmax=False) == 93_600_848
    assert count() == 500_651_471


# Text


def test_how_words_are_spelt():
    found = spelling.spelt(["ab", "é", "abcdefgh"], 6)
    assert found.tolist() == [
        [258, 97, 98, 259, 260, 260],
        [258, 195, 169, 259, 260, 260],
        [258, 97, 98, 99, 100, 259],
    ]


def words_of(text, **changes):
    settings = {"algorithm": "words", "vocab_size": 100, "lowercase": True}
    settings |= {"strip_accents": False, "unicode_form": "none"}
    settings |= {"special_tokens": ELMO_SPECIAL_TOKENS, "sample_bytes": 1000}
    return tokenizer_training.train([text], **settings | changes)


FIELDS = {"family": "elmo", "max_characters": 6, "vocab_size": 4}
INPUTS = ("characters", "segment_ids")


def test_the_vocabulary_stays_open():
    tokenizer = words_of("a b a")
    words = spelling.opened(tokenizer, INPUTS, FIELDS)
    first, second = words.encode_batch(["A Wug, b", "gnat wug"])
    assert first.tolist() == [3, 5, 6, 4] and second.tolist() == [7, 5]
    assert words.vocab_size == 5 and words.decode(second) == "gnat wug"
    assert words.characters(second)[:, :5].tolist() == [
        [258, *b"gnat"],
        [258, *b"wug", 259],
    ]
    assert words.characters(np.array([0, 1]))[:, :4].tolist() == [
        [258, 256, 259, 260],
        [258, 257, 259, 260],
    ]
    assert tokenizer.encode_batch(["wug"])[0].tolist() == [2]  # the file's own does not
    assert spelling.opened(words, INPUTS, FIELDS) is words


def test_what_is_predicted_is_cut_to_the_softmax():
    read = spelling.reader(words_of("a b a"), INPUTS, FIELDS)
    tokens = np.array([[0, 3, 4, 1]], np.int32)
    names = ("tokens", "targets", "previous_targets", "lm_targets")
    batch = read(dict.fromkeys(names, tokens))
    assert batch["tokens"].tolist() == tokens.tolist()
    assert batch["lm_targets"].tolist() == [[0, 3, 2, 1]]
    assert (
        batch["targets"].tolist()
        == [[0, 3, 2, 1]]
        == (batch["previous_targets"].tolist())
    )
    assert batch["characters"].shape == (1, 4, 6)
    assert batch["characters"][0, 2].tolist() == [258, 98, 259, 260, 260, 260]
    same = spelling.reader(words_of("a"), ("tokens",), FIELDS)
    assert same(batch) is batch


def test_pieces_are_no_words():
    settings = {"algorithm": "wordpiece", "special_tokens": BERT_SPECIAL_TOKENS}
    tokenizer = words_of("a b a", **settings)
    with pytest.raises(UserError, match=r"data\.tokenizer\.algorithm=words"):
        spelling.opened(tokenizer, INPUTS, FIELDS)


# Documents of 3, 1 and 6 words.
TOKENS, DOCUMENTS = np.arange(10, 20).astype(np.uint16), np.array([0, 3, 4, 10])


def test_each_word_is_predicted_once_from_either_side():
    stream = Shards(Path(), "train")
    vars(stream).update(tokens=TOKENS, documents=DOCUMENTS)
    examples = bidirectional_lm.BidirectionalLmExamples(stream, 4)
    indices = np.arange(len(examples))
    batch = examples.batch(
        Visits(indices, 0 * indices, 0, Draws(np.zeros(len(indices), np.uint64)))
    )
    assert batch["tokens"].tolist()[:2] == [[10, 11, 12, 13], [14, 15, 16, 17]]
    starts = {*DOCUMENTS.tolist()}
    for targets, weights, shift, missing in (
        ("targets", "weights", 1, {10 + start for start in starts}),
        ("previous_targets", "previous_weights", -1, {9 + end for end in starts}),
    ):
        counted = batch[weights] > 0
        found = batch[targets][counted].tolist()
        assert sorted(found) == sorted({*range(10, 20)} - missing)
        assert (batch[targets][counted] == batch["tokens"][counted] + shift).all()
        assert not batch[targets][~counted].any()


# Loss


def test_the_sampled_softmax_is_its_formula():
    generator = np.random.default_rng(0)
    states, table, bias = (
        jnp.float32(generator.normal(size=shape)) for shape in ((2, 3, 4), (20, 4), 20)
    )
    targets, weights = jnp.asarray([[0, 3, 17], [1, 1, 2]]), jnp.ones((2, 3))
    key, size, count = jax.random.key(0), 18, 6
    loss, weight, _ = sampled_cross_entropy(
        states,
        table,
        bias,
        targets,
        weights,
        key,
        num_sampled=count,
        vocab_size=size,
    )
    share = np.log((np.arange(size) + 2) / (np.arange(size) + 1)) / np.log(size + 1)
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)
    drawn = np.exp(np.array(jax.random.uniform(key, (count,))) * np.log(size + 1))
    drawn = drawn.astype(int) - 1
    total = 0.0
    for state, target in zip(
        np.array(states).reshape(-1, 4), np.array(targets).reshape(-1), strict=True
    ):
        scores = [state @ table[target] + bias[target]]
        scores += [
            state @ table[word] + bias[word] - np.log(count * share[word])
            for word in drawn
            if word != target
        ]
        total += np.logaddexp.reduce(scores) - scores[0]
    assert weight == 6
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_the_sampled_softmax_of_many_words_is_near_the_whole():
    generator = np.random.default_rng(1)
    states = jnp.float32(generator.normal(size=(4, 8)))
    table = jnp.float32(generator.normal(0, 0.5, (50, 8)))
    targets, weights, bias = jnp.asarray([0, 5, 20, 49]), jnp.ones(4), jnp.zeros(50)
    whole, _, _ = weighted_cross_entropy(states @ table.T, targets, weights)

    def estimate(key):
        loss, _, _ = sampled_cross_entropy(
            states,
            table,
            bias,
            targets,
            weights,
            key,
            num_sampled=4000,
            vocab_size=50,
        )
        return loss

    found = jax.vmap(estimate)(jax.random.split(jax.random.key(0), 8))
    np.testing.assert_allclose(found.mean(), whole, rtol=0.02)


def test_the_loss_is_half_of_each_direction():
    """In training estimated; to be judged by, in full."""
    config = elmo_mini.get_config("tiny")
    model = models.build(config.model)
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 512, (2, 8)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "characters": generator.integers(0, 256, (2, 8, 12)).astype(np.int32),
        "segment_ids": np.ones((2, 8), np.int32),
        "targets": np.roll(tokens, -1, axis=1),
        "weights": np.float32([[1] * 7 + [0], [1] * 7 + [0]]),
        "previous_targets": np.roll(tokens, 1, axis=1),
        "previous_weights": np.float32([[0] + [1] * 7, [0] * 8]),
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    params = model.init(jax.random.key(0), batch)
    terms = bidirectional_lm.loss_terms(config.objective, model, 2)
    found = terms(params, batch, None)
    output = model.apply(params, batch)
    for name, direction, sides in (
        ("causal_lm", "forward", ""),
        ("backward_lm", "backward", "previous_"),
    ):
        states, table, bias = output[name]
        loss, weight, _ = weighted_cross_entropy(
            states @ table.T + (0 if bias is None else bias[None, None]),
            batch[f"{sides}targets"],
            batch[f"{sides}weights"],
        )
        np.testing.assert_allclose(found[direction][0], loss / 2, rtol=1e-5)
        assert found[direction][1] == weight
    trained = terms(params, batch, jax.random.key(1))
    assert trained["forward"][1] == found["forward"][1]
    assert trained["forward"][0] != found["forward"][0]
    means = {"forward_loss": 0.5 * np.log(7), "backward_loss": 0.5 * np.log(3)}
    assert bidirectional_lm.evaluation(means, Shards(Path(), "train")) == pytest.approx(
        {"forward_perplexity": 7, "backward_perplexity": 3}
    )


def test_windows_that_go_on_are_one_long_window():
    """The forward model's loss over carried windows is that of the whole lane, but for
    the documents that begin in it; the backward one's is that of each window."""
    config = elmo_mini.get_config("tiny")
    model, lanes, length = models.build(config.model), 2, 4
    ends = np.array([0, 9, 16, 33])  # the second begins at a window's first word
    generator = np.random.default_rng(0)
    stream = Shards(Path(), "train")
    words = generator.integers(0, 512, 33).astype(np.uint16)
    vars(stream).update(tokens=words, documents=ends)
    spelt = jnp.asarray(generator.integers(0, 256, (512, 12)), jnp.int32)

    def read(batch):
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        return batch | {"characters": spelt[batch["tokens"]]}

    windows_of = bidirectional_lm.BidirectionalLmExamples
    seed = next(  # whose first lane begins with the text
        seed for seed in range(99) if not lane_places(0, np.arange(1), 2, 8, seed)[1]
    )
    batches = training_batches(
        windows_of(stream, length), batch_size=lanes, seed=seed, in_lanes=True
    )
    params = model.init(jax.random.key(0), read(batches[0]))
    carried = jax.tree.map(
        lambda x: jnp.ones(x.shape),  # at the start of a lane it is not looked at
        bidirectional_lm.carried_shapes(config.model, lanes),
    )
    settings = (config.objective, model, 1)
    step = jax.jit(bidirectional_lm.carried_loss_terms(*settings))
    alone = jax.jit(bidirectional_lm.loss_terms(*settings))
    found, anew = {"forward": 0.0, "backward": 0.0}, 0.0
    for place in range(4):
        batch = read(batches[place])
        terms, carried = step(params, batch | {"carried": carried}, None)
        found = {name: found[name] + terms[name][0] for name in found}
        anew += alone(params, batch, None)["backward"][0]
    indices = np.arange(lanes)
    draws = Draws(np.zeros(lanes, np.uint64))
    whole = windows_of(stream, 4 * length).batch(Visits(indices, 0 * indices, 0, draws))
    expected = alone(params, read(whole), None)["forward"][0]
    np.testing.assert_allclose(found["forward"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["backward"], anew, rtol=1e-5)


def test_new_words_of_a_pair_are_counted_as_unknown(imported):
    """Words that no text has had yet are known to the model, not to the counts."""
    run, size = imported, len(imported.tokenizer.pieces)
    text = Stream(np.arange(size), np.arange(size))
    paradigms = {"new": [Pair("a wug", "a wug gnat", "line 1")]}
    found = score_by_counts(run, paradigms, Ngrams(text, size, 2))
    assert found["accuracy"].value == 1.0  # the shorter one
    assert len(run.tokenizer.pieces) > size


def test_sides_see_only_their_own(imported):
    """What comes later does not change the forward half of a word, nor what came before
    the backward one."""
    run, width = imported, 3
    one, other = (
        run.base.apply(run.params, batch_of(run, [text]))["hidden"][0]
        for text in ("a b c d e", "a b x d e")
    )
    np.testing.assert_array_equal(one[:3, :width], other[:3, :width])
    np.testing.assert_array_equal(one[4:, width:], other[4:, width:])
    assert np.abs(one[3] - other[3]).min() > 0
    assert np.abs(one[4:, :width] - other[4:, :width]).max() > 0


def test_the_optimizer_is_that_of_the_release():
    """bilm-tf's Adagrad, with sums from 1, of 20 times the loss cut at a norm of 10."""
    optim = elmo.get_config().optim
    start, generator = {"w": jnp.float32([1.0, -2.0])}, np.random.default_rng(0)
    groups = assign_groups(
        start, parse_groups(optim.groups), weight_decay=0.0, no_decay=()
    )
    schedule = {"schedule": "constant", "learning_rate": 0.2, "end_learning_rate": 0.2}
    schedule |= {"warmup_steps": 0, "total_steps": 9}
    named = {name: optim[name] for name in ("b1", "b2", "epsilon", "clip_norm", "adam")}
    optimizer = make_optimizer(groups, schedule, **named)
    state, params, sums, expected = optimizer.init(start), start, 1.0, start["w"]
    for size in (0.1, 3.0, 0.5):
        gradient = generator.normal(0, size, 2).astype(np.float32)
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        scaled = 20 * gradient
        scaled *= min(1, 10 / np.linalg.norm(scaled))
        sums = sums + scaled**2
        expected = expected - 0.2 * scaled / np.sqrt(sums)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("filters", [(), (3,), ((1, 2, 3),), ((13, 4),), ((0, 4),)])
def test_filters_that_do_not_fit(filters):
    config = elmo_mini.get_config("tiny")
    assert fits_characters(config) is None
    config.model.filters = filters
    assert "must be pairs (characters, how many)" in fits_characters(config)
