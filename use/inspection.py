"""What a model makes of a text, to look at: attention by layer and head, the words that
it expects at each place, the layers that a task has learnt to read."""

import html
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import models
from data.tokenizers import count_pieces
from errors import UserError
from models.attention import INSPECTED
from models.transformer import logits
from use.embedding import text_frame
from use.run import Run
from use.scoring import WAYS, fields_for, never_meant

PAGE = Path(__file__).with_name("inspection.html")
CANDIDATES = 5
MOST_PIECES = 128  # that a page, or a picture, can show


def inspect(run: Run, text: str) -> dict[str, Any]:
    """What there is to see of a text, as JSON has it.

    "tokens"; "attention" [layers, heads, T, T], from each token to those it reads, []
    of a model without; "expects", how words are predicted, "masked" (each token hidden
    by itself), "causal" (after those before it) or "" (not at all), and for each token
    {"probability", "best": [word, probability]}, None where nothing is predicted;
    "mix", the share of each layer that a task's head has learnt, [] where it has none.

    Raises:
      UserError: no text, or more than `MOST_PIECES` or the model's positions.
    """
    (pieces,) = run.tokenizer.encode_batch([text])
    before, after = text_frame(run)
    tokens = np.array([*before, *pieces, *after], np.int32)
    most = min(MOST_PIECES, run.config.model.max_positions)
    if not len(pieces):
        raise UserError("--text has no text: write one")
    if len(tokens) > most:
        raise UserError(
            f"--text has {len(tokens)} tokens, and {most} can be shown: shorten it"
        )
    run.tell_unknown(*count_pieces(run.tokenizer, tokens))
    way = expected_way(run)
    inner = range(len(before), len(before) + len(pieces))
    return {
        "run": str(run.folder),
        "family": run.config.model.family,
        "tokens": [shown(run, token) for token in tokens.tolist()],
        "attention": attention_weights(run, tokens).round(4).tolist(),
        "expects": way,
        "expected": expected(run, way, tokens, inner),
        "mix": mix_shares(run),
    }


def shown(run: Run, token: int) -> str:
    """A piece as a reader has it, without what says that it begins a word."""
    piece = run.tokenizer.pieces[token]
    if token in run.tokenizer.special_ids.values():
        return piece
    return run.tokenizer.decode([token]).strip() or piece


def attention_weights(
    run: Run, tokens: Int[np.ndarray, " T"]
) -> Float[np.ndarray, "L H T T"] | Float[np.ndarray, " 0"]:
    """How much each token reads of each, by layer and head."""
    read = run.reads({"tokens": tokens[None]})
    read = {name: jnp.asarray(read[name]) for name in run.base.inputs if name in read}

    @jax.jit
    def weights(params: Any, batch: dict) -> dict:
        _, seen = run.base.module.apply(
            {"params": params}, **batch, mutable=[INSPECTED]
        )
        return seen

    found = weights(run.params, read).get(INSPECTED, {})
    layers = [found[name] for name in sorted(found, key=lambda name: int(name[6:]))]
    arrays = [np.asarray(jax.tree.leaves(layer)[0][0]) for layer in layers]
    return np.stack(arrays) if arrays else np.zeros(0, np.float32)


def influence(run: Run, text: str) -> tuple[list[str], Float[np.ndarray, "T T D"]]:
    """The tokens of a text, and how the last state of each changes when one of them is
    another: [the one that is changed, the one whose state it is].

    Raises:
      UserError: no text, or more than `MOST_PIECES`.
    """
    (pieces,) = run.tokenizer.encode_batch([text])
    if not 0 < len(pieces) <= MOST_PIECES:
        raise UserError(
            f"the text has {len(pieces)} tokens, and 1 to {MOST_PIECES} can be shown"
        )
    tokens = np.array(pieces, np.int32)
    words = min(run.config.model.vocab_size, run.tokenizer.vocab_size)
    others = (tokens + 1) % words
    rows = np.stack([tokens, *np.where(np.eye(len(tokens)) > 0, others, tokens)])
    read = run.reads({"tokens": rows.astype(np.int32)})
    read = {name: jnp.asarray(read[name]) for name in run.base.inputs if name in read}
    states = np.asarray(jax.jit(run.base.apply)(run.params, read)["hidden"], np.float32)
    return [shown(run, token) for token in tokens.tolist()], states[1:] - states[0]


