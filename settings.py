"""What a setting is: its type, its range, a line of help, and how a value is checked.

The rows that every config has stand in `configs/`; families, ways to pre-train and
kinds of task bring the rows of their own fields.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError

TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
}
NEVER = object()  # every run ever begun has the setting


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a config, by its whole name, "optim.learning_rate".

    Attributes:
        type: of its values; a float may be written as an int.
        help: one line.
        choices: all values there are.
        at_least, more_than, less_than, at_most: its range.
        older: what runs had that were begun before the setting existed.
    """

    name: str
    type: type
    help: str
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    more_than: float | None = None
    less_than: float | None = None
    at_most: float | None = None
    older: Any = NEVER

    def range(self) -> str:
        """The values it may have, in words; "" where any of its type will do."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        bounds = {
            "at least": self.at_least,
            "more than": self.more_than,
            "less than": self.less_than,
            "at most": self.at_most,
        }
        return " and ".join(
            f"{words} {bound}" for words, bound in bounds.items() if bound is not None
        )

    def wanted(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return self.range()
        return ", ".join(words for words in (TYPES[self.type], self.range()) if words)

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type and lies in the range; NaN never does."""
        types = {float: (int, float), tuple: (tuple, list)}  # a list, as JSON has it
        if not isinstance(value, types.get(self.type, self.type)) or (
            isinstance(value, bool) and self.type is not bool
        ):
            return False
        if self.choices:
            return value in self.choices
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.less_than is None or value < self.less_than)
            and (self.at_most is None or value <= self.at_most)
        )

    def check_in(self, values: Mapping[str, Any]) -> None:
        """Raises UserError where the values, by name, lack it or have it wrong."""
        if self.name not in values:
            raise UserError(f"the config has no {self.name}: add it, {self.wanted()}")
        value = values[self.name]
        if not self.allows(value):
            raise UserError(f"{self.name}={value!r} must be {self.wanted()}")


# What must fit what: None, or the sentence that the user gets. It is given the whole
# config, and stands with the settings that it is about.
Rule = Callable[[Any], str | None]
