"""Licences of teachers, data and providers: what was found, where, and whether a model may be trained on it.

What is found in a model card, in GGUF metadata or in a licence file is looked up in a small dated table, `assets/terms.json`.
That table is no legal advice. What it forbids or does not know stops the work, in one line, until it is accepted by name.
"""

import ipaddress
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from limbeck.config import import_object
from limbeck.errors import DataError, EndpointError, ModelError, RecipeError
from limbeck.files import write_json, write_text
from limbeck.gguf_metadata import gguf_general
from limbeck.places import BASE, is_call, locate
from limbeck.privacy import expanded, shareable
from limbeck.settings_file import yaml_of

ASSETS = Path(__file__).parent / "assets"
CARD = "README.md"
NOTHING = "No README.md and no licence file there names one"
NOWHERE, UNLISTED = "nowhere", "Our table does not know it."
HEAD_CHARACTERS = 1000
"""Of a licence file so much is read: further down licences quote each other."""


@dataclass(frozen=True)
class Licence:
    """What one thing's licence says of training a model on it or on what it writes.

    name: what it is accepted by. of: "model X", "data X" or "provider X". source: where it was found. permits: whether
    another model may be trained; why: in a sentence. obliges: what whoever gives the student to others must do.
    """

    name: str
    of: str
    source: str
    permits: Literal["yes", "no", "unknown"]
    why: str
    url: str = ""
    obliges: str = ""


# Where they are looked for


def of_model(name: str, online: bool = True) -> list[Licence]:
    """The licences of a folder, a GGUF file or a name on the hub: its own, and those that its card carries on; at least one.

    online: the hub is asked for a card that is not here. Raises ModelError for what cannot be a model.
    """
    if is_call(name):
        return of_function(name.partition("(")[0], "model")
    found, why = _model(name, online, frozenset())
    return found or [_unnamed("model", name, why)]


def _model(name: str, online: bool, above: frozenset[str]) -> tuple[list[Licence], str]:
    """The same, and where nothing was found why. above: the models that led here, each naming the next as its base."""
    place, of, card = locate(name), f"model {name}", dict[str, Any]()
    if place is not None:
        folder, told = (place, {}) if place.is_dir() else (place.parent, _of_metadata(place))
        card = told or {"base_model": _json(folder / "adapter_config.json").get(BASE)} | _front_matter(folder / CARD)
        if found := _first(_named(told, of, "GGUF metadata"), _folder(folder, of)) or _of_bases(card, of, online, above | {name}):
            return found, ""
    if expanded(name).exists():
        return [], NOTHING
    card, why = _hub_card("model", name, online)
    return _of_card(card, of, "its card on the hub") or _of_bases(card, of, online, above | {name}), why


def _of_bases(card: Mapping[str, Any], of: str, online: bool, above: frozenset[str]) -> list[Licence]:
    """The licences of what a model was made from."""
    found = list[Licence]()
    for base in _listed(card.get("base_model")):
        try:
            there = _model(base, online, above)[0] if base not in above else []
        except ModelError:  # a path of the machine where it was trained
            continue
        found += [replace(each, of=of, source=f"{each.source} of its base {base}") for each in there]
    return found


def of_recorded(told: Sequence[Licence], name: str) -> list[Licence]:
    """The licences of a model as they were written down; where none was found then, as its card has them now."""
    if told and all(each.source != NOWHERE for each in told):
        return list(told)
    try:
        return of_model(name)
    except ModelError:  # it lay on the machine where it was asked
        return list(told) or [_unnamed("model", name, "it is not here any more")]


def of_data(path: str, online: bool = True) -> list[Licence]:
    """The licences of text: its own, or those of a corpus' teachers; none where there is no such file, which reading it will say.

    A file's are those of the card (`NAME.card.json`, `card.json`, README.md) or of the licence file beside it.
    Raises DataError for a damaged card of ours.
    """
    place, of = expanded(path), f"data {path}"
    if place.resolve().parent == ASSETS.resolve():
        return [_judged("apache-2.0", of, "part of Limbeck")]
    if place.exists():
        return _beside(place, of) or [_unnamed("data", path, NOTHING)]
    if place.is_absolute() or path.startswith((".", "~")) or place.suffix in (".jsonl", ".json", ".parquet"):
        return []
    card, why = _hub_card("dataset", path, online)
    return _of_card(card, of, "its card on the hub") or [_unnamed("data", path, why)]


