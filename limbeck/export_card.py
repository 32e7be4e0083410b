"""The card of a student that leaves its run: what it is in a few lines, how it is used, and all that its run's own card says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from limbeck.config import read_yaml
from limbeck.files import read_json, read_jsonl
from limbeck.licences import CARD, Licence, front_matter, section
from limbeck.privacy import expanded, shareable
from limbeck.settings_file import yaml_of


@dataclass(frozen=True)
class Origin:
    """Where a student comes from. run: its run's folder, where it has one; name: what it is called by."""

    student: Path
    name: str
    run: Path | None
    licences: Sequence[Licence] = field(default_factory=list[Licence])


def card(origin: Origin, what: str, use: str, more: Mapping[str, Any]) -> str:
    """The page in Markdown, in the hub's format, without what is private.

    what: this folder in a few words; use: how it is used, in Markdown; more: what the hub should know beside what the run's card says.
    """
    told, body = _parted(origin.student / CARD)
    recipe = read_yaml(origin.run / "recipe.yaml") if origin.run else {}
    named = {"base_model": _on_hub(_models(recipe)), "datasets": _on_hub(_paths(recipe))}
    tags = list(dict.fromkeys([*cast(list[str], told.get("tags") or ["limbeck"]), *cast(list[str], more.get("tags", []))]))
    head = told | front_matter(origin.licences) | {key: value for key, value in named.items() if value} | dict(more) | {"tags": tags}
    rows = [("this folder", what), *(_facts(origin.run, recipe) if origin.run else [])]
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)])
    if not body:
        body = section(origin.licences)
    page = f"---\n{yaml_of(head).rstrip()}\n---\n# {origin.name}\n\n{table}\n\n## How to use it\n\n{use.strip()}\n\n{body.strip()}\n"
    return shareable(page)


def _parted(card: Path) -> tuple[dict[str, Any], str]:
    """What a card says between its dashes, and the rest of it without its title."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)(.*)", text, re.DOTALL)
    try:
        told = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):  # whoever wrote it, its words are not lost
        found, told = None, None
    body = (found[2] if found else text).strip().removeprefix("# A distilled student").strip()
    return (cast(dict[str, Any], told) if isinstance(told, dict) else {}), body


def _facts(run: Path, recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who wrote, who scored, how far, and of what, by the files of a run."""
    made = read_json(run / "provenance.json") if (run / "provenance.json").exists() else {}
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if "evaluation" not in row]
    student, lora = made.get("student") or {}, (recipe.get("student") or {}).get("lora")
    base = f"{student.get('model', 'unknown')}, {student.get('parameters', 0):,} weights" + (f", LoRA of rank {lora['rank']}, merged" if lora else "")
    rows = [
        ("who wrote", _kinds(recipe.get("source"))),
        ("who scored", f"{_kinds(recipe.get('teacher'))}: {_teacher(made.get('teacher'))}"),
        ("how far", _kinds(recipe.get("objective"))),
        ("student before", base),
        ("data", ", ".join(_paths(recipe)) or "none"),
        ("learnt", f"{len(steps):,} steps, {sum(row.get('tokens', 0) for row in steps):,} completion tokens"),
    ]
    return rows


def _teacher(told: Any) -> str:
    if not isinstance(told, dict):
        return str(told)
    found = cast(dict[str, Any], told)
    return f"{found['model']} in {found.get('arithmetic', '?')}" if "model" in found else " + ".join(_teacher(each) for each in found.values())


def _kinds(part: Any) -> str:
    """A part in its names alone: Mix of OnPolicy and Corpus."""
    if isinstance(part, list):
        return " + ".join(_kinds(each) for each in cast(list[Any], part))
    if not isinstance(part, dict):
        return str(part)
    settings = cast(dict[str, Any], part)
    inside = [_kinds(value) for value in settings.values() if _is_part(value)]
    return f"{settings.get('type', '?')}{' of ' * bool(inside)}{' and '.join(inside)}"


def _is_part(value: Any) -> bool:
    """Whether a setting is a source, a teacher or a term of its own, and neither data nor numbers."""
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(each, dict) and each.get("type") not in (None, *DETAILS) for each in values)


DETAILS = ("Data", "AdamW", "LoRA", "Sampling")
"""Parts that are settings of others, and not named in a few words."""


def _found(settings: Any, kinds: Sequence[str], key: str) -> list[str]:
    """The values of a setting in all parts of these kinds, wherever they are."""
    if isinstance(settings, list):
        return [each for item in cast(list[Any], settings) for each in _found(item, kinds, key)]
    if not isinstance(settings, dict):
        return []
    part = cast(dict[str, Any], settings)
    own = [str(part[key])] if part.get("type") in kinds and part.get(key) else []
    return list(dict.fromkeys([*own, *(each for value in part.values() for each in _found(value, kinds, key))]))


def _models(recipe: Mapping[str, Any]) -> list[str]:
    return _found(recipe.get("student"), ["Student"], "model")


def _paths(recipe: Mapping[str, Any]) -> list[str]:
    return _found(recipe.get("source"), ["Data"], "path")


def _on_hub(names: Sequence[str]) -> list[str]:
    """Those that are names on the hub and nothing here."""
    return [name for name in names if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.endswith(FILES) and not expanded(name).exists()]


FILES = (".jsonl", ".json", ".parquet", ".gguf")


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
