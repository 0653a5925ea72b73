"""GPT and BERT: published sizes, equivalences, initial statistics, numpy by hand."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

import models
from configs import bert_mini, elmo_mini, foreword_masked, gpt_mini
from errors import UserError
from models.attention import Mask
from models.bert import Bert
from models.foreword import Foreword, Near, angles, rotated
from models.gpt import Gpt
from models.transformer import ACTIVATIONS, REMAT, Block, logits

LENGTH = 8
TINY_SIZES = {
    "vocab_size": 50,
    "max_positions": 16,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 8,
    "hidden_size": 16,
    "ffn_size": 64,
}
DROPOUT = {
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
}
GPT1 = DROPOUT | {
    "activation": "gelu_tanh",
    "pre_norm": False,
    "norm_epsilon": 1e-5,
    "table_dropout": True,
    "init_std": 0.02,
    "position_init_std": 0.02,
    "residual_scaling": False,
}
GPT2 = GPT1 | {
    "pre_norm": True,
    "table_dropout": False,
    "position_init_std": 0.01,
    "residual_scaling": True,
}
BERT = DROPOUT | {
    "num_token_types": 2,
    "activation": "gelu_erf",
    "norm_epsilon": 1e-12,
    "init_std": 0.02,
    "truncated_init": True,
    "pooler": True,
    "masked_lm_head": True,
    "next_sentence_head": True,
}

FOREWORD = DROPOUT | {
    "near_radius": 2,
    "value_residual": True,
    "rotary_base": 100.0,
    "activation": "relu_squared",
    "norm_epsilon": 1e-6,
    "init_std": 0.02,
}


def tiny_gpt(**changes):
    return Gpt(**(TINY_SIZES | GPT2 | changes))


def tiny_bert(**changes):
    return Bert(**(TINY_SIZES | BERT | changes))


def tiny_foreword(**changes):
    return Foreword(**(TINY_SIZES | FOREWORD | changes))


MODELS = {
    "gpt1": tiny_gpt(**GPT1),
    "gpt2": tiny_gpt(),
    "bert": tiny_bert(),
    "left": tiny_foreword(sees="left"),
    "both": tiny_foreword(sees="both"),
}
CAUSAL = ["gpt1", "gpt2", "left"]
BOTH_SIDES = ["bert", "both"]


def some_tokens(rows=2, length=LENGTH, vocab_size=50, seed=0):
    key = jax.random.key(seed)
    return jax.random.randint(key, (rows, length), 0, vocab_size)


def shapes(model):
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32)), jax.random.key(0)
    )["params"]


def fill(tree):
    """Far from the small initial values and from zero biases: everything matters."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.float32(generator.normal(centre, 0.3, leaf.shape))

    return jax.tree.map_with_path(draw, tree)


@functools.cache
def random_params(model):
    return fill(shapes(model))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *inputs, **named):
    """The outputs, with the logits of the words that there are."""
    return with_logits(model, model.apply({"params": params}, *inputs, **named))


def with_logits(model, output):
    for language in {"masked_lm", "causal_lm"} & output.keys():
        scores = logits(output[language])
        output["logits"] = scores[..., : model.vocab_size]
    return output


def close(one, other, tolerance=1e-5):
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# --- Published sizes ---------------------------------------------------------


def fields_of(model):
    return {"family": type(model).__name__.lower(), "vocab_size": model.vocab_size}


def flat_sizes(model):
    """Parameters by path, without the rows that pad the vocabulary."""

    def cut(key):
        params = model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]
        return models.cut_vocabulary(paths(params), fields_of(model))

    by_path = jax.eval_shape(cut, jax.random.key(0))
    return {path: math.prod(leaf.shape) for path, leaf in by_path.items()}


def sizes(model):
    """Parameters of every top-level part; one layer is traced and stands for all."""
    parts = collections.Counter()
    for path, size in flat_sizes(model.clone(num_layers=1)).items():
        parts[path.split("/")[0]] += size
    return parts | {"layers": model.num_layers * parts.pop("layer_0")}


def count(model):
    return sum(sizes(model).values())


def published_bert(vocab_size, num_layers, hidden_size):
    sizes = {
        "vocab_size": vocab_size,
        "max_positions": 512,
        "num_layers": num_layers,
        "num_heads": hidden_size // 64,
        "head_dim": 64,
        "hidden_size": hidden_size,
        "ffn_size": 4 * hidden_size,
    }
    return Bert(**(BERT | sizes))


def bert_counts(*sizes_of_bert):
    """Parameters of the body, the pooler, the masked LM and next sentence heads."""
    parts = sizes(published_bert(*sizes_of_bert))
    body = parts["embeddings"] + parts["layers"]
    return body, parts["pooler"], parts["masked_lm"], parts["next_sentence"]