def _beside(place: Path, of: str) -> list[Licence]:
    """Those that a folder of text names, or what lies beside a file."""
    folder, own = (place, []) if place.is_dir() else (place.parent, [place.with_suffix(".card.json")])
    for card in (*own, folder / "card.json"):
        if "licences" in (told := _json(card)):
            return from_plain(told["licences"], str(card))
    saved = [folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))] if place.is_dir() else []
    return _first(_folder(folder, of), *(_named(_json(info), of, info.name) for info in saved))


def of_function(function: str, what: str = "data") -> list[Licence]:
    """The licences of text, or of a model, that a user's own `module:function` gives: those that lie beside its module, as beside a file of text.

    Raises RecipeError for what cannot be imported.
    """
    import_object(function)
    file = getattr(sys.modules[function.partition(":")[0]], "__file__", None)
    return (_beside(Path(file), f"{what} {function}") if file else []) or [_unnamed(what, function, NOTHING)]


def of_provider(base_url: str) -> list[Licence]:
    """The terms of whoever answers at a URL, by its host; none for an address of one's own machine or network.

    Raises EndpointError for a URL without a host.
    """
    host = _host(base_url)
    if _is_local(host):
        return []
    terms, of = _provider(host), f"provider {host}"
    if terms is None:
        return [Licence(f"unknown terms of {host}", of, _table_name(), "unknown", "Our table does not know this host.")]
    return [Licence(f"terms of {terms['name']}", of, _table_name(), terms["permits"], terms["why"], terms["url"])]


def of_endpoint(base_url: str, model: str, online: bool = True) -> list[Licence]:
    """The terms of whoever serves a model, and the model's own licence where it is not the provider's own model."""
    terms = None if _is_local(host := _host(base_url)) else _provider(host)
    if terms and terms["serves"] == "own":
        return of_provider(base_url)
    try:
        served = of_model(model, online)
    except ModelError:  # a name that means something to the server alone
        served = [_unnamed("model", model, "only the server knows what it is")]
    return [*of_provider(base_url), *served]


# What is done with them


def gate(found: Sequence[Licence], accepted: str | Sequence[str] = ()) -> None:
    """See that all that was found permits training, or was accepted by name. Raises RecipeError with the first that does not."""
    names = {shareable(name) for name in ([accepted] if isinstance(accepted, str) else accepted)}  # as a recipe in a run folder has them
    refused = [each for each in found if each.permits != "yes" and shareable(each.name) not in names]
    if refused:
        raise RecipeError(_refusal(refused[0], list(dict.fromkeys(each.name for each in refused))))


def _refusal(first: Licence, names: Sequence[str]) -> str:
    """Why training stops, and what can be done: set the names of all that stop it, or mend the first."""
    quoted = [json.dumps(name, ensure_ascii=False) for name in names]
    setting = quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
    under = "no licence of it was found" if first.source == NOWHERE else f"it is under {first.name} ({first.source})"
    mend = "put a README.md there that begins with the lines `---`, `license: NAME`, `---`" if first.why == f"{NOTHING}." else "take another"
    return (
        f"training on {first.of} was asked for, and {under}: {first.why[0].lower()}{first.why[1:].removesuffix('.')}; {mend}, or if you may, "
        f"set accept_license: {setting} in the recipe ({' '.join(f'--accept-license {name}' for name in quoted)})"
    )


def plain_licences(found: Sequence[Licence]) -> list[dict[str, str]]:
    """The same as plain data, each once, for provenance and cards; `from_plain` reads it."""
    return [asdict(each) for each in dict.fromkeys(found)]


