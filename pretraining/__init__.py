"""The ways to pre-train that a config's `objective.name` can name, and their checks."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from data.tokenizers import Tokenizer
from errors import UserError
from pretraining import (
    bidirectional_lm,
    causal_lm,
    masked_diffusion,
    masked_lm,
    mixed,
    next_sentence,
)
from pretraining.record import Pretraining

PRETRAININGS: dict[str, Pretraining] = {
    "causal_lm": causal_lm.PRETRAINING,
    "masked_lm": masked_lm.PRETRAINING,
    "masked_diffusion": masked_diffusion.PRETRAINING,
    "next_sentence": next_sentence.PRETRAINING,
    "mixed": mixed.PRETRAINING,
    "bidirectional_lm": bidirectional_lm.PRETRAINING,
}
SIDES = {"left": "the left side alone", "both": "both sides"}


def way_of(name: str) -> Pretraining:
    """The way of an `objective.name`.

    Raises:
        UserError: there is none of that name.
    """
    if name in PRETRAININGS:
        return PRETRAININGS[name]
    near = difflib.get_close_matches(name, PRETRAININGS, n=1)
    raise UserError(
        f"objective.name={name!r} is no way to pre-train: it is one of "
        f"{', '.join(PRETRAININGS)}{f'; did you mean {near[0]}?' if near else ''}"
    )


def check_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """UserError where the tokenizer lacks a special token that the way needs, unless it
    may, and this one was told to."""
    way, there = way_of(name), tokenizer.special_ids
    roles, told = way.roles, {*tokenizer.roles} & {*way.may_lack}
    missing = [role for role in roles if role not in there and role not in told]
    if missing:
        raise UserError(
            f"objective.name={name!r} needs the special tokens {', '.join(roles)}; the "
            f"tokenizer has no {', '.join(missing)} (it has "
            f"{', '.join(sorted(there)) or 'none'}). Say which pieces they are "
            f"(--config.data.tokenizer.special_tokens='{missing[0]}=PIECE'"
            + (f"; '{missing[0]}=' for none" if missing[0] in way.may_lack else "")
            + "), or train one for it (data.tokenizer.path='')"
        )


def check_model(name: str, fields: Mapping[str, Any]) -> None:
    """Checks that a model can be pre-trained in a way.

    Args:
        name: `objective.name` of a config.
        fields: its `model`, of a family that there is.

    Raises:
        UserError: its positions see more or less than the way is made for, or it does
            not predict all that the way needs.
    """
    import models  # and with it jax, which preparing needs not

    way, family = way_of(name), models.family_of(fields)

    def does(way: Pretraining) -> bool:
        sides = family.frames if len(way.sees) > 1 else [models.sees(fields)]
        return _fits(way, sides, _outputs(way, fields))

    if does(way):
        return
    missing = [output for output in way.outputs if output not in _outputs(way, fields)]
    lacks = f"predicts {' and '.join(missing)}"
    if way.sees != (models.sees(fields),):
        sides = " or, with the same weights, ".join(SIDES[one] for one in way.sees)
        lacks = f"sees {sides} of a position"
    if _fits(way, family.frames, family.outputs):
        needed = {}
        for output in missing:
            needed |= family.outputs[output]
        ways_out = [
            " and ".join(
                f"model.{field}={value}"
                for field, value in needed.items()
                if fields[field] != value
            )
        ]
    else:
        ways_out = [
            f"model.family={other!r}"
            for other, record in models.FAMILIES.items()
            if _fits(way, record.frames, record.outputs)
        ]
    ways_out += [
        f"objective.name={other!r}"
        for other, record in PRETRAININGS.items()
        if does(record)
    ]
    raise UserError(
        f"objective.name={name!r} needs a model that {lacks}, which this one of "
        f"model.family={fields['family']!r} does not: set {', or '.join(ways_out)}"
    )


def _fits(way: Pretraining, sees: Collection[str], outputs: Collection[str]) -> bool:
    return {*way.sees} <= {*sees} and {*way.outputs} <= {*outputs}


def _outputs(way: Pretraining, fields: Mapping[str, Any]) -> set[str]:
    """What a model predicts, of a way that asks for both sides seeing either."""
    import models

    if len(way.sees) == 1:
        return models.outputs_of(fields)
    seeing = (models.seeing(fields, sides) for sides in way.sees)
    return set().union(*map(models.outputs_of, seeing))
