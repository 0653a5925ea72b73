"""Masked language modelling alone: predict the tokens behind the mask.

Source: Devlin et al. 2019, section 3.1, task 1; without next sentence prediction, as
Liu et al. 2019, section 4.2, in rows packed full.
"""

from collections.abc import Callable

from data.masking import Masking
from data.shards import Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import Batch, Visits
from pretraining import masked_words
from pretraining.masked_words import Windows
from pretraining.record import Objective, Pretraining


class MaskedLmExamples:
    """Windows of the stream, some of their tokens masked."""

    def __init__(self, windows: Windows, masking: Masking):
        self.windows = windows
        self.masking = masking

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, visits: Visits) -> Batch:
        return self.masking.mask(self.windows.rows(visits.indices), visits.draws)


def make_examples(
    objective: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], MaskedLmExamples]:
    masking = masked_words.make_masking(objective, tokenizer)
    return lambda split: MaskedLmExamples(
        Windows(split, tokenizer, sequence_length), masking
    )


PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    framing=masked_words.framing,
    examples=make_examples,
    outputs=("masked_lm",),
    sees="both",
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
