"""The house: imports go down or sideways without a circle, files and functions stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "limbeck"
FLOORS = [
    set(rooms.split())
    for rooms in (
        "cluster config errors files gguf_metadata interrupt lazy lease llamacpp mirror places privacy progress publish "
        "settings_file shards storage terminal",
        "alignment anatomy answers batch blend data examples gguf_words head insides labels ledger licences licensed masking "
        "pieces prompts readings sandbox spans targets vocabulary",
        "across choose divergence environment features keep loss objective overlap reward verifiers",
        "adapters attention balance classify decoding distributed gguf_writer hooks kinds machine masked memory models "
        "narrow networks offload opened optimizer pen prune seq2seq server shadow siamese speculative vllms writer",
        "aligned average cache checkpoint curriculum endpoint engines evaluate experts guidance handover herding hidden "
        "interleaved judges matching mixture pairing pool prefetch remembered rollouts run soft_prompts sources student "
        "teacher_samples teachers trackers",
        "allocate annotate card condensing corpus dialogue drafts estimate export_card instruct methods ordered "
        "pipeline recipe room selftest shrink stages train",
        "__main__ check check_lengths check_lines check_stages cli cli_cluster cli_evaluate cli_export cli_plan exporting "
        "planning quickstart report spread sweep transfer",
    )
]
"""From the bottom to the top."""
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "limbeck":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck."):
            found.add(node.module.split(".")[1])
    return found - {room(path)}


ROOMS = {name: set().union(*(imported(path) for path in FILES if room(path) == name)) for name in FLOOR}


def test_every_file_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_imports_go_down_or_sideways(name: str) -> None:
    assert {other for other in ROOMS[name] if FLOOR[other] > FLOOR[name]} == set()


def test_no_imports_go_in_a_circle() -> None:
    left = dict(ROOMS)
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("path", FILES + sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert text.count("\n") <= 400
    assert [f"{f.name}: {f.end_lineno - f.lineno + 1}" for f in functions if f.end_lineno - f.lineno + 1 > 60] == []
