"""The figures of an evaluation, from the tables and texts in its folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.files import read_json, read_jsonl
from limbeck.transfer.analysis import TEXTS, analysed, shown_gaps
from limbeck.transfer.calibration import calibrations
from limbeck.transfer.diversity import diversity
from limbeck.transfer.figures import as_teacher, by_position, differences, figures, told
from limbeck.transfer.measure import GIVEN, OWN, Transfer
from limbeck.transfer.robustness import shown as shown_robust
from limbeck.transfer.subjects import TEACHER, file_name
from limbeck.transfer.tasks import tables as task_tables
from limbeck.transfer.tokens import Tokens


def summed_up(transfer: Transfer) -> dict[str, Any]:
    """The figures of all tables, and what is missing."""
    names, known = list(transfer.subjects.students), transfer.out / "speeds.json"
    tables = {
        name: {text: Tokens.read(folder) for text in (GIVEN, TEACHER, OWN) if (folder := transfer.folder(name, text)).exists()} for name in names
    }
    samples, calibration = _samples(transfer, names), _calibration(tables)
    gaps = analysed(transfer, tables, samples, calibration)
    tasks = transfer.tasks.summed_up(names)  # it finds out what is missing
    return {
        "settings": read_json(transfer.out / "settings.json"),
        "missing": list(dict.fromkeys([*transfer.missing, *transfer.tasks.missing])),
        "speeds": read_json(known) if known.exists() else {},
        "figures": _figures(tables),
        "differences": _differences(tables),
        "positions": {name: {text: by_position(each) for text, each in found.items()} for name, found in tables.items()},
        "calibration": calibration,
        "diversity": {who: found for who in (TEACHER, *names) if (found := _diversity(transfer, who))},
        "samples": samples,
        **gaps,
        "tasks": tasks,
        **({"robustness": transfer.robustness.found()} if transfer.robustness else {}),
    }  # fmt: skip


Tables = Mapping[str, Mapping[str, Tokens]]


def _figures(tables: Tables) -> dict[str, dict[str, Any]]:
    """By student (and the teacher) and text."""
    found = {name: {text: figures(each) for text, each in by_text.items()} for name, by_text in tables.items()}
    first = next(iter(tables.values()), {})
    theirs = {OWN if text == TEACHER else text: figures(as_teacher(each)) for text, each in first.items() if text != OWN and each.teacher is not None}
    return {**({TEACHER: theirs} if theirs else {}), **found}


def _differences(tables: Tables) -> list[dict[str, Any]]:
    """Of every pair of students, on every text: the later less the earlier."""
    names = list(tables)
    return [
        {"of": mine, "less": theirs, "text": text, "figures": differences(tables[mine][text], tables[theirs][text])}
        for place, mine in enumerate(names) for theirs in names[:place] for text in tables[mine] if text in tables[theirs] and _alike(
            tables[mine][text], tables[theirs][text])
    ]  # fmt: skip


def _alike(mine: Tokens, theirs: Tokens) -> bool:
    return len(mine.bytes_B) == len(theirs.bytes_B)


def _calibration(tables: Tables) -> dict[str, Any]:
    """On the data's text, or where there is none on the teacher's; the teacher's beside them."""
    found = dict[str, Any]()
    for name, by_text in tables.items():
        text = next((text for text in (GIVEN, TEACHER) if text in by_text), None)
        if text is None:
            continue
        if TEACHER not in found and by_text[text].teacher is not None:
            found[TEACHER] = {"text": text, **calibrations(by_text[text], "teacher")}
        found[name] = {"text": text, **calibrations(by_text[text])}
    return found


def _written(transfer: Transfer, who: str) -> list[dict[str, Any]]:
    file = transfer.out / "texts" / f"{file_name(who)}.jsonl"
    return read_jsonl(file) if file.exists() else []


def _diversity(transfer: Transfer, who: str) -> dict[str, Any] | None:
    rows = _written(transfer, who)
    groups: dict[int, list[list[int]]] = {}
    for row in rows:
        groups.setdefault(row["place"], []).append(row["completion_ids"])
    return diversity(list(groups.values())) if groups else None


def _samples(transfer: Transfer, names: Sequence[str], most: int = 64) -> list[dict[str, Any]]:
    """Prompts with the answers of all, for people to read."""
    vocabulary = transfer.vocabulary
    assert vocabulary is not None, "nothing was measured"
    firsts = {who: {row["place"]: row["completion_ids"] for row in _written(transfer, who) if not row["answer"]} for who in (TEACHER, *names)}
    return [
        {"row": transfer.rows.columns[place]["row"], "prompt": asked,
         "completions": {who: vocabulary.text(found[place]) for who, found in firsts.items() if place in found}}
        for place, asked in enumerate(transfer.rows.asked[:most])
    ]  # fmt: skip


def shown(found: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Tables for a terminal, one for each text: a row for each figure, a column for each model; then the worst slices, tasks, edits."""
    tables = list[tuple[list[str], list[list[str]]]]()
    for text, title in (TEXTS | {OWN: "each one's own text"}).items():
        by_who = {who: each[text] for who, each in found["figures"].items() if text in each}
        keys = dict.fromkeys(key for each in by_who.values() for key in each)
        rows = [[key, *(told(each.get(key), 4) for each in by_who.values())] for key in keys]
        tables += [([title, *by_who], rows)] if rows else []
    return tables + shown_gaps(found["gaps"]) + task_tables(found["tasks"]) + shown_robust(found.get("robustness"))