@pytest.mark.parametrize(
    ("vocab_size", "layers", "width", "with_pooler", "pre_training", "masked_lm_alone"),
    [
        (30522, 12, 768, 109_482_240, 110_106_428, 109_514_298),  # base uncased
        (28996, 12, 768, 108_310_272, 108_932_934, 108_340_804),  # base cased
        (30522, 24, 1024, 335_141_888, 336_226_108, 335_174_458),  # large uncased
        (28996, 24, 1024, 333_579_264, 334_661_958, 333_610_308),  # large cased
        (119547, 12, 768, 177_853_440, 178_566_653, 177_974_523),  # multilingual cased
        (105879, 12, 768, 167_356_416, 168_055_961, 167_463_831),  # and uncased
        (21128, 12, 768, 102_267_648, 102_882_442, 102_290_312),  # Chinese
    ],
)
def test_bert_parameter_counts(
    vocab_size, layers, width, with_pooler, pre_training, masked_lm_alone
):
    body, pooler, masked_lm, next_sentence = bert_counts(vocab_size, layers, width)
    assert body + pooler == with_pooler
    assert body + pooler + masked_lm + next_sentence == pre_training
    assert body + masked_lm == masked_lm_alone
    without_pooler_and_with_next_sentence = {
        (30522, 768): (108_891_648, 109_483_778),
        (28996, 768): (107_719_680, 108_311_810),
        (30522, 1024): (334_092_288, 335_143_938),
        (28996, 1024): (332_529_664, 333_581_314),
    }
    if (vocab_size, width) in without_pooler_and_with_next_sentence:
        expected = without_pooler_and_with_next_sentence[vocab_size, width]
        assert (body, body + pooler + next_sentence) == expected


SMALL_BERTS = {  # layers: counts at width 128, 256, 512 and 768, with pooler
    2: (4_385_920, 9_591_040, 22_458_880, 38_603_520),
    4: (4_782_464, 11_170_560, 28_763_648, 52_779_264),
    6: (5_179_008, 12_750_080, 35_068_416, 66_955_008),
    8: (5_575_552, 14_329_600, 41_373_184, 81_130_752),
    10: (5_972_096, 15_909_120, 47_677_952, 95_306_496),
    12: (6_368_640, 17_488_640, 53_982_720, 109_482_240),
}


SMALL_PRE_TRAINING = {  # tiny, mini, small, medium
    (2, 128): 4_433_468,
    (4, 256): 11_267_900,
    (4, 512): 29_058_876,
    (8, 512): 41_668_412,
}


@pytest.mark.parametrize("num_layers", SMALL_BERTS)
def test_small_bert_parameter_counts(num_layers):
    for width, expected in zip(
        (128, 256, 512, 768), SMALL_BERTS[num_layers], strict=True
    ):
        body, pooler, masked_lm, next_sentence = bert_counts(30522, num_layers, width)
        assert body + pooler == expected
        if (num_layers, width) in SMALL_PRE_TRAINING:
            pre_training = SMALL_PRE_TRAINING[num_layers, width]
            assert body + pooler + masked_lm + next_sentence == pre_training


def published_gpt(settings, vocab_size, max_positions, layers, width, heads, head_dim):
    sizes = {
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": head_dim,
        "hidden_size": width,
        "ffn_size": 4 * width,
    }
    return Gpt(**(settings | sizes))


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(40478, 116_534_784), (40481, 116_537_088)]
)
def test_gpt1_parameter_count(vocab_size, expected):
    assert count(published_gpt(GPT1, vocab_size, 512, 12, 768, 12, 64)) == expected


@pytest.mark.parametrize(
    ("layers", "width", "heads", "expected", "with_padded_vocab"),
    [
        (12, 768, 12, 124_439_808, 124_475_904),
        (24, 1024, 16, 354_823_168, 354_871_296),
        (36, 1280, 20, 774_030_080, 774_090_240),
        (48, 1600, 25, 1_557_611_200, 1_557_686_400),
    ],
)
def test_gpt2_parameter_counts(layers, width, heads, expected, with_padded_vocab):
    model = published_gpt(GPT2, 50257, 1024, layers, width, heads, 64)
    assert count(model) == expected
    assert count(model.clone(vocab_size=50304)) == with_padded_vocab


@pytest.mark.parametrize(
    ("layers", "width", "heads", "head_dim", "expected"),
    [
        (12, 768, 12, 64, 125_226_240),
        (24, 1024, 16, 64, 355_871_744),
        (24, 1536, 16, 96, 760_300_032),
        (24, 2048, 16, 128, 1_315_723_264),  # XL, the reading with 16 heads
        (24, 2048, 24, 128, 1_517_123_584),  # XL as printed: inner width 3,072
        (32, 2560, 32, 80, 2_651_553_280),
        (32, 4096, 32, 128, 6_658_404_352),
        (40, 5120, 40, 128, 12_853_386_240),  # 13B, the reading with width 5,120
        (96, 12288, 96, 128, 174_604_259_328),
    ],
)
def test_gpt3_parameter_counts(layers, width, heads, head_dim, expected):
    model = published_gpt(GPT2, 50257, 2048, layers, width, heads, head_dim)
    assert count(model) == expected


