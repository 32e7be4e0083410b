"""How much of the teacher's robustness a student kept: the same answers read after edited prompts.

The answers are the data's completions or, where a row has none, the teacher's own to the clean prompts. Each edit changes the user's last turn
alone; teacher and students then read the same answers after it, the teacher once for all of them. What a prompt is worth at all is measured by
the edit `another`: the prompt of another row. OUT/robustness/EDIT.jsonl (edited prompts) · OUT/tables/STUDENT/EDIT (tables of tokens).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.batch import Text
from limbeck.data import Data, Row, messages_of
from limbeck.errors import CheckpointError, DataError, RecipeError
from limbeck.files import read_jsonl, write_jsonl
from limbeck.transfer.adversarial import Suffix, results, suffixes
from limbeck.transfer.edits import Edit, chosen, edits
from limbeck.transfer.figures import told
from limbeck.transfer.lost import Losses, alone, beside, only, sides, under
from limbeck.transfer.measure import GIVEN, Transfer
from limbeck.transfer.other import OTHER, other_texts
from limbeck.transfer.rows import taken_rows
from limbeck.transfer.stretches import Work
from limbeck.transfer.subjects import TEACHER
from limbeck.transfer.tokens import Tokens
from limbeck.vocabulary import Vocabulary

CLEAN, ANOTHER = "clean", "another"
"""Beside the edits: the prompts as they are, and the prompt of another row."""


@dataclass(frozen=True)
class Answer:
    """An answer that is read after a prompt and its edits. row: of the data. asked: the user's last turn; None where only its tokens are known."""

    row: int
    data: Data
    columns: Row
    prompt: list[int]
    completion: list[int]
    asked: str | None

    @property
    def clean(self) -> Text:
        """After the prompt as it is."""
        return Text.answered(self.prompt, self.completion, {"row": self.row})


