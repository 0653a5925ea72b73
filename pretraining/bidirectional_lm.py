"""Bidirectional language modelling: the next word, and by another model the last one.

Source: ELMo (Peters et al. 2018), section 3.1. A word is read by its characters and
predicted by its number, if it is one of the model's most frequent ones, or as unknown.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from data.shards import Framing, Shards
from data.spelling import cut_to
from data.tokenizers import ELMO_SPECIAL_TOKENS, Tokenizer
from data.windows import Batch, Visits
from pretraining.counts import Ngrams, stream_of
from pretraining.language_model import long_enough, perplexity, word_loss
from pretraining.next_words import CausalLmExamples, target_probabilities
from pretraining.record import Carry, HeldOut, Line, Objective, Pretraining
from settings import Setting

Fields = Any  # `model` of a config

if TYPE_CHECKING:
    from models.transformer import Prediction

NGRAMS = {"unigram": 1, "bigrams": 2, "5-grams": 5}


class BidirectionalLmExamples(CausalLmExamples):
    """Windows of the stream, each word predicting both its neighbours in its document.

    Over all windows each word that has a neighbour before it is predicted once from
    the left, and each that has one after it once from the right.
    """

    def batch(self, visits: Visits) -> Batch:
        """Nothing is drawn."""
        rows = super().batch(visits)
        tokens, positions = rows["tokens"], rows.pop("positions")
        starts = visits.indices * self.sequence_length
        before = np.asarray(self.shards.tokens[np.maximum(starts - 1, 0)])
        previous = np.concatenate(
            [before[:, None].astype(tokens.dtype), tokens[:, :-1]], axis=1
        )
        is_next = positions > 0
        begun = self.shards.documents[
            np.searchsorted(self.shards.documents, starts, side="right") - 1
        ]
        is_next[:, 0] = begun < starts
        is_next &= rows["segment_ids"] > 0
        return rows | {
            "previous_targets": previous * is_next,
            "previous_weights": is_next.astype(np.float32),
        }


def framing(tokenizer: Tokenizer) -> Framing:
    """Marks stand before and after each document."""
    special = tokenizer.special_ids
    return Framing(special["cls"], special["sep"], split_sentences=False)


def output_terms(objective: Objective, model: Any, logit_chunks: int) -> Callable:
    """(output, batch, dropout key) -> half the loss of each direction; with a dropout
    key, in training, estimated with `sampled_words` of the softmax."""
    import jax

    from objectives.sampled_softmax import sampled_cross_entropy

    sampled, size = objective.sampled_words, model.module.vocab_size

    def one(prediction: "Prediction", targets: Any, weights: Any, key: Any) -> tuple:
        if key is None or not sampled:
            batch = {"targets": targets, "weights": weights}
            loss, weight, metrics = word_loss(prediction, batch, logit_chunks)
        else:
            loss, weight, metrics = sampled_cross_entropy(
                *prediction,
                targets,
                weights,
                key,
                num_sampled=sampled,
                vocab_size=size,
            )
        return loss / 2, weight, metrics

    def terms(output: dict, batch: dict, dropout_key: Any) -> dict:
        keys = [None, None]
        if dropout_key is not None:
            keys = [jax.random.fold_in(dropout_key, way) for way in (1, 2)]
        ahead = one(output["causal_lm"], batch["targets"], batch["weights"], keys[0])
        back = one(
            output["backward_lm"],
            batch["previous_targets"],
            batch["previous_weights"],
            keys[1],
        )
        return {"forward": ahead, "backward": back}

    return terms


def loss_terms(objective: Objective, model: Any, logit_chunks: int) -> Callable:
    """Of rows that begin with nothing read before."""
    of_output = output_terms(objective, model, logit_chunks)

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        output = model.apply(params, batch, dropout_key)
        return of_output(output, batch, dropout_key)

    return terms


def carried_loss_terms(objective: Objective, model: Any, logit_chunks: int) -> Callable:
    """Of rows whose forward model goes on where the batch before ended, unless another
    document begins there. What comes after a row is not known yet: the backward model
    begins with nothing."""
    import jax.numpy as jnp
    from jax import lax, tree

    of_output = output_terms(objective, model, logit_chunks)

    def terms(params: Any, batch: dict, dropout_key: Any) -> tuple[dict, Any]:
        goes_on = batch["goes_on"] & (batch["previous_weights"][:, 0] > 0)

        def both_ways(forward: Any) -> Any:
            forward = jnp.where(goes_on[:, None], forward, 0)
            return jnp.stack([forward, jnp.zeros_like(forward)])

        state = tree.map(both_ways, batch["carried"])
        output = model.apply(params, batch | {"state": state}, dropout_key)
        carried = tree.map(lambda x: lax.stop_gradient(x[0]), output["state"])
        return of_output(output, batch, dropout_key), carried

    return terms


def carried_shapes(fields: Fields, rows: int) -> Any:
    """Cells and outputs of the forward model's layers."""
    import jax
    import jax.numpy as jnp

    sizes = fields["cell_size"], fields["projection_size"]
    layer = tuple(jax.ShapeDtypeStruct((rows, size), jnp.float32) for size in sizes)
    return (layer,) * fields["num_layers"]