def test_gpt3_13b_as_printed():
    """Width 5,140 with 40 heads of 128. The closed form 12 d^2 + 13 d a layer, which
    gives 12,952,938,780, assumes an inner width of 5,140 = 40 x 128.5."""
    width, layers, inner = 5140, 40, 5120
    model = published_gpt(GPT2, 50257, 2048, layers, width, 40, 128)
    square = 12 * width**2 + 13 * width
    narrower = (width - inner) * (4 * width + 3)  # four kernels, three biases
    closed_form = (50257 + 2048) * width + layers * square + 2 * width
    assert closed_form == 12_952_938_780
    assert count(model) == closed_form - layers * narrower


def test_one_layer_stands_for_all():
    for model in (
        published_bert(30522, 24, 1024),
        published_gpt(GPT2, 50257, 1024, 36, 1280, 20, 64),
    ):
        by_path = flat_sizes(model)
        assert sum(by_path.values()) == count(model)
        assert f"layer_{model.num_layers - 1}/attention/query/bias" in by_path


# --- Parameter tree ----------------------------------------------------------


def paths(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_parameter_paths():
    bert, gpt1, gpt2 = (
        paths(shapes(MODELS[name])) for name in ("bert", "gpt1", "gpt2")
    )
    for path, shape in {
        "embeddings/token/embedding": (128, 16),  # padded
        "embeddings/position/embedding": (16, 16),
        "embeddings/token_type/embedding": (2, 16),
        "embeddings/norm/scale": (16,),
        "layer_0/attention/query/kernel": (16, 16),
        "layer_1/attention/output/bias": (16,),
        "layer_0/attention_norm/scale": (16,),
        "layer_0/feed_forward/up/kernel": (16, 64),
        "layer_0/feed_forward/down/kernel": (64, 16),
        "layer_1/feed_forward_norm/bias": (16,),
        "masked_lm/transform/kernel": (16, 16),
        "masked_lm/norm/scale": (16,),
        "masked_lm/bias": (128,),
        "pooler/kernel": (16, 16),
        "next_sentence/kernel": (16, 2),
    }.items():
        assert bert[path].shape == shape
    assert set(gpt2) - set(gpt1) == {"final_norm/scale", "final_norm/bias"}
    for path in [*bert, *gpt2]:
        assert path.rsplit("/", 1)[-1] in {"kernel", "bias", "scale", "embedding"}


# --- What may see what -------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def influence(model, params, tokens, segments, row, column):
    """[B, T]: how strongly each position moves the state at (row, column).

    Every position of the batch gets a word of its own, so that the gradient of the
    word table tells them apart.
    """
    table = params["embeddings"]["token"]["embedding"]
    table = table.at[: tokens.size].set(table[tokens.reshape(-1)])
    direction = jax.random.normal(jax.random.key(9), (model.hidden_size,))

    def score(table):
        embeddings = params["embeddings"] | {"token": {"embedding": table}}
        hidden = apply(
            model,
            params | {"embeddings": embeddings},
            jnp.arange(tokens.size).reshape(tokens.shape),
            segments,
        )["hidden"]
        return hidden[row, column] @ direction

    gradient = jax.grad(score)(table)[: tokens.size]
    return jnp.abs(gradient).max(-1).reshape(tokens.shape)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_by_gradient(name):
    tokens, params = some_tokens(), random_params(MODELS[name])
    moved = influence(MODELS[name], params, tokens, jnp.ones_like(tokens), 0, 4)
    assert (moved[0, :5] > 1e-4).all()
    np.testing.assert_array_equal(moved[0, 5:], 0)
    np.testing.assert_array_equal(moved[1], 0)


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_both_sides_by_gradient(name):
    tokens, params = some_tokens(), random_params(MODELS[name])
    moved = influence(MODELS[name], params, tokens, jnp.ones_like(tokens), 0, 4)
    assert (moved[0] > 1e-4).all()
    np.testing.assert_array_equal(moved[1], 0)


@pytest.mark.parametrize("name", MODELS)
def test_segments_do_not_see_each_other(name):
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]] * 2)
    params = random_params(MODELS[name])
    moved = influence(MODELS[name], params, some_tokens(), segments, 0, 5)
    assert (moved[0, 3:6] > 1e-4).all()
    np.testing.assert_array_equal(moved[0, jnp.array([0, 1, 2, 6, 7])], 0)
    padding = influence(MODELS[name], params, some_tokens(), segments, 0, 7)
    np.testing.assert_array_equal(padding[0, :7], 0)  # sees nothing, not even padding


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_equal_separate_rows(name):
    """Outputs and the gradient of every parameter; documents of 3 and of 5 tokens."""
    model = MODELS[name].clone(num_layers=1)
    params = random_params(model)
    one, other = some_tokens(1, 3), some_tokens(1, 5, seed=1)
    nothing = jnp.zeros((1, 8), jnp.int32)
    weights = jax.random.normal(jax.random.key(2), (8, 50)) / 10

    @functools.partial(jax.jit, static_argnums=3)
    def gradient(tokens, segments, positions, documents):
        def loss(params):
            scores = apply(model, params, tokens, segments, positions)["logits"]
            scores = jnp.concatenate(
                [scores[row, start:end] for row, start, end in documents]
            )
            return (scores * weights).sum(), scores

        return jax.grad(loss, has_aux=True)(params)

    packed_gradient, packed_logits = gradient(
        jnp.concatenate([jnp.concatenate([one, other], 1), nothing]),
        jnp.concatenate([jnp.array([[1, 1, 1, 2, 2, 2, 2, 2]]), nothing]),
        jnp.concatenate([jnp.array([[0, 1, 2, 0, 1, 2, 3, 4]]), nothing]),
        ((0, 0, 3), (0, 3, 8)),
    )
    separate_gradient, separate_logits = gradient(
        jnp.concatenate(
            [jnp.pad(one, ((0, 0), (0, 5))), jnp.pad(other, ((0, 0), (0, 3)))]
        ),
        jnp.array([[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]),
        jnp.array([[*range(3)] + [0] * 5, [*range(5)] + [0] * 3]),
        ((0, 0, 3), (1, 0, 5)),
    )
    close(packed_logits, separate_logits)
    jax.tree.map(close, packed_gradient, separate_gradient)


@pytest.mark.parametrize("name", MODELS)
def test_padding_content_does_not_move_real_outputs(name):
    model, params = MODELS[name], random_params(MODELS[name])
    segments = jnp.array([[1] * 5 + [0] * 3, [0] * 8])
    tokens = some_tokens()
    changed = jnp.where(segments > 0, tokens, (tokens + 7) % 50)
    one = apply(model, params, tokens, segments)
    other = apply(model, params, changed, segments)
    np.testing.assert_array_equal(one["logits"][0, :5], other["logits"][0, :5])
    assert np.isfinite(one["logits"]).all()  # also the row of padding alone
    alone = apply(model, params, tokens[:1, :5])
    close(one["logits"][0, :5], alone["logits"][0])


@pytest.mark.parametrize("name", MODELS)
def test_default_inputs(name):
    model, params, tokens = MODELS[name], random_params(MODELS[name]), some_tokens()
    named = {
        "segment_ids": jnp.ones_like(tokens),
        "positions": jnp.broadcast_to(jnp.arange(LENGTH)[None], tokens.shape),
    }
    if name == "bert":
        named["token_types"] = jnp.zeros_like(tokens)
    short = apply(model, params, tokens)["logits"]
    close(short, apply(model, params, tokens, **named)["logits"])
    if name in ("left", "both"):  # positions matter by their distances
        moved = named | {"positions": named["positions"] + 3}
        close(short, apply(model, params, tokens, **moved)["logits"], 1e-4)
    for other in named:
        changed = named | {other: named[other].at[:, :4].add(1)}
        scores = apply(model, params, tokens, **changed)["logits"]
        assert np.abs(scores - short).max() > 1e-2, other


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_predictions_at_the_named_positions(name):
    model, tokens = MODELS[name], some_tokens()
    params = random_params(model)
    predict = jnp.array([[3, 0, 7], [5, 5, 1]])
    everywhere = apply(model, params, tokens)["logits"]
    there = apply(model, params, tokens, predict_positions=predict)["logits"]
    assert there.shape == (2, 3, 50)
    close(there, np.take_along_axis(everywhere, np.asarray(predict)[..., None], 1))


def test_bert_outputs():
    model, tokens = MODELS["bert"], some_tokens()
    params = random_params(model)
    output = apply(model, params, tokens)
    assert len(output["hidden_layers"]) == 3
    np.testing.assert_array_equal(output["hidden_layers"][-1], output["hidden"])
    pooler, head = params["pooler"], params["next_sentence"]
    pooled = np.tanh(output["hidden"][:, 0] @ pooler["kernel"] + pooler["bias"][None])
    close(output["pooled"], pooled)
    answers = pooled @ head["kernel"] + head["bias"][None]
    close(logits(output["next_sentence"]), answers)
    bare = tiny_bert(pooler=False, masked_lm_head=False, next_sentence_head=False)
    body = {path: params[path] for path in ("embeddings", "layer_0", "layer_1")}
    assert set(apply(bare, body, tokens)) == {"hidden", "hidden_layers"}


# --- Cache -------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_cached_logits_equal_uncached(name):
    """A prompt of three at once, then token by token, in a cache longer than needed."""
    model, params, tokens = MODELS[name], random_params(MODELS[name]), some_tokens()
    whole = apply(model, params, tokens)["logits"]

    cache = model.empty_cache(batch_size=2, length=12)
    output = apply(model, params, tokens[:, :3], cache=cache)
    pieces = [output["logits"]]
    for i in range(3, LENGTH):
        before = output["cache"]
        output = apply(model, params, tokens[:, i : i + 1], cache=before)
        assert jax.tree.map(jnp.shape, output["cache"]) == jax.tree.map(
            jnp.shape, before
        )
        pieces.append(output["logits"])
    close(jnp.concatenate(pieces, 1), whole)
    assert output["cache"]["index"] == LENGTH


@pytest.mark.parametrize("name", ["gpt2", "left"])
def test_cached_prompts_of_unequal_length(name):
    """The shorter prompt is padded on the left, and continues as if it were alone."""
    model, params = MODELS[name], random_params(MODELS[name])
    long, short = some_tokens(1, 6), some_tokens(1, 4, seed=1)
    padded = jnp.concatenate([jnp.zeros((1, 2), jnp.int32), short], 1)
    tokens = jnp.concatenate([long, padded])
    segments = jnp.array([[1] * 6, [0, 0, 1, 1, 1, 1]])
    positions = jnp.maximum(jnp.cumsum(segments, 1) - 1, 0)
    cache = model.empty_cache(2, 10)
    cache = apply(
        model, params, tokens[:, :5], segments[:, :5], positions[:, :5], cache=cache
    )["cache"]
    last = apply(
        model, params, tokens[:, 5:], segments[:, 5:], positions[:, 5:], cache=cache
    )["logits"]
    close(last[0, 0], apply(model, params, long)["logits"][0, -1])
    close(last[1, 0], apply(model, params, short)["logits"][0, -1])


# --- The project's own family ------------------------------------------------


def test_the_same_weights_serve_both_ways():
    tokens, params = some_tokens(), random_params(MODELS["left"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, random_params(MODELS["both"])
    )
    fields = FOREWORD | TINY_SIZES | {"family": "foreword", "precision": "float32"}
    model = models.build(fields | {"sees": "both"})
    left = models.build(models.seeing(fields | {"sees": "both"}, "left"))
    seeing = left.apply(params, {"tokens": tokens})
    expected = apply(MODELS["left"], params, tokens)["logits"]
    close(logits(seeing["causal_lm"])[..., :50], expected)
    assert "causal_lm" not in model.apply(params, {"tokens": tokens})


def test_positions_turn_by_hand():
    """Complex numbers turned by e^(i p b^(-2j/K)), as RoFormer has it."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 100, 3]])
    numbers = vectors[..., :4] + 1j * vectors[..., 4:]
    rates = 100.0 ** (-2 * np.arange(4) / 8)
    turned = numbers * np.exp(1j * positions[:, :, None, None] * rates)
    found = rotated(jnp.asarray(vectors), angles(jnp.asarray(positions), 8, 100.0))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_neighbours_by_hand():
    """What they add stays within a document and, to the left, behind a word."""
    hidden = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
    taps = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    for sees, offsets in (("left", (-2, -1, 0)), ("both", (-2, -1, 0, 1, 2))):
        model = tiny_foreword(sees=sees)
        tokens = jnp.zeros((1, 6), jnp.int32)
        is_own = model._neighbours(tokens, jnp.asarray(segments), None)
        params, before = {"params": {"kernel": taps}}, jnp.zeros((1, 2, 3))
        found = Near(2, 0.1).apply(params, jnp.asarray(hidden), before, is_own)
        expected = hidden.copy()
        for place in range(5):
            for offset in offsets:
                other = place + offset
                if 0 <= other < 5 and segments[0, other] == segments[0, place]:
                    expected[0, place] += taps[offset + 2] * hidden[0, other]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_neighbours_there_is_no_convolution():
    model = tiny_foreword(sees="left", near_radius=0)
    assert "near" not in shapes(model)["layer_0"]
    params, tokens = random_params(model), some_tokens()
    cached = apply(model, params, tokens, cache=model.empty_cache(2, LENGTH))["logits"]
    close(cached, apply(model, params, tokens)["logits"])


# --- Numbers -----------------------------------------------------------------


def test_activations_literal():
    values = jnp.array([-3.0, -1.0, 0.0, 0.5, 2.7])
    erf = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in values.tolist()]
    close(ACTIVATIONS["gelu_erf"](values), erf, 1e-6)
    tanh = [
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        for x in values.tolist()
    ]
    close(ACTIVATIONS["gelu_tanh"](values), tanh, 1e-6)
    np.testing.assert_array_equal(ACTIVATIONS["relu"](values)[:3], 0)
    # The two forms differ by up to 4.7e-4, near |x| = 2.70.
    grid = jnp.linspace(-6, 6, 12001)
    gap = jnp.abs(ACTIVATIONS["gelu_erf"](grid) - ACTIVATIONS["gelu_tanh"](grid))
    assert abs(gap.max() - 4.7e-4) < 1e-5
    assert abs(abs(grid[gap.argmax()]) - 2.70) < 0.03


@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh"])
def test_activation_gradient_by_differences(name):
    x = jnp.array([-2.0, -0.3, 0.0, 1.7])
    activate = ACTIVATIONS[name]
    slope = jax.grad(lambda x: activate(x).sum())(x)
    close(slope, (activate(x + 0.01) - activate(x - 0.01)) / 0.02, 1e-4)


def numpy_norm(x, params, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * params["scale"] + params["bias"]


def numpy_attention(x, params, heads, causal):
    """Row by row and head by head, in loops."""

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    attended = np.zeros((*x.shape[:2], params["query"]["kernel"].shape[1]))
    width = attended.shape[-1] // heads
    for row in range(x.shape[0]):
        q, k, v = (dense(x[row], name) for name in ("query", "key", "value"))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(x.shape[1]):
                end = i + 1 if causal else x.shape[1]
                scores = k[:end, part] @ q[i, part] / math.sqrt(width)
                shares = np.exp(scores) / np.exp(scores).sum()
                attended[row, i, part] = shares @ v[:end, part]
    return dense(attended, "output")


def numpy_feed_forward(x, params):
    inner = x @ params["up"]["kernel"] + params["up"]["bias"]
    inner = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    return inner @ params["down"]["kernel"] + params["down"]["bias"]


def numpy_post_norm_block(x, params, heads, causal, epsilon):
    x = x + numpy_attention(x, params["attention"], heads, causal)
    x = numpy_norm(x, params["attention_norm"], epsilon)
    x = x + numpy_feed_forward(x, params["feed_forward"])
    return numpy_norm(x, params["feed_forward_norm"], epsilon)


def numpy_pre_norm_block(x, params, heads, causal, epsilon):
    seen = numpy_norm(x, params["attention_norm"], epsilon)
    x = x + numpy_attention(seen, params["attention"], heads, causal)
    seen = numpy_norm(x, params["feed_forward_norm"], epsilon)
    return x + numpy_feed_forward(seen, params["feed_forward"])


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_block_against_numpy(pre_norm, causal):
    """Also with an inner width (3 x 4) other than the width of the model (16)."""
    normal = jax.nn.initializers.normal(0.3)
    block = Block(
        num_heads=3,
        head_dim=4,
        ffn_size=20,
        activation="gelu_erf",
        pre_norm=pre_norm,
        norm_epsilon=1e-2,  # large, so that its place is tested
        attention_dropout=0.1,
        residual_dropout=0.1,
        fused_attention=False,
        kernel_init=normal,
        output_kernel_init=normal,
        dtype=jnp.float32,
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    mask = Mask(None, None, 0, causal)
    tree = jax.eval_shape(lambda key: block.init(key, x, mask), jax.random.key(0))
    params = fill(tree)
    ours, _ = block.apply(params, x, mask)
    by_hand = numpy_pre_norm_block if pre_norm else numpy_post_norm_block
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    golden = by_hand(np.asarray(x, np.float64), params, 3, causal, 1e-2)
    close(ours, golden)


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "bert"])
def test_whole_model_against_numpy(name):
    """Embeddings, order of layers, final norm, heads and the tied table."""
    model, tokens = MODELS[name].clone(activation="gelu_erf"), some_tokens()
    params = random_params(model)
    ours = apply(model, params, tokens)["logits"]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tables, epsilon = params["embeddings"], model.norm_epsilon
    words = tables["token"]["embedding"][: model.vocab_size]
    x = words[np.asarray(tokens)] + tables["position"]["embedding"][:LENGTH]
    block = numpy_pre_norm_block if name == "gpt2" else numpy_post_norm_block
    if name == "bert":
        x = numpy_norm(
            x + tables["token_type"]["embedding"][0], tables["norm"], epsilon
        )
    for i in range(2):
        x = block(x, params[f"layer_{i}"], 2, name != "bert", epsilon)
    if name == "gpt2":
        x = numpy_norm(x, params["final_norm"], epsilon)
    if name == "bert":
        head = params["masked_lm"]
        x = x @ head["transform"]["kernel"] + head["transform"]["bias"]
        x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        x = numpy_norm(x, head["norm"], epsilon)
    golden = x @ words.T + (head["bias"][: len(words)] if name == "bert" else 0)
    np.testing.assert_allclose(ours, golden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sees", ["left", "both"])
def test_foreword_against_numpy(sees):
    """Written out word by word, in loops; with three layers, of which the last could
    take the values of the second for those of the first."""
    model, tokens = tiny_foreword(sees=sees, num_layers=3), some_tokens(1)
    ours = apply(model, random_params(model), tokens)["logits"][0]
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), random_params(model)
    )

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale["scale"]

    def turned(x):  # [T, H, 8]
        numbers = x[..., :4] + 1j * x[..., 4:]
        angle = np.arange(LENGTH)[:, None] * 100.0 ** (-np.arange(4) / 4)
        numbers = numbers * np.exp(1j * angle[:, None])
        return np.concatenate([numbers.real, numbers.imag], axis=-1)

    words = params["embeddings"]["token"]["embedding"][:50]
    x = norm(words[np.asarray(tokens[0])], params["embeddings"]["norm"])
    first = None
    for i in range(3):
        layer = params[f"layer_{i}"]
        attention, taps = layer["attention"], layer["near"]["kernel"]
        normed = norm(x, layer["attention_norm"])
        seen = normed.copy()
        for place in range(LENGTH):
            for offset in (-2, -1, 0) if sees == "left" else (-2, -1, 0, 1, 2):
                if 0 <= place + offset < LENGTH:
                    seen[place] += taps[offset + 2] * normed[place + offset]
        every = (seen @ attention["query_key_value"]["kernel"]).reshape(-1, 2, 3, 8)
        query = turned(norm(every[:, :, 0], attention["query_norm"]))
        key = turned(norm(every[:, :, 1], attention["key_norm"]))
        scores = np.einsum("thk,shk->hts", query, key) / np.sqrt(8)
        if sees == "left":
            scores = np.where(np.tri(LENGTH), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        values = every[:, :, 2]
        if first is None:
            first = values
        else:
            own_share, first_share = attention["value_mix"]
            values = own_share * values + first_share * first
        attended = np.einsum("hts,shk->thk", shares, values)
        x = x + attended.reshape(LENGTH, -1) @ attention["output"]["kernel"]
        inner = norm(x, layer["feed_forward_norm"]) @ layer["up"]["kernel"]
        x = x + np.maximum(inner, 0) ** 2 @ layer["down"]["kernel"]
    golden = norm(x, params["final_norm"]) @ words.T + params["word_head"]["bias"][:50]
    np.testing.assert_allclose(ours, golden, rtol=1e-4, atol=1e-4)


# --- Initial values ----------------------------------------------------------

WIDE = {"hidden_size": 128, "ffn_size": 512, "vocab_size": 500, "max_positions": 200}


def initial(model):
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    flat = models.cut_vocabulary(paths(params), fields_of(model))
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def assert_std(values, std):
    """Within five standard errors of a normal's standard deviation."""
    assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * values.size)
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)


