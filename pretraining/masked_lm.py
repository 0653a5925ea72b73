"""Masked language modelling alone: predict the tokens behind the mask.

Source: Devlin et al. 2019, section 3.1, task 1; without next sentence prediction, as
Liu et al. 2019, section 4.2, in rows packed full.
"""

from data.tokenizers import BERT_SPECIAL_TOKENS
from pretraining import masked_words
from pretraining.record import Pretraining

PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    framing=masked_words.framing,
    examples=masked_words.make_examples,
    outputs=("masked_lm",),
    sees=("both",),
    loss_terms=masked_words.masked_loss_terms("masked_lm"),
    predicted=lambda objective, _: objective.max_predictions,
    measures=masked_words.MEASURES,
    lines=masked_words.lines,
    evaluation=masked_words.evaluation,
    commands=("fill_mask",),
    settings=masked_words.SETTINGS,
    rules=masked_words.RULES,
    tiny=masked_words.tiny,
)
