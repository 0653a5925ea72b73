"""A way to pre-train: predict the token after the next one."""

import numpy as np

from data.tokenizers import GPT_SPECIAL_TOKENS
from pretraining import causal_lm, next_words
from pretraining.language_model import long_enough, perplexity, word_loss
from pretraining.record import Line, Pretraining
from settings import Setting


class Examples:
    def __init__(self, split, length, skip):
        self.windows = next_words.CausalLmExamples(split, length)
        self.skip = skip

    def __len__(self):
        return len(self.windows)

    def batch(self, visits):
        rows = self.windows.batch(visits)
        segments, ahead = rows["segment_ids"], self.skip
        targets, weights = np.zeros_like(rows["tokens"]), np.zeros_like(rows["weights"])
        targets[:, :-ahead] = rows["tokens"][:, ahead:]
        weights[:, :-ahead] = (segments[:, ahead:] == segments[:, :-ahead]) & (
            segments[:, ahead:] > 0
        )
        return rows | {"targets": targets, "weights": weights}


def loss_terms(_, model, logit_chunks):
    def terms(params, batch, dropout_key):
        output = model.apply(params, batch, dropout_key)
        return {"skip_lm": word_loss(output["causal_lm"], batch, logit_chunks)}

    return terms


PRETRAINING = Pretraining(
    special_tokens=GPT_SPECIAL_TOKENS,
    roles=(),
    framing=causal_lm.framing,
    examples=lambda objective, _, length: (
        lambda split: Examples(split, length, objective.skip)
    ),
    outputs=("causal_lm",),
    sees=("left",),
    loss_terms=loss_terms,
    predicted=lambda _, length: length,
    measures={},
    lines=lambda *_: (Line("a guess", "perplexity", 1000.0),),
    evaluation=lambda means, _: {"perplexity": perplexity(means["skip_lm_loss"])},
    commands=(),
    settings=(Setting("objective.skip", int, "How far ahead.", ">=1"),),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