def assert_biases_and_norms(params):
    for path, values in params.items():
        if path.endswith("bias"):
            assert not values.any(), path
        if path.endswith("scale"):
            assert (values == 1).all(), path


@pytest.mark.parametrize(
    ("settings", "position_std", "output_std"),
    [(GPT1, 0.02, 0.02), (GPT2, 0.01, 0.02 / math.sqrt(2 * 2))],
)
def test_gpt_initial_values(settings, position_std, output_std):
    params = initial(tiny_gpt(**settings | WIDE))
    assert_biases_and_norms(params)
    for path, values in params.items():
        if path.endswith(("output/kernel", "down/kernel")):
            assert_std(values, output_std)
        elif path.endswith("kernel") or path == "embeddings/token/embedding":
            assert_std(values, 0.02)
        elif path == "embeddings/position/embedding":
            assert_std(values, position_std)
    assert np.abs(params["embeddings/token/embedding"]).max() > 3 * 0.02  # not cut


def test_bert_initial_values():
    """TensorFlow's truncated normal: cut at two sigma and not rescaled."""
    params = initial(tiny_bert(**WIDE, num_layers=1))
    assert_biases_and_norms(params)
    for path, values in params.items():
        if path.endswith(("kernel", "embedding")):
            assert np.abs(values).max() <= 0.04, path
            assert_std(values, 0.0175925)
    assert params["embeddings/token/embedding"][0].any()  # [PAD] is a row as others
    plain = initial(tiny_bert(**WIDE, num_layers=0, truncated_init=False))
    assert_std(plain["embeddings/token/embedding"], 0.02)
    assert np.abs(plain["embeddings/token/embedding"]).max() > 3 * 0.02


