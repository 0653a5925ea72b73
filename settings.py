"""What a setting is: its type, its range, a line of help, and how a value is checked.

The rows that every config has stand in `configs/`; families, ways to pre-train and
kinds of task bring the rows of their own fields.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from errors import UserError

TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
}
ITEMS = {
    "texts": "texts",
    "patterns": "regular expressions",
    "lengths": "updates, or texts such as '3M tokens', '1M words' or '10%'",
}
BOUNDS = {
    ">=": ("at least", operator.ge),
    ">": ("more than", operator.gt),
    "<=": ("at most", operator.le),
    "<": ("less than", operator.lt),
}
NEVER = object()  # every run ever begun has the setting
# Units of an amount that is written as a text, and an example of each.
UNITS = {"tokens": "'300M tokens'", "words": "'10M words'", "%": "'10%'"}
SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
NUMBER = r"([\d_]*\.?\d+(?:e\+?\d+)?)"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a config, by its whole name, "optim.learning_rate".

    Attributes:
        type: of its values; a float may be written as an int.
        help: one line.
        range: of its values, such as ">=0 <1".
        choices: all values there are.
        older: what runs had that were begun before the setting existed.
        units: of UNITS, in which it may be written as well, as a text.
        items: of ITEMS, what a tuple holds; "": what a rule sees to.
    """

    name: str
    type: type
    help: str
    range: str = ""
    choices: Collection[Any] = ()
    older: Any = NEVER
    units: Collection[str] = ()
    items: str = ""

    def bounds(self) -> list[tuple[str, float]]:
        """[(">=", 0.0), ...]"""
        parts = (re.fullmatch(r"([<>]=?)(.+)", part) for part in self.range.split())
        return [(part[1], float(part[2])) for part in parts if part]

    def wanted(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        bounds = " and ".join(f"{BOUNDS[op][0]} {x:.12g}" for op, x in self.bounds())
        texts = " or ".join(UNITS[unit] for unit in self.units)
        texts = f"or a text such as {texts}" if texts else ""
        kind = TYPES[self.type] + (f" of {ITEMS[self.items]}" if self.items else "")
        return ", ".join(words for words in (kind, bounds, texts) if words)

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type and lies in the range; what is not finite, or
        more than 64 bits hold, never does. An amount counts as whole, rounded up."""
        if self.units and isinstance(value, str):
            number, unit = amount(value) or (0, "")
            return unit in self.units and self.allows(math.ceil(number))
        types = {float: (int, float), tuple: (tuple, list)}  # a list, as JSON has it
        if not isinstance(value, types.get(self.type, self.type)) or (
            isinstance(value, bool) and self.type is not bool
        ):
            return False
        if self.choices:
            return value in self.choices
        if self.type is tuple:
            return not self.items or all(map(IS_ITEM[self.items], value))
        if self.type in (int, float) and not abs(value) < 2**63:
            return False
        return all(BOUNDS[op][1](value, bound) for op, bound in self.bounds())

    def check_in(self, values: Mapping[str, Any]) -> None:
        """Raises UserError where the values, by name, lack it or have it wrong."""
        if self.name not in values:
            raise UserError(f"the config has no {self.name}: add it, {self.wanted()}")
        value = values[self.name]
        if not self.allows(value):
            raise UserError(f"{self.name}={value!r} must be {self.wanted()}")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_pattern(value: Any) -> bool:
    try:
        return is_text(value) and bool(re.compile(value))
    except re.error:
        return False


def is_length(value: Any) -> bool:
    """A number of updates or an amount, more than none."""
    if isinstance(value, str):
        return (amount(value) or (0, ""))[0] > 0
    return type(value) is int and value > 0


IS_ITEM = {"texts": is_text, "patterns": is_pattern, "lengths": is_length}


def amount(text: str) -> tuple[float, str] | None:
    """(number, unit) of "1.5B tokens", "10M words" or "10%"; None for other texts."""
    if share := re.fullmatch(NUMBER + " ?%", text):
        return (float(share[1]), "%") if float(share[1]) <= 100 else None
    found = re.fullmatch(NUMBER + " ?([kKMBT]?) ?(tokens|words)", text)
    number = float(found[1]) * SCALES[found[2]] if found else math.inf
    return (number, found[3]) if found and number < 2**63 else None


# What must fit what: None, or the sentence that the user gets. It is given the whole
# config, and stands with the settings that it is about.
Rule = Callable[[Any], str | None]
