"""A way to pre-train: predict the token after the next one."""

import numpy as np

from data.tokenizers import GPT_SPECIAL_TOKENS
from pretraining import causal_lm
from pretraining.language_model import long_enough, perplexity, unigram_line, word_loss
from pretraining.record import Pretraining
from settings import Setting


class Examples:
    def __init__(self, objective, split, tokenizer, length):
        self.windows = causal_lm.CausalLmExamples(split, length)
        self.skip = objective.skip

    def __len__(self):
        return len(self.windows)

    def example(self, index, generator):
        row = self.windows.example(index, generator)
        segments = row["segment_ids"]
        targets, weights = np.zeros_like(row["tokens"]), np.zeros_like(row["weights"])
        targets[: -self.skip] = row["tokens"][self.skip :]
        weights[: -self.skip] = (segments[self.skip :] == segments[: -self.skip]) & (
            segments[self.skip :] > 0
        )
        return row | {"targets": targets, "weights": weights}


def loss_terms(model, logit_chunks):
    def terms(params, batch, dropout_key):
        output = model.apply(params, batch, dropout_key)
        return {"skip_lm": word_loss(output["causal_lm"], batch, logit_chunks)}

    return terms


PRETRAINING = Pretraining(
    special_tokens=GPT_SPECIAL_TOKENS,
    roles=(),
    framing=causal_lm.framing,
    examples=Examples,
    outputs=("causal_lm",),
    sees="left",
    loss_terms=loss_terms,
    predicted=lambda _, length: length,
    line=lambda split, _: unigram_line(split.unigram_counts),
    evaluation=lambda means, _: {"perplexity": perplexity(means["skip_lm_loss"])},
    commands=(),
    settings=(Setting("objective.skip", int, "How far ahead.", ">=1"),),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