# --- Dropout and precision ---------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def drop(model, params, tokens, seed, rows=None):
    """The outputs with dropout, drawn for the rows 0, 1, ... or those given."""
    output = model.apply(
        {"params": params},
        tokens,
        dropout_rows=jnp.arange(len(tokens)) if rows is None else rows,
        rngs={"dropout": jax.random.key(seed)},
    )
    return with_logits(model, output)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_random_by_its_key_alone(name):
    model, tokens = MODELS[name], some_tokens()
    params = random_params(model)
    still = apply(model, params, tokens)["logits"]
    np.testing.assert_array_equal(still, apply(model, params, tokens)["logits"])
    one, same, other = (
        drop(model, params, tokens, seed)["logits"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - still).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_with_their_rows_numbers_draw_the_same_masks(name):
    model, tokens = MODELS[name], some_tokens(rows=4)
    params = random_params(model)
    whole = drop(model, params, tokens, 1)["logits"]
    for rows in (jnp.array([0, 2]), jnp.array([3, 1])):  # dealt out in turn, in any
        part = drop(model, params, tokens[rows], 1, rows)["logits"]
        close(part, whole[rows], 1e-6)
    unnumbered = drop(model, params, tokens[2:], 1)["logits"]
    assert np.abs(unnumbered - whole[2:]).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_dropout_sites(name, monkeypatch):
    """Rate, shape and key of every dropout, in order, as published."""
    model, params = MODELS[name], random_params(MODELS[name])
    model = model.clone(
        embedding_dropout=0.1, attention_dropout=0.2, residual_dropout=0.3
    )
    calls = []

    def record(values, rate, key, rows=None):
        calls.append((rate, values.shape, rows is None, jax.random.key_data(key)))
        return values

    for module in ("attention", "transformer", "gpt", "bert", "foreword"):
        monkeypatch.setattr(f"models.{module}.dropout", record)

    @jax.jit
    def keys(params):
        rngs = {"dropout": jax.random.key(0)}
        rows, variables = jnp.arange(2), {"params": params}
        model.apply(variables, some_tokens(), dropout_rows=rows, rngs=rngs)
        return [key for *_, key in calls]

    drawn = {tuple(key.tolist()) for key in keys(params)}
    stream = (2, LENGTH, 16)
    embeddings = [(0.1, stream, False)]
    if name == "gpt1":  # the tables are those of all rows
        embeddings = [(0.1, (128, 16), True), (0.1, (16, 16), True)]
    layer = [(0.2, (2, 2, LENGTH, LENGTH), False)] + 2 * [(0.3, stream, False)]
    assert [call[:3] for call in calls] == embeddings + 2 * layer
    assert len(drawn) == len(calls)


def test_gpt1_drops_the_table_itself():
    """A word loses the same elements wherever it stands, and in the softmax too.

    Without layers and positions the output is the embedding, and the logit of the word
    that was put in is its embedding's square.
    """
    sizes = {"num_layers": 0, "vocab_size": 3, "max_positions": 4}
    model = tiny_gpt(**GPT1 | sizes | {"embedding_dropout": 0.5})
    params = random_params(model)
    table = params["embeddings"]["token"]["embedding"]
    positions = {"embedding": jnp.zeros((4, 16))}
    params = {"embeddings": params["embeddings"] | {"position": positions}}
    tokens = jnp.ones((5, 4), jnp.int32)

    output = drop(model, params, tokens, 0)
    row = output["hidden"][0, 0]
    assert 0 < (row == 0).sum() < 16
    close(row, jnp.where(row == 0, 0, 2 * table[1]))
    np.testing.assert_array_equal(output["hidden"], jnp.tile(row, (5, 4, 1)))
    close(output["logits"][..., 1], jnp.full((5, 4), row @ row))

    usual = drop(model.clone(table_dropout=False), params, tokens, 0)
    assert len(np.unique(usual["hidden"] == 0, axis=0)) == 5
    close(usual["logits"], usual["hidden"] @ table[:3].T)


def operand_types(jaxpr):
    for equation in jaxpr.eqns:
        types = tuple(str(operand.aval.dtype) for operand in equation.invars)
        yield equation.primitive.name, types
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from operand_types(inner.jaxpr)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_matmuls_keep_float32_where_it_counts(name):
    model, tokens = MODELS[name], some_tokens()
    half = model.clone(dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes(half))}
    assert dtypes == {jnp.dtype("float32")}
    params = random_params(model)
    output, exact = apply(half, params, tokens), apply(model, params, tokens)
    assert output["logits"].dtype == jnp.float32
    assert output["hidden"].dtype == jnp.float32
    if name == "bert":
        assert logits(output["next_sentence"]).dtype == jnp.float32
    gap = np.abs(output["logits"] - exact["logits"]).max()
    assert 0 < gap < 0.05 * np.abs(exact["logits"]).max()

    def scores(params):
        output = half.apply({"params": params}, tokens)
        return [
            logits(output[one])
            for one in ("masked_lm", "causal_lm", "next_sentence")
            if one in output
        ]

    program = jax.make_jaxpr(scores)(params)
    operands = list(operand_types(program.jaxpr))
    products = [types for name, types in operands if name == "dot_general"]
    others = [types for name, types in operands if name in ("exp", "rsqrt")]
    wanted = [("bfloat16", "bfloat16")] * (len(products) - (name == "bert"))
    if name == "bert":  # the two scores of the next-sentence head
        wanted.append(("float32", "float32"))
    assert sorted(products) == sorted(wanted)
    assert set(others) == {("float32",)}  # softmax and layer norm


