"""Dialogues of several turns: a model plays the user, after each answer of the teacher's.

The user is shown the dialogue with the roles exchanged, as in self-chat (Baize, arXiv 2304.01196, and UltraChat, arXiv
2305.14233, which has a second model play the user), and asked for one message more. Many dialogues go on side by side; every
turn is a question of its own, so that a ledger answers what was answered before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from limbeck.answers import THINKING, Answer, Given, Question
from limbeck.config import Part, part
from limbeck.errors import RecipeError
from limbeck.instruct import Ask, answered

PERSONA = "You are a person talking to an assistant. You want to get further with what you asked first: follow up, ask about details, or correct it."

REQUEST = """\
{persona}
Write your next message to it: one message only, in your own voice, nothing before or after it, and no answer of its kind. \
When you have what you wanted, write {done} alone."""

OPENING = "Hello! How can I help you?"
"""What the assistant is said to have begun with: many templates refuse a dialogue whose first turn is the model's own."""

SPEAKER = re.compile(r"^(?:user|human|me)[ \t]*:\s*", re.IGNORECASE)

Ended = Literal["turns", "user", "repeated", "cut", "tools", "purse"]
"""Why a dialogue has no more turns: it has as many as were asked for; the user was done, or said nothing; the user said the
same again, or what was said to it; a message was cut, withheld or empty; the teacher called a tool, and nobody runs it; it could not be paid for."""


@dataclass
class Dialogue:
    """A dialogue that a teacher's answer began. messages: what is said so far, the last of them the teacher's."""

    begun: Given
    messages: list[dict[str, Any]]
    given: list[Given] = field(default_factory=list[Given])
    ended: Ended | None = None

    def row(self, inline: bool = False) -> dict[str, Any]:
        """The row that teaches it: `messages`, `tools` where there are any, and the other columns.

        What was thought stands in each message as `reasoning_content`; inline: before its content, as in `Question.taught`.
        """
        question = self.begun.question
        messages = [_inlined(message) for message in self.messages] if inline else self.messages
        return {"messages": messages, **question.columns, **_tools(question)}

    def said(self) -> list[dict[str, Any]]:
        """The dialogue as it is shown to those who go on with it: without what was thought, which providers refuse or drop."""
        return [{name: value for name, value in message.items() if name != "reasoning_content"} for message in self.messages]


@part
class Dialogues(Part):
    """Goes on with dialogues until each has `turns` answers of the teacher's, or its user is done.

    persona: who the user is, in a sentence or two. done: what a user writes to end it.
    """

    turns: int = 3
    persona: str = PERSONA
    done: str = "[DONE]"

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise RecipeError(f"Dialogues.turns must be at least 1, found {self.turns}")
        if not self.done.strip():
            raise RecipeError('Dialogues.done must be a word that nobody writes by chance, found none; give one, such as "[DONE]"')

    def run(self, given: Sequence[Given], ask: Ask, user: Ask | None = None) -> list[Dialogue]:
        """One dialogue for each first answer, in their order. user: asks who plays the user; where None, the teacher itself.

        A turn that is not whole is left out with the message that led to it, so that a dialogue ends with a whole answer unless
        its first was not. Asked again, with the same answers, it makes the same. Raises RecipeError for prompts that are
        continued as they stand.
        """
        dialogues = [self._begin(each) for each in given]
        for _ in range(1, self.turns):
            going = [each for each in dialogues if each.ended is None]
            said = answered(user or ask, [self._user_question(each) for each in going])
            asked = [(each, text) for each, told in zip(going, said, strict=True) if (text := self._user_text(each, told)) is not None]
            answers = answered(ask, [_question(each, text) for each, text in asked])
            for (dialogue, text), answer in zip(asked, answers, strict=True):
                _take(dialogue, text, answer)
        for each in dialogues:
            each.ended = each.ended or "turns"
        return dialogues

    def _begin(self, first: Given) -> Dialogue:
        messages = first.question.messages
        if messages is None:
            raise RecipeError(f'{first.question.data.path}: a dialogue has turns, and template="plain" has none; use "chat", or turns=1')
        return Dialogue(first, [*messages, _message(first.answer)], ended=_end(first.answer))

    def _user_question(self, dialogue: Dialogue) -> Question:
        """What is asked of the user's player."""
        request = {"role": "system", "content": REQUEST.format(persona=self.persona, done=self.done)}
        messages = [request, *exchanged([{"role": "assistant", "content": OPENING}, *dialogue.messages])]
        return _asking(dialogue.begun, {"messages": messages})

    def _user_text(self, dialogue: Dialogue, given: Given | None) -> str | None:
        """What the user said; None, with the reason noted, where that is nothing to answer."""
        if given is None:
            dialogue.ended = "purse"
            return None
        dialogue.given.append(given)
        text = SPEAKER.sub("", given.answer.text.strip())
        if given.answer.finish != "end":
            dialogue.ended = "cut"
        elif not text or self.done in text:
            dialogue.ended = "user"
        elif any(message.get("content") == text for message in dialogue.messages):
            dialogue.ended = "repeated"
        return text if dialogue.ended is None else None


