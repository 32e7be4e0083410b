"""The report in a real browser: no script errors, figures drawn, tables sorted by keyboard, a phone's width, the dark, and paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from evaluated import evaluation
from test_report import run_folder

from limbeck.files import write_json
from limbeck.report import report

FIGURES = 8 + 4 + 5 + 2 + 1 + 2 + 6 + 1
"""Values by who, positions and calibration of each, two of drafts, a task, edits, learning curves, time by run."""
LONG = "a-run-with-a-name-that-is-far-too-long-for-the-width-of-any-phone-and-without-a-space"
ENTER, SPACE, TAB = ("Enter", 13), (" ", 32), ("Tab", 9)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them measured in every way, and a wide table of the caller's."""
    folder = tmp_path_factory.mktemp("page")
    runs = [run_folder(folder / name) for name in ("kd", LONG)]
    write_json(runs[0] / "evaluation" / "evaluation.json", evaluation())
    wide = {"columns": [f"a wide column {n}" for n in range(9)], "rows": [["word" * 30, *range(8)]], "note": "x" * 300}
    return report(runs, folder / "page.html", wide, title="T" * 80)


def table(title: str) -> str:
    """The table below a title, as an expression of the page."""
    return f"""[...document.querySelectorAll("h3")].find((each) => each.textContent === "{title}").nextElementSibling.querySelector("table")"""


