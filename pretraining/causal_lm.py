"""Causal language modelling: predict the next token.

Source: Radford et al. 2018, section 3.1.
"""

from data.shards import Framing
from data.tokenizers import GPT_SPECIAL_TOKENS, Tokenizer
from pretraining import next_words
from pretraining.language_model import long_enough
from pretraining.next_words import CausalLmExamples
from pretraining.record import Pretraining


def framing(tokenizer: Tokenizer) -> Framing:
    """The end-of-text token stands before and after each document if the vocabulary
    has one, so that first tokens and ends are predicted as well."""
    end_of_text = tokenizer.special_ids.get("end_of_text")
    return Framing(end_of_text, end_of_text, split_sentences=False)


PRETRAINING = Pretraining(
    special_tokens=GPT_SPECIAL_TOKENS,
    roles=("end_of_text",),
    may_lack=("end_of_text",),
    framing=framing,
    examples=lambda _, tokenizer, length: lambda split: CausalLmExamples(split, length),
    outputs=("causal_lm",),
    sees=("left",),
    loss_terms=next_words.loss_terms,
    predicted=lambda _, length: length,
    measures={},  # its loss is one already
    lines=next_words.lines,
    evaluation=next_words.evaluation,
    commands=("generate",),
    settings=(),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