def exchanged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A dialogue as its user sees it: user and assistant exchanged; systems, tools and calls unseen; turns in a row joined."""
    roles, seen = {"user": "assistant", "assistant": "user"}, list[dict[str, Any]]()
    for message in messages:
        role, text = roles.get(str(message["role"])), _text(message.get("content"))
        if role is None or not text:
            continue
        if seen and seen[-1]["role"] == role:
            seen[-1]["content"] += f"\n\n{text}"
        else:
            seen.append({"role": role, "content": text})
    return seen


def _text(content: Any) -> str:
    """The text of a message's content: of several parts, those that are text."""
    if not isinstance(content, list):
        return str(content or "").strip()
    parts = cast(list[dict[str, Any]], content)
    return "\n".join(str(part["text"]) for part in parts if "text" in part).strip()


def _question(dialogue: Dialogue, text: str) -> Question:
    """What is asked of the teacher next."""
    return _asking(dialogue.begun, {"messages": [*dialogue.said(), {"role": "user", "content": text}], **_tools(dialogue.begun.question)})


def _asking(begun: Given, row: dict[str, Any]) -> Question:
    """A question for one answer, as the dialogue's first was asked: as that sample, so that equal beginnings part again."""
    return replace(begun.question, row=row, samples=(begun.sample,))


def _take(dialogue: Dialogue, text: str, given: Given | None) -> None:
    """Put a turn of each into the dialogue, if the teacher's is whole."""
    if given is None:
        dialogue.ended = "purse"
        return
    dialogue.given.append(given)
    dialogue.ended = _end(given.answer)
    if dialogue.ended != "cut":
        dialogue.messages += [{"role": "user", "content": text}, _message(given.answer)]


def _end(answer: Answer) -> Ended | None:
    """Whether a teacher's answer ends its dialogue."""
    if answer.finish in ("length", "filter") or not (answer.text.strip() or answer.tool_calls):
        return "cut"
    return "tools" if answer.tool_calls else None


def _message(answer: Answer) -> dict[str, Any]:
    """An answer as a message: what was thought, and tools that were called, in fields of their own."""
    thought = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
    return {"role": "assistant", "content": answer.text, **thought, **({"tool_calls": answer.tool_calls} if answer.tool_calls else {})}


def _inlined(message: dict[str, Any]) -> dict[str, Any]:
    """A message with what was thought in its content."""
    kept, (begin, end) = dict(message), THINKING
    thought = kept.pop("reasoning_content", "")
    return {**kept, "content": f"{begin}\n{thought}\n{end}\n\n{kept['content']}"} if thought else kept


def _tools(question: Question) -> dict[str, Any]:
    return {"tools": question.row["tools"]} if question.row.get("tools") else {}