CARRY = Carry(carried_loss_terms, carried_shapes)


def evaluation(means: Mapping[str, float], _: Shards) -> dict[str, float]:
    """Perplexity of a word, from the words before it and from those after it."""
    return {
        f"{way}_perplexity": perplexity(2 * means[f"{way}_loss"])
        for way in ("forward", "backward")
    }


def lines(
    _: Objective, tokenizer: Tokenizer, train: Shards, held_out: HeldOut
) -> tuple[Line, ...]:
    """Counts of words, and of what stands before and after them, as the model's loss:
    the mean of both directions."""
    size, unknown = held_out.vocab_size, tokenizer.special_ids["unk"]
    ends = train.num_tokens - train.documents[::-1]
    read = (
        stream_of(train.tokens, train.documents),
        stream_of(train.tokens[::-1], ends),
    )
    ways = [x._replace(words=cut_to(x.words, size, unknown)) for x in read]
    models = {
        name: [Ngrams(text, size, order) for text in ways]
        for name, order in NGRAMS.items()
    }
    losses, predicted = np.zeros((len(models), 2)), np.zeros(2)
    for given in held_out.batches:
        batch = given | {"tokens": cut_to(given["tokens"], size, unknown)}
        for way, rows in enumerate((batch, reversed_rows(batch))):
            weights = rows["weights"].reshape(-1)
            predicted[way] += weights.sum()
            for number, both in enumerate(models.values()):
                losses[number, way] -= weights @ np.log(
                    target_probabilities(both[way], rows)
                )
    means = (losses / predicted).mean(axis=1)
    return tuple(
        Line(name, "loss", loss)
        for name, loss in zip(models, means.tolist(), strict=True)
    )


def reversed_rows(batch: Batch) -> Batch:
    """The rows from right to left, each word predicting the one that is next then."""
    names = {
        "tokens": "tokens",
        "segment_ids": "segment_ids",
        "targets": "previous_targets",
        "weights": "previous_weights",
    }
    return {name: batch[source][:, ::-1] for name, source in names.items()}


def samples_fit(config: ConfigDict) -> str | None:
    sampled, size = config.objective.sampled_words, config.model.vocab_size
    if sampled >= size:
        return (
            f"objective.sampled_words={sampled} is not fewer than model.vocab_size="
            f"{size}: lower it, or 0 for the whole softmax"
        )
    return None


def carrying_fits(config: ConfigDict) -> str | None:
    if not config.objective.carry_state:
        return None
    if config.data.phases:
        return (
            "objective.carry_state=True goes on row by row, which batches of another "
            f"shape cannot: data.phases={config.data.phases!r} must be () then"
        )
    if config.run.parallel != "jit":
        return (
            "objective.carry_state=True keeps what each row carries on its device, but "
            f"run.parallel={config.run.parallel!r} has one state on all: use 'jit'"
        )
    return None


PRETRAINING = Pretraining(
    special_tokens=ELMO_SPECIAL_TOKENS,
    roles=("cls", "sep", "unk"),
    framing=framing,
    examples=lambda _, tokenizer, length: (
        lambda split: BidirectionalLmExamples(split, length)
    ),
    outputs=("causal_lm", "backward_lm"),
    sees=("both",),
    loss_terms=loss_terms,
    predicted=lambda _, length: length,
    measures={},  # its loss is one already
    lines=lines,
    evaluation=evaluation,
    commands=(),
    settings=(
        Setting(
            "objective.sampled_words",
            int,
            "Of the softmax, that training is estimated with; 0: all.",
            ">=0",
        ),
        Setting(
            "objective.carry_state",
            bool,
            "The forward model goes on from the batch before, in lanes of the text.",
            older=False,
        ),
    ),
    rules=(long_enough, samples_fit, carrying_fits),
    tiny=lambda *_: {"sampled_words": 64},
    carry=lambda objective: CARRY if objective.carry_state else None,
)