def known(file: Path) -> dict[str, list[Licence]]:
    """The licences by role in what a run was made of; none where it is not there, damaged, or names none."""
    told = _json(file).get("licences")
    return {role: from_plain(found, str(file)) for role, found in cast(dict[str, object], told).items()} if isinstance(told, dict) else {}


def from_plain(value: object, where: str) -> list[Licence]:
    """Licences that were written as plain data. Raises DataError where they are none."""
    try:
        return TypeAdapter(list[Licence]).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{where}: no list of licences ({'.'.join(map(str, first['loc']))}: {first['msg']}); make it again, or remove it") from None


def front_matter(found: Sequence[Licence]) -> dict[str, Any]:
    """What a model card says of licences between its dashes: `license` for the hub, the first's; `licences` for us, all of them."""
    own = found[0] if found else None
    if own is None or own.source == NOWHERE:
        hub = dict[str, Any]()
    elif (_entry(own.name) or {"hub": False}).get("hub", True):
        hub = {"license": own.name}
    else:
        hub = {"license": "other", "license_name": own.name, **({"license_link": own.url} if own.url else {})}
    return {**hub, "licences": plain_licences(found)} if found else {}


def section(found: Sequence[Licence]) -> str:
    """A card's section on licences, in Markdown: what was found, and what it obliges to."""
    cells = [(each.of, f"[{each.name}]({each.url})" if each.url else each.name, each.permits, each.source) for each in dict.fromkeys(found)]
    rows = ["| of | licence | may train models | found in |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]
    duties = [f"- {name}: {duty}" for name, duty in dict.fromkeys((each.name, each.obliges) for each in found if each.obliges)]
    paragraphs = ["## Licences", "\n".join(rows), "\n".join(duties), f"Judged by the {_table_name()}, which is no legal advice."]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def record(path: Path, found: Sequence[Licence]) -> None:
    """Write licences to what was made from their bearers: a README.md into a folder, a `NAME.card.json` beside a file."""
    if path.is_dir():
        write_text(path / CARD, shareable(f"---\n{yaml_of(front_matter(found))}---\n\n{section(found)}"))
    else:
        write_json(path.with_suffix(".card.json"), {"licences": [{k: shareable(v) for k, v in row.items()} for row in plain_licences(found)]})


# The table


@cache
def _table() -> dict[str, Any]:
    return json.loads((ASSETS / "terms.json").read_text(encoding="utf-8"))


def _table_name() -> str:
    return f"table of {_table()['date']}"


def _entry(name: str) -> dict[str, Any] | None:
    """What the table says of a licence, whatever the spelling of its name."""
    name = _slug(name)
    return next((each for each in _table()["licences"] if any(fnmatchcase(name, known) for known in each["ids"])), None)


def _slug(name: str) -> str:
    return "-".join(name.lower().replace("_", "-").split())


def _judged(name: str, of: str, source: str, url: str = "") -> Licence:
    entry = _entry(name)
    if entry is None:
        return Licence(name, of, source, "unknown", UNLISTED, url)
    return Licence(_slug(name), of, source, entry["permits"], entry["why"], url or entry["url"], entry.get("obliges", ""))


def _unnamed(kind: str, name: str, why: str) -> Licence:
    return Licence(f"unknown licence of {' '.join(name.split())}", f"{kind} {name}", NOWHERE, "unknown", f"{why[0].upper()}{why[1:]}.")


def _first(*places: list[Licence]) -> list[Licence]:
    """Those of the first place that names licences of the table alone, else of the first that names any."""
    named = [found for found in places if found]
    return next((found for found in named if all(each.why != UNLISTED for each in found)), named[0] if named else [])


# Cards, licence files, metadata


def _folder(folder: Path, of: str) -> list[Licence]:
    """Those that a folder's card carries on, or the one that it names, or that its licence files are."""
    card = _front_matter(folder / CARD)
    files = [path for path in sorted(folder.iterdir()) if re.match(r"(un)?licen[sc]e|copying", path.name, re.IGNORECASE) and path.is_file()]
    found = _of_card(card, of, CARD)
    return found if "licences" in card else _first(found, [each for path in files for each in _of_text(path, of)])


def _of_text(file: Path, of: str) -> list[Licence]:
    """The licence that a file is, by its first lines; the longest phrase that is known counts."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        head = " ".join(re.sub(r"[#*=_]+", " ", stream.read(HEAD_CHARACTERS)).lower().split())
    marks = [(mark, entry["ids"][0]) for entry in _table()["licences"] for mark in entry.get("marks", []) if mark in head]
    if not marks:
        return []
    return [_judged(max(marks, key=lambda found: len(found[0]))[1], of, file.name)]


def _front_matter(card: Path) -> dict[str, Any]:
    """What stands between a card's first two lines of dashes; nothing where there is none, or it is no YAML."""
    text = card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""
    found = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", text, re.DOTALL)
    try:
        told = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return {str(key): value for key, value in told.items()} if isinstance(told, dict) else {}


def _of_card(card: Mapping[str, Any], of: str, source: str) -> list[Licence]:
    """Those that a card of ours carries on, or the one that it names."""
    if "licences" in card:
        return from_plain(card["licences"], f"{of}, {source}")
    return _named(card, of, source)


def _named(card: Mapping[str, Any], of: str, source: str) -> list[Licence]:
    """What `license`, or where it is "other" `license_name`, says."""
    names = [name for name in _listed(card.get("license")) if name.lower() not in ("other", "unknown", "none")]
    link = str(card.get("license_link") or "")
    return [_judged(name, of, source, link if link.startswith("http") else "") for name in names or _listed(card.get("license_name"))]


def _listed(value: object) -> list[str]:
    values = cast(list[object], value) if isinstance(value, list) else [value]
    return [name for each in values if each is not None and (name := " ".join(str(each).split()))]


def _json(file: Path) -> dict[str, Any]:
    """The settings in a file that somebody wrote; nothing where there are none, as its reader will say."""
    try:
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], told) if isinstance(told, dict) else {}