# --- Users' mistakes ---------------------------------------------------------


def test_mistakes_are_named():
    with pytest.raises(
        UserError, match=r"17 tokens does not fit model\.max_positions = 16"
    ):
        jax.eval_shape(lambda: apply(tiny_gpt(), {}, some_tokens(1, 17)))
    with pytest.raises(
        UserError, match=r"17 tokens does not fit model\.max_positions = 16"
    ):
        jax.eval_shape(lambda: apply(tiny_bert(), {}, some_tokens(1, 17)))
    with pytest.raises(
        UserError, match=r"17 tokens does not fit model\.max_positions = 16"
    ):
        tiny_gpt().empty_cache(1, 17)
    with pytest.raises(TypeError, match="hiden_size"):
        tiny_gpt(hiden_size=3)


@pytest.mark.parametrize("family", [*models.FAMILIES])
def test_recomputing_changes_memory_not_gradients(family, capsys):
    minis = {"bert": bert_mini, "gpt": gpt_mini, "foreword": foreword_masked}
    minis |= {"elmo": elmo_mini}
    fields = minis[family].get_config("tiny").model
    dropouts = dict.fromkeys(models.FAMILIES[family].dropouts, 0.2)
    fields = fields.to_dict() | dropouts | {"precision": "float32", "num_layers": 1}
    tokens = jnp.arange(16).reshape(2, 8)
    batch = {"tokens": tokens}
    if family == "elmo":
        spelt = 9 * (np.asarray(tokens)[..., None] + np.arange(12))
        batch["characters"] = jnp.asarray(spelt)
    key = jax.random.key(1)
    results, saved = [], []
    for remat in REMAT:
        model = models.build(fields, remat)
        params = model.init(jax.random.key(0), batch)

        def loss(params, model=model):
            out = model.apply(params, batch, key)
            language = "causal_lm" if family in ("gpt", "elmo") else "masked_lm"
            return (logits(out[language]) ** 2).mean()

        results.append((params, jax.jit(jax.value_and_grad(loss))(params)))
        print_saved_residuals(loss, params)
        saved.append(len(capsys.readouterr().out.splitlines()))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            results[0],
            other,
        )
    assert saved[0] > saved[1] > saved[2]