def column(title: str, place: int) -> str:
    """What stands in a column of it, the rows as they are now."""
    return f"[...{table(title)}.tBodies[0].rows].map((row) => row.cells[{place}].dataset.value ?? row.cells[{place}].innerText.trim())"


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)])
def test_no_errors_all_drawn_nothing_to_scroll_sideways(seen: Browser, page: Path, width: int, dark: bool) -> None:
    seen.see(width, dark)
    seen.open(page)
    assert seen.run("document.body.dataset.errors") == ""
    assert seen.run("innerWidth") == width and seen.run("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    figures = seen.run("document.querySelectorAll('.figure').length")
    assert figures == FIGURES
    drawn = """[...document.querySelectorAll(".figure")].filter((each) => each.dataset.drawn &&
      each.querySelector(".main-svg .scatterlayer :is(.js-line, .point), .main-svg .barlayer .point")).length"""
    assert seen.run(drawn) == figures, "a figure has neither a line nor a point nor a bar"
    paper = [int(part) for part in re.findall(r"\d+", seen.run("getComputedStyle(document.body).backgroundColor"))[:3]]
    assert (sum(paper) < 200) == dark


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_stands_over_something_else(seen: Browser, page: Path, width: int) -> None:
    seen.see(width)
    seen.open(page)
    beyond = """[...document.querySelectorAll("main *")].filter((each) => !each.closest(".scroll, .figure, pre, .text, .visually-hidden, svg") &&
      each.getBoundingClientRect().right > innerWidth).map((each) => each.outerHTML.slice(0, 80))"""
    assert seen.run(beyond) == []
    over = """[...document.querySelectorAll(".figure")].flatMap((figure) => [".xtick text", ".ytick text"].map((kind) => {
      const boxes = [...figure.querySelectorAll(kind)].map((each) => each.getBoundingClientRect());
      return boxes.some((a, n) => boxes.slice(n + 1).some((b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
        && b.top < a.bottom - 1)) ? figure.getAttribute("aria-label") + kind : "";
    })).filter(Boolean)"""
    assert seen.run(over) == [], "labels of an axis overlap"


def test_the_keyboard_sorts(seen: Browser, page: Path) -> None:
    seen.see(1280)
    seen.open(page)
    title, place = "On the teacher's text", 1
    heading = f"{table(title)}.querySelectorAll('thead th')[{place}]"
    before = seen.run(column(title, place))
    names = seen.run(column(title, 0))
    assert names == ["before", "after", "fine-tuned", "from scratch"] and before != sorted(before, key=float)
    seen.run(f"{table(title)}.querySelector('thead button').focus()")
    seen.press(*TAB)
    assert seen.run(f"document.activeElement === {heading}.firstElementChild"), "the next heading is the next stop"
    seen.press(*ENTER)
    assert seen.run(f"{heading}.getAttribute('aria-sort')") == "ascending", "a divergence: the lower is the better, and comes first"
    assert seen.run(column(title, place)) == sorted(before, key=float)
    assert "ascending" in seen.run("document.getElementById('status').textContent"), "who does not see it is told"
    seen.press(*SPACE)
    assert seen.run(f"{heading}.getAttribute('aria-sort')") == "descending"
    assert seen.run(column(title, place)) == sorted(before, key=float, reverse=True)
    seen.press(*TAB)
    seen.press(*TAB)
    seen.press(*ENTER)
    assert seen.run(f"[...{table(title)}.querySelectorAll('[aria-sort]')].map((each) => each.getAttribute('aria-sort')).join()").count("ending") == 1
    assert seen.run(f"{table(title)}.querySelectorAll('thead th')[3].getAttribute('aria-sort')") == "descending", "agreement: the higher is better"
    for _ in range(2):
        seen.press(*ENTER)
    assert seen.run(column(title, 0)) == names and seen.run(column(title, place)) == before, "the third time it is as it was"
    assert seen.run("document.body.dataset.errors") == ""


def test_names_sort_and_what_is_no_number_comes_last(seen: Browser, page: Path) -> None:
    seen.see(1280)
    seen.open(page)
    title = "On the teacher's text"
    seen.run(f"{table(title)}.querySelector('thead button').click()")
    assert seen.run(column(title, 0)) == ["after", "before", "fine-tuned", "from scratch"]
    title, recovered = "Gaps, the data's text", "[data-column='6']"
    for first in ("0.87", "0.2333"):
        seen.run(f'{table(title)}.querySelector("{recovered}").click()')
        found = seen.run(column(title, 6))
        assert found[0].startswith(first) and found[-1].startswith("—"), found


def test_completions_are_filtered(seen: Browser, page: Path) -> None:
    seen.see(1280)
    seen.open(page)
    box = "[...document.querySelectorAll('.samples')].find((each) => each.textContent.includes('Prompt number 0'))"
    count = f"{box}.querySelectorAll('.prompt:not([hidden])').length"
    cards = f"{box}.querySelectorAll('.prompt:not([hidden]) .card:not([hidden])').length"
    assert seen.run(count) == 8 and seen.run(cards) == 40, "the first few"
    seen.run(f"{box}.querySelector('input').focus()")
    seen.ask("Input.insertText", text="LITTLE 12")
    assert seen.run(count) == 1 and seen.run(f"{box}.querySelector('output').textContent") == "1 of 20 prompts"
    seen.run(f"{{ const box = {box}; box.querySelector('select').value = 'after'; box.querySelector('input').value = '';"
             f" box.querySelector('input').dispatchEvent(new Event('input', {{ bubbles: true }})); }}")  # fmt: skip
    assert seen.run(cards) == 8, "one writer's"
    seen.run(f"{box}.querySelector('.more').click()")
    assert seen.run(count) == 20 and seen.run(f"{box}.querySelector('.more').hidden") is True


def test_paper_is_white_and_nothing_is_cut(seen: Browser, page: Path) -> None:
    seen.see(1280, dark=True)
    seen.open(page)
    folded = seen.run("document.querySelectorAll('details.folded:not([open])').length")
    assert folded
    seen.paper(page.with_suffix(".pdf"))
    written = page.with_suffix(".pdf").read_bytes()
    assert written.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", written)) > 3
    assert seen.run("document.querySelectorAll('details.folded:not([open])').length") == folded, "afterwards it is as it was"
    seen.see(718, dark=True, medium="print", height=1000)
    seen.run("dispatchEvent(new Event('beforeprint'))")
    width = "Math.abs(each.querySelector('.main-svg').width.baseVal.value - each.clientWidth)"
    seen.until(f"[...document.querySelectorAll('.figure')].every((each) => {width} < 2)")
    assert seen.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.run("document.querySelectorAll('details.folded:not([open])').length") == 0
    sticky = "[...document.querySelectorAll('main *')].filter((each) => ['sticky', 'fixed'].includes(getComputedStyle(each).position)).length"
    assert seen.run(sticky) == 0
    assert seen.run("[...document.querySelectorAll('.scroll')].every((each) => getComputedStyle(each).overflowX === 'visible')")
    wide = """[...document.querySelectorAll("table")].filter((each) => each.getBoundingClientRect().right > innerWidth + 1).length"""
    assert seen.run(wide) <= 1, "but for the caller's table of one endless word"


def test_an_error_would_be_seen(seen: Browser, tmp_path: Path) -> None:
    shown = report([run_folder(tmp_path / "kd")], tmp_path / "page.html")
    text = shown.read_text(encoding="utf-8")
    assert text.count("drawAll();\nmatchMedia") == 1
    shown.write_text(text.replace("drawAll();\nmatchMedia", 'drawAll();\nthrow new Error("noticed");\nmatchMedia'), encoding="utf-8")
    seen.open(shown)
    assert "noticed" in seen.run("document.body.dataset.errors")


def test_hostile_text_does_nothing(seen: Browser, tmp_path: Path) -> None:
    wicked = "<img src=x onerror=alert(1)><script>document.title = 'owned'</script>"
    found = evaluation()
    found["samples"][0] = {"prompt": wicked, "completions": {wicked: wicked}}
    found["advice"] = [{"says": wicked, "because": wicked}]
    found["figures"][wicked], found["positions"][wicked] = found["figures"]["after"], found["positions"]["after"]
    found["gaps"][1]["name"] = found["gaps"][1]["kind"] = wicked
    write_json(tmp_path / "e" / "evaluation.json", found)
    seen.see(360)
    seen.open(report([tmp_path / "e"], tmp_path / "page.html"))
    assert seen.run("document.title") == "Distillation report" and seen.run("document.images.length") == 0
    assert seen.run("document.body.dataset.errors") == "" and seen.run("document.documentElement.scrollWidth") <= 360