@dataclass(frozen=True)
class Robustness:
    """What to measure. edits: names or kinds of edits, all by default. other: data of another kind. adversarial: steps of a search for a suffix.
    longer: tokens of unrelated text before a prompt.

    Raises RecipeError, when it is made, for an edit that nobody knows.
    """

    edits: Sequence[str] = ()
    other: str | None = None
    adversarial: int = 0
    longer: int = 256

    def __post_init__(self) -> None:
        _ = self.names
        if self.longer < 1 or self.adversarial < 0:
            raise RecipeError(f"a longer context has at least 1 token and a search no fewer than 0 steps, found {self.longer} and {self.adversarial}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the edits, in the order in which they are shown."""
        return chosen(self.edits)

    def begun(self, transfer: Transfer) -> "UnderEdits":
        """The work, as a part of an evaluation."""
        return UnderEdits(self, transfer)


class UnderEdits:
    """Robustness under way: edited prompts made once, then one student after the other."""

    def __init__(self, asked: Robustness, transfer: Transfer) -> None:
        self.asked, self.transfer = asked, transfer
        self.missing = list[str]()
        self.answers = list[Answer]()
        self.text: str | None = None
        self._texts = dict[str, list[Text]]()
        self._made = dict[str, list[dict[str, Any]]]()
        self._ready = False

    def works(self, name: str) -> Iterator[Work]:
        """What one student is to read under every edit, and a suffix to be searched."""
        if not self._ready:
            self._prepare()
            self._ready = True
        for edit, texts in self._texts.items():
            yield self.transfer.reading(name, edit, texts, {each: self._folder(each, edit) for each in self.transfer.subjects.students})
        if self.asked.adversarial and self.answers:
            yield Suffix(self.transfer, name, self.answers, self.asked.adversarial, self._miss)

    def _miss(self, why: str | None) -> None:
        if why:
            self.missing.append(f"robustness: {why}")

    def _prepare(self) -> None:
        """The texts of every edit, made once, and kept as they were read."""
        if not self.transfer.teacher.hears:
            return self._miss(f"{self.transfer.teacher.name} says nothing about prompts that it was not shown; give the model itself")
        self.text, self.answers = answers_of(self.transfer)
        self._miss(self._without())
        if self.answers:
            self._texts[CLEAN] = [answer.clean for answer in self.answers]
            known = edits(self.asked.longer, lambda text: len(self._vocabulary.ids(text)))
            for name in self.asked.names:
                self._add(name, self._edited(known[name]))
            self._add(ANOTHER, self._exchanged())
        if self.asked.other:
            texts, why = other_texts(self.transfer, self.asked.other, self.text)
            self._miss(why)
            self._texts |= {OTHER: texts} if texts else {}

    def _without(self) -> str | None:
        """Rows that nothing can be edited of, in words."""
        count = len(self.transfer.rows.prompts)
        if not count:
            return "no row has a prompt, so that nothing can be edited"
        if self.text is None:
            return "neither the data nor a teacher has answers to read after edited prompts; give completions, or a teacher that writes"
        few, tokens = count - len(self.answers), sum(answer.asked is None for answer in self.answers)
        said = [f"{few} of {count} prompts have no answer"] if few else []
        said += [f"{tokens} of {len(self.answers)} prompts have no user's turn of text to edit"] if tokens else []
        return ", and ".join(said) or None

    def _edited(self, edit: Edit) -> list[str | None]:
        """The user's turn of each answer under an edit; None where there is none."""
        seed = self.transfer.asked.seed
        return [None if answer.asked is None else edit.edited(answer.asked, seed, answer.row) for answer in self.answers]

    def _exchanged(self) -> list[str | None]:
        """The user's turn of the next row that asks something else."""
        every = [answer.asked for answer in self.answers]
        return [next((other for other in every[place + 1 :] + every[:place] if other not in (None, own)), None) for place, own in enumerate(every)]

    @property
    def _vocabulary(self) -> Vocabulary:
        assert self.transfer.vocabulary is not None
        return self.transfer.vocabulary

    def _add(self, name: str, asked: Sequence[str | None]) -> None:
        """The texts of an edit: of the prompts that it changes and that leave room for their answers."""
        rows, long, longest = list[dict[str, Any]](), 0, min(self.transfer.asked.context, self.transfer.context)
        for place, (answer, text) in enumerate(zip(self.answers, asked, strict=True)):
            if text is None or text == answer.asked:
                continue
            prompt = self._vocabulary.prompt(asking(answer.columns, text), answer.data)
            if len(prompt) + len(answer.completion) > longest:
                long += 1
            else:
                rows.append({"sequence": place, "row": answer.row, "asked": text, "prompt_ids": prompt})
        if long:
            more = "; ask for fewer tokens of longer context" if name == "long-context" else ""
            self._miss(f"{name}: {long} of {len(self.answers)} prompts leave no room for their answers within {longest} tokens{more}")
        if not rows:
            return self._miss(None if long else f"{name}: changes no prompt")
        self._keep(name, rows)
        self._made[name] = rows
        self._texts[name] = [replace(self.answers[each["sequence"]], prompt=each["prompt_ids"]).clean for each in rows]

    def _keep(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write edited prompts for people to read. Raises CheckpointError where others were measured in this folder."""
        file = self.transfer.out / "robustness" / f"{name}.jsonl"
        if not file.exists():
            write_jsonl(file, rows)
        elif read_jsonl(file) != rows:
            raise CheckpointError(f"{self.transfer.out} holds prompts that were edited otherwise ({name}); give another --out, or remove it")

    def _folder(self, name: str, edit: str) -> Path:
        """Where a table lies; the clean one is that of the data's or the teacher's text where it is of the same texts."""
        return self.transfer.folder(name, self.text if edit == CLEAN and self.text is not None and self._is_clean else edit)

    @cached_property
    def _is_clean(self) -> bool:
        """Whether those texts, which all students read, are the clean ones."""
        return self.text is not None and _same(self.transfer.texts(self.text, TEACHER), self._texts[CLEAN])

    def found(self) -> dict[str, Any]:
        """The figures of all edits and students, what was kept, what the search found, and what is missing."""
        tables = {name: self._tables(name) for name in self.transfer.subjects.students}
        known = {name: edit for name, edit in edits(self.asked.longer, len).items() if name in self._made}
        described = {name: {"kind": edit.kind, "what": edit.what, "prompts": len(self._made[name]), "example": self._made[name][0]["asked"]}
                     for name, edit in known.items()}  # fmt: skip
        return {
            "text": self.text, "prompts": len(self.answers), "missing": list(dict.fromkeys(self.missing)), "edits": described,
            "figures": self._figures(tables), "kept": {name: kept for name, each in tables.items() if (kept := self._kept(each))},
            "adversarial": results(self.transfer) if self.asked.adversarial else {},
        }  # fmt: skip

    def _tables(self, name: str) -> dict[str, Tokens]:
        places = {edit: self._folder(name, edit) for edit in self._texts}
        return {edit: Tokens.read(folder) for edit, folder in places.items() if folder.exists()}

    def _sequences(self, edit: str) -> list[int]:
        return [each["sequence"] for each in self._made[edit]]

    def _figures(self, tables: Mapping[str, Mapping[str, Tokens]]) -> dict[str, dict[str, Any]]:
        """By edit, and by model; the teacher's from what it said beside the first student."""
        found = dict[str, dict[str, Any]]()
        for place, (name, by_edit) in enumerate(tables.items()):
            for edit, read in by_edit.items():
                for side, mine in sides(read).items():
                    if side == "student" or place == 0:
                        of = self._of(edit, mine, sides(by_edit[CLEAN])[side] if CLEAN in by_edit else None)
                        found.setdefault(edit, {})[name if side == "student" else TEACHER] = of
        return found

    def _of(self, edit: str, mine: Tokens, clean: Tokens | None) -> dict[str, Any]:
        """The figures of one model under an edit, beside its own after the clean prompts."""
        if clean is None or edit == CLEAN:
            return alone(mine)
        return beside(mine, clean) if edit == OTHER else under(mine, only(clean, self._sequences(edit)))

    def _kept(self, by_edit: Mapping[str, Tokens]) -> dict[str, Any]:
        """By edit, and under all of them together (`all`)."""
        if CLEAN not in by_edit or by_edit[CLEAN].teacher is None:
            return {}
        losses = Losses(by_edit[CLEAN], (self._sequences(ANOTHER), by_edit[ANOTHER]) if ANOTHER in by_edit else None)
        found = {edit: losses.of(self._sequences(edit), read) for edit, read in by_edit.items() if edit not in (CLEAN, ANOTHER, OTHER)}
        return {**found, "all": losses.together()} if found else {}


def answers_of(transfer: Transfer) -> tuple[str | None, list[Answer]]:
    """Answers to the prompts: the data's where every prompt has one or the teacher wrote none, else the teacher's; and which they are."""
    rows, taken = transfer.rows, taken_rows(transfer.asked)
    given = {text.columns["row"]: text for text in rows.given}
    written = {place: text.tokens[text.spans[0].start :] for place, text in enumerate(transfer.texts(TEACHER, TEACHER)[:: transfer.asked.each])}
    found: dict[str, list[Answer]] = {GIVEN: [], TEACHER: []}
    for place, (prompt, columns) in enumerate(zip(rows.prompts, rows.columns, strict=True)):
        data, row = taken[columns["row"]]
        for text, completion in ((GIVEN, _answer(given.get(columns["row"]), prompt)), (TEACHER, written.get(place))):
            if completion:
                found[text].append(Answer(columns["row"], data, row, prompt, completion, asked_last(row)))
    text = GIVEN if found[GIVEN] and (len(found[GIVEN]) == len(rows.prompts) or not found[TEACHER]) else TEACHER
    return (text, found[text]) if found[text] else (None, [])


def _answer(text: Text | None, prompt: list[int]) -> list[int] | None:
    """The completion of a text that follows the prompt; None where its last one follows something else."""
    if text is None or text.tokens[: text.spans[-1].start] != prompt:
        return None
    return text.tokens[text.spans[-1].start : text.spans[-1].stop]


def asked_last(row: Row) -> str | None:
    """The text of the user's last turn before the answer; None where there is none, or none of text."""
    there = {name: value for name, value in row.items() if value is not None}
    if "prompt_ids" in there:
        return None
    messages = messages_of(there)
    if messages is None:
        return str(there["prompt"]) if isinstance(there.get("prompt"), str | int | float) else None
    place = _user(messages)
    content = None if place is None else messages[place]["content"]
    return content if isinstance(content, str) else None


def asking(row: Row, text: str) -> Row:
    """The row with another text in its user's last turn, and all else as it is."""
    there = {name: value for name, value in row.items() if value is not None}
    messages = messages_of(there)
    if messages is None:
        return {**there, "prompt": text}
    place = _user(messages)
    if place is None:
        raise DataError("a dialogue without a user's turn cannot be asked otherwise; give it one")
    turns = [{**message, "content": text} if n == place else message for n, message in enumerate(messages)]
    return {**{name: value for name, value in there.items() if name != "conversations"}, "messages": turns}


def _user(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Where the user's last turn stands."""
    return next((place for place in range(len(messages) - 1, -1, -1) if messages[place]["role"] == "user"), None)


def _same(ones: Sequence[Text], others: Sequence[Text]) -> bool:
    return len(ones) == len(others) and all(one.tokens == other.tokens and one.spans == other.spans for one, other in zip(ones, others, strict=True))


def asked_for(robustness: bool, edits: Sequence[str], other: str | None, adversarial: int) -> Robustness | None:
    """What a command line asks for. Raises RecipeError for settings of what was not asked for."""
    given = {"--edit": edits, "--other": other, "--adversarial": adversarial}
    if not robustness and (named := [name for name, value in given.items() if value]):
        raise RecipeError(f"{named[0]} is a setting of --robustness, which was not asked for; add it")
    return Robustness(edits, other, adversarial) if robustness else None


def shown(found: Mapping[str, Any] | None) -> list[tuple[list[str], list[list[str]]]]:
    """Tables for a terminal, one for each student: a row for each edit, in nats a token."""
    if found is None:
        return []
    names = list(dict.fromkeys(name for by_who in found["figures"].values() for name in by_who if name != TEACHER))
    return [_table(name, found, found["kept"].get(name, {})) for name in names] + suffixes(found["adversarial"])


def _table(name: str, found: Mapping[str, Any], kept: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns = ["edit", "prompts", f"{TEACHER} loses", f"{name} loses", "KL", "agreement", "kept"]
    rows = list[list[str]]()
    for edit, by_who in found["figures"].items():
        mine, theirs = by_who[name], by_who.get(TEACHER, {})
        lost = [told(each.get("lost", {}).get("ce_nats")) for each in (theirs, mine)]
        prompts = str(found["edits"][edit]["prompts"]) if edit in found["edits"] else ""
        plain = [f"{mine[key]['value']:.3g}" if key in mine else "" for key in ("kl_nats", "agreement")]
        rows.append([edit, prompts, *lost, *plain, told(kept.get(edit))])
    return columns, [*rows, ["all edits", *[""] * 5, told(kept.get("all"))]]