def _hub_card(kind: str, name: str, online: bool) -> tuple[dict[str, Any], str]:
    """A card's front matter from the hub's cache or the hub, and where it names no licence why; never raises for want of a network."""
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, CARD, repo_type=kind)
        if isinstance(cached, str):
            return _front_matter(Path(cached)), "its card names none"
        if not online:
            return {}, "there is no such folder, and the hub was not asked"
        return _asked_hub(kind, name), "its card on the hub names none"
    except Exception as error:  # the library raises many kinds
        said = " ".join(str(error).split())[:120].rstrip(".")
        return {}, f"there is no such folder, and the hub did not answer ({said or type(error).__name__})"


@cache
def _asked_hub(kind: str, name: str) -> dict[str, Any]:
    """The front matter that the hub tells; it is asked once, and again only where it did not answer."""
    from huggingface_hub import HfApi

    told: Any = getattr(HfApi().repo_info(name, repo_type=kind, timeout=10), "card_data", None)
    return dict(told.to_dict()) if told is not None else {}


def _of_metadata(file: Path) -> dict[str, Any]:
    """A GGUF file's metadata as a card's front matter."""
    told = gguf_general(file)
    bases = [value.removeprefix("https://huggingface.co/") for key, value in told.items() if re.fullmatch(r"base_model\.\d+\.repo_url", key)]
    names = {"license": told.get("license", "").split(","), "license_name": told.get("license.name"), "license_link": told.get("license.link")}
    return {**names, "base_model": bases}


# Addresses


def _host(base_url: str) -> str:
    try:
        host = urlsplit(base_url if "//" in base_url else f"//{base_url}").hostname
    except ValueError:
        host = None
    if not host:
        raise EndpointError(f"{base_url!r} names no host; give a URL such as http://localhost:8000/v1")
    return host


def _is_local(host: str) -> bool:
    """Whether a host is one's own machine or in one's own network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))
    return address.is_private or address.is_loopback or address.is_link_local


def _provider(host: str) -> dict[str, Any] | None:
    return next((each for each in _table()["providers"] if any(fnmatchcase(host, known) for known in each["hosts"])), None)