def expected_way(run: Run) -> str:
    """Of `scoring.WAYS` the one that the run predicts words in, "" for none; of two the
    one that sees the sides that its attention is shown with."""
    if run.task is not None:
        return ""
    sees_both = models.sees(run.config.model) == "both"
    for name in sorted(WAYS, key=lambda name: WAYS[name].sees_both != sees_both):
        output = WAYS[name].output
        outputs = models.outputs_of(fields_for(run, WAYS[name]))
        if output in run.way.outputs and output in outputs:
            return name
    return ""


def expected(
    run: Run, way: str, tokens: Int[np.ndarray, " T"], inner: range
) -> list[dict[str, Any] | None]:
    """For each token how likely it was, and the likeliest."""
    found: list[dict[str, Any] | None] = [None] * len(tokens)
    if not way:
        return found
    if WAYS[way].sees_both:
        rows = np.tile(tokens, (len(inner), 1))
        rows[np.arange(len(inner)), list(inner)] = run.tokenizer.special_ids["mask"]
        places, targets = np.array([*inner])[:, None], [*inner]
    else:
        rows, targets = tokens[None], [*range(1, len(tokens))]
        places = np.arange(len(tokens) - 1)[None]
    probabilities = word_probabilities(run, way, rows, places)
    for target, row in zip(targets, probabilities, strict=True):
        best = np.argsort(row)[::-1][:CANDIDATES].tolist()
        own = int(tokens[target])
        found[target] = {
            "probability": float(row[own]) if own < len(row) else 0.0,
            "best": [[shown(run, word), float(row[word])] for word in best],
        }
    return found


def word_probabilities(
    run: Run,
    way: str,
    rows: Int[np.ndarray, "B T"],
    places: Int[np.ndarray, "B P"],
) -> Float[np.ndarray, "N V"]:
    """Of all words that there are at some places, row by row."""
    model = models.build(fields_for(run, WAYS[way]))
    read = run.reads({"tokens": rows})
    read = {name: jnp.asarray(read[name]) for name in model.inputs if name in read}

    @jax.jit
    def probabilities(params: Any, batch: dict, places: Any) -> Any:
        prediction = model.apply(params, batch)[WAYS[way].output]
        states = jnp.take_along_axis(prediction.states, places[:, :, None], axis=1)
        return jax.nn.softmax(logits(prediction._replace(states=states)), axis=-1)

    found = np.asarray(probabilities(run.params, read, jnp.asarray(places)))
    shares = found.reshape(places.size, -1).copy()
    shares[:, never_meant(run)] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[:, : min(run.config.model.vocab_size, run.tokenizer.vocab_size)]


def mix_shares(run: Run) -> list[float]:
    """The share of each layer, the embedded tokens first."""
    if run.task is None or run.config.head.layers != "mix":
        return []
    weights = run.params["head"]["features"]["mix"]["weights"]
    return np.asarray(jax.nn.softmax(weights)).round(4).tolist()


def page(found: dict[str, Any]) -> str:
    """One HTML file that needs nothing else."""
    title = html.escape(f"{found['family']} reads: {' '.join(found['tokens'])[:60]}")
    data = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")
    before, between, after = re.split(
        "__TITLE__|__DATA__", PAGE.read_text(encoding="utf-8")
    )
    return f"{before}{title}{between}{data}{after}"


def picture(found: dict[str, Any], file: BinaryIO) -> None:
    """A PNG: every head of every layer, and how likely each token was."""
    import matplotlib.pyplot as plt

    weights, tokens = np.array(found["attention"]), found["tokens"]
    layers, heads = weights.shape[:2] if weights.size else (0, 1)
    has_bars = any(found["expected"])
    rows, size = layers + has_bars, max(2.2, 0.14 * len(tokens))
    width = max(size * heads + 1, 7)
    figure = plt.figure(figsize=(width, size * layers + 3.2 * has_bars + 0.6))
    grid = figure.add_gridspec(max(1, rows), heads)
    for layer in range(layers):
        for head in range(heads):
            axes = figure.add_subplot(grid[layer, head])
            axes.imshow(weights[layer, head], cmap="Blues", vmin=0)
            axes.set_xticks([])
            axes.set_yticks([])
            if head == 0:
                axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
            axes.set_title(f"layer {layer}, head {head}", fontsize=10)
    if has_bars:
        axes = figure.add_subplot(grid[layers, :])
        values = [one["probability"] if one else 0 for one in found["expected"]]
        axes.bar(range(len(tokens)), values, color="#2f5bea")
        axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
        plt.setp(axes.get_xticklabels(), rotation_mode="anchor")
        axes.set_ylabel("probability of the token")
        axes.set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
