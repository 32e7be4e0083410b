"""A world that answers the student's turns: tools, games, a user. The student learns from its own turns alone."""

from abc import ABC, abstractmethod
from typing import Any, Self

from limbeck.config import Part, import_object, part
from limbeck.errors import RecipeError
from limbeck.reward import blaming


class Environment(Part, ABC):
    """Base of all that answer back. `turns` is how many turns a student may write in a dialogue."""

    turns: int

    @classmethod
    def adopt(cls, value: object) -> object:
        """`module:function` may stand for a function of the user's."""
        return Replies(value) if isinstance(value, str) and ":" in value and "(" not in value else value

    def load(self) -> Self:
        """The world alive; most have nothing to open."""
        return self

    @abstractmethod
    def reply(self, messages: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages that answer the last turn; none ends the dialogue. row: the columns of the prompt's row."""


@part
class Replies(Environment):
    """A user's own, `module:function`, called with (messages, row), returning the messages that answer, or none.

    The same dialogue must get the same answer, or a resumed run differs. turns: how many the student may write.
    """

    function: str
    turns: int = 4

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise RecipeError(f"Replies.turns must be at least 1, found {self.turns}")

    def load(self) -> Self:
        """Find the function."""
        with blaming(self.function):
            if not callable(import_object(self.function)):
                raise RecipeError(f'"{self.function}" is no function; it is called with (messages, row) and returns messages')
        return self

    def reply(self, messages: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
        """What the function says."""
        with blaming(self.function):
            given: Any = import_object(self.function)(messages, row)
        reply: list[Any] = [] if given is None else given
        if not isinstance(reply, list) or not all(isinstance(each, dict) and "role" in each and "content" in each for each in reply):
            raise RecipeError(f"{self.function} gave {str(reply)[:80]!r}; return a list of messages with role and content, or None at the end")
        return reply
