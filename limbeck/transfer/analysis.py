"""The gap analysis of an evaluation: its tables cut into slices, the worst with completions, and what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.files import write_json
from limbeck.teachers import Silent
from limbeck.transfer.advice import Evidence, advised, percent
from limbeck.transfer.gaps import examples, judged, slices_of, worst
from limbeck.transfer.measure import GIVEN, OWN, Transfer
from limbeck.transfer.slices import (
    CATEGORY,
    OF_ROWS,
    TOPIC,
    Cut,
    Piece,
    by_certainty,
    by_class,
    by_difficulty,
    by_position,
    categories,
    doubts,
    labels,
    named,
    pieces,
)
from limbeck.transfer.subjects import TEACHER
from limbeck.transfer.tokens import Tokens
from limbeck.transfer.topics import topics

Tables = Mapping[str, Mapping[str, Tokens]]
TEXTS = {GIVEN: "the data's text", TEACHER: "the teacher's text", OWN: "its own text"}


class Analysis:
    """Tables of an evaluation, and what is known of their rows and tokens.

    missing: what could not be said, in words.
    """

    def __init__(self, transfer: Transfer, tables: Tables, samples: Sequence[Mapping[str, Any]]) -> None:
        self.transfer, self.samples = transfer, samples
        self.tables = {who: {text: each for text, each in found.items() if each.apart is not None} for who, found in tables.items()}
        self.missing = list[str]()
        self.students = judged(list(tables))
        self.kind, self.row_labels = self._rows()
        self.pieces = self._pieces()

    def _rows(self) -> tuple[str, dict[int, str]]:
        """Which rows belong together: by a column, or by the words of their prompts."""
        found = categories(self.transfer.rows, self.transfer.category)
        if found is not None:
            self.missing += doubts(found)
            return CATEGORY, found
        return TOPIC, topics(asked_by_row(self.transfer))

    def _pieces(self) -> dict[int, Piece]:
        """The text of every token of the tables, kept beside them."""
        vocabulary = self.transfer.vocabulary
        assert vocabulary is not None, "nothing was measured"
        ids = sorted({int(token) for found in self.tables.values() for each in found.values() for token in each.token_N})
        found = pieces(ids, vocabulary)
        if ids:
            write_json(self.transfer.out / "tables" / "tokens.json", {str(number): text for number, (text, _) in found.items()})
        return found

    def cuts(self, tokens: Tokens, text: str, who: str) -> list[Cut]:
        """Every way to cut a table."""
        vocabulary = self.transfer.vocabulary
        assert vocabulary is not None, "nothing was measured"
        by_row = labels(self.transfer.texts(text, who), self.row_labels)
        cuts = [named(self.kind, by_row, tokens), by_position(tokens), by_class(tokens, self.pieces, vocabulary.outcomes),
                by_difficulty(tokens), by_certainty(tokens)]  # fmt: skip
        return [cut for cut in cuts if sum(1 for _ in cut.parts()) > 1]

    def slices(self) -> list[dict[str, Any]]:
        """Of the data's text and the teacher's, the same for all students; and of each taught student's own."""
        found = list[dict[str, Any]]()
        for text in (GIVEN, TEACHER):
            by_who = {who: each[text] for who, each in self.tables.items() if text in each}
            if by_who:
                who = next(iter(by_who))
                found += self._shown(text, by_who, self.cuts(by_who[who], text, who), self.students)
        for who in self.students:
            if OWN in self.tables[who]:
                found += self._shown(OWN, {who: self.tables[who][OWN]}, self.cuts(self.tables[who][OWN], OWN, who), {})
        return found

    def _shown(self, text: str, by_who: Mapping[str, Tokens], cuts: list[Cut], baselines: Mapping[str, str | None]) -> list[dict[str, Any]]:
        """Slices of one text, those that are surely worse with completions."""
        found = list(slices_of(text, by_who, cuts, baselines, text == GIVEN))
        by_kind = {cut.kind: cut for cut in cuts}
        for who in self.students:
            for each in worst(found, who):
                texts = self.transfer.texts(text, who)
                each.setdefault("examples", {})[who] = examples(each, who, by_who[who], by_kind[each["kind"]], texts, self.samples)
        return found


def asked_by_row(transfer: Transfer) -> dict[int, str]:
    """What each row asks, in words; of plain text the text itself."""
    found, vocabulary = dict[int, str](), transfer.vocabulary
    assert vocabulary is not None, "nothing was measured"
    for columns, asked in zip(transfer.rows.columns, transfer.rows.asked, strict=True):
        found[columns["row"]] = asked
    for text in transfer.rows.given:
        words = text.columns.get("prompt") or text.columns.get("text")
        if not words and vocabulary.outcomes == "tokens":
            words = vocabulary.text(text.tokens[: text.spans[0].start])
        found.setdefault(text.columns["row"], str(words or ""))
    return {row: words for row, words in found.items() if words.strip()}


def analysed(transfer: Transfer, tables: Tables, samples: Sequence[Mapping[str, Any]], calibration: Mapping[str, Any]) -> dict[str, Any]:
    """`gaps` and `advice` of evaluation.json; both empty where no teacher says whole distributions. What is missing is added to the transfer's."""
    made = Analysis(transfer, tables, samples)
    found = made.slices()
    if not found and not isinstance(transfer.subjects.teacher, Silent):
        made.missing.append(f"{transfer.subjects.teacher.name} says no whole distributions, so that there are no gaps to slice")
    transfer.missing += made.missing
    advice = list[dict[str, str]]()
    for who, base in made.students.items():
        advice += advised(Evidence(who, base, made.tables, [each for each in found if who in each["students"]], calibration.get(who, {})))
    return {"gaps": found, "advice": advice}


def shown_gaps(gaps: Sequence[Mapping[str, Any]], most: int = 3) -> list[tuple[list[str], list[list[str]]]]:
    """For a terminal: of each student the slices in which it is surely worse, the greatest gaps of each kind, and completions of the worst."""
    tables = list[tuple[list[str], list[list[str]]]]()
    for who in dict.fromkeys(name for each in gaps for name in each.get("examples", {})):
        first = next(each["text"] for each in gaps if who in each.get("examples", {}))
        bad = worst((dict(each) for each in gaps if each["text"] == first), who)
        kept = [each for kind in dict.fromkeys(each["kind"] for each in bad) for each in [one for one in bad if one["kind"] == kind][:most]]
        title = f"{who} is surely worse at, on {TEXTS[first]}"
        tables.append(([title, "sequences", "KL, nats", "above the rest, at least", "KL closed"], [_row(each, who) for each in kept]))
        top = next((each for each in kept if each["kind"] in OF_ROWS), kept[0])
        if shown := top["examples"][who]:
            answers = [[_short(one["prompt"]), *(_short(said) for said in one["completions"].values())] for one in shown]
            tables.append(([f"{top['kind']} {top['name']}", *shown[0]["completions"]], answers))
    return tables


def _row(each: Mapping[str, Any], who: str) -> list[str]:
    mine = each["students"][who]
    closed = mine.get("recovered", {}).get("kl_nats") or {}
    share = percent(closed) if closed.get("interval") else ""
    gap, at_least = mine["kl_nats"]["value"], mine["above_rest"]["at_least"]
    return [f"{each['kind']} {each['name']}", str(each["sequences"]), f"{gap:.3g}", f"{at_least:.3g}", share]


def _short(text: str, most: int = 80) -> str:
    """The beginning, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
