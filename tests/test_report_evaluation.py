"""What the page says of an evaluation: the numbers of the file, what of it is missing, and no more; the data is what the page shows."""

import html
import json
import math
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pytest
from evaluated import FAR, evaluation, figure, figures
from test_report import WICKED, markup, plots, run_folder

from limbeck.cli import app
from limbeck.files import read_json, write_json, write_jsonl
from limbeck.report import report
from limbeck.report.blocks import between, cell, number
from limbeck.report.content import PARTS, content
from limbeck.report.page import html as html_of
from limbeck.report.reading import opened
from limbeck.report.training import apart
from limbeck.report.transfer import nested
from limbeck.speculative import expected_tokens, speedup


def folder(path: Path, found: Any) -> Path:
    write_json(path / "evaluation.json", found)
    return path


def shown(tmp_path: Path, found: Any) -> str:
    """The page of an evaluation alone, without a file of it."""
    return markup(html_of(content(opened([folder(tmp_path / "measured", found)]), None, "Report")))


def tables(page: str) -> dict[str, list[list[str]]]:
    """The tables of a page by their titles: rows of words, a heading first."""
    found = dict[str, list[list[str]]]()
    for title, body in re.findall(r"(?:<h3>|<summary>)([^<]*)(?:</h3>|</summary>)\s*<div class=\"scroll\".*?<tbody>(.*?)</tbody>", page, re.DOTALL):
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", each, re.DOTALL) for each in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)]
        found[title] = [[" ".join(re.sub(r"<[^>]*>", " ", each).split()) for each in row] for row in rows]
    return found


def test_figures_with_their_intervals(tmp_path: Path) -> None:
    page = shown(tmp_path, evaluation())
    rows = {row[0]: row[1:] for row in tables(page)["On each one&#39;s own text"]}
    assert list(rows) == ["teacher", "before", "after", "fine-tuned", "from scratch"]
    assert rows["after"][0] == "0.3600 0.3312–0.3888" and rows["teacher"][0] == "—"
    own = plots(page)["KL(teacher ‖ student)"]["data"][2]
    assert own["x"] == [1.2 * FAR[who] for who in ("before", "after", "fine-tuned", "from scratch")]
    assert own["error_x"]["array"] == pytest.approx([0.08 * each for each in own["x"]]) == own["error_x"]["arrayminus"]
    assert "On its own text the student is 0.3600 nats a token from its teacher (before: 0.9600), 0.3600 (0.3400 to 0.3800) nearer than" in page
    assert "What is missing" in page and "one thing could not be had: it is dear" in page and "not in it" not in page


def test_bold_is_the_best_of_the_students_where_there_is_a_better(tmp_path: Path) -> None:
    found = evaluation()
    found["figures"]["teacher"]["own"]["entropy_nats"] = figure(0.1)
    page = shown(tmp_path, found)
    own = page[page.index("On each one&#39;s own text") : page.index("Small type")]
    bold = re.findall(r"<strong>([^<]*)</strong>", own)
    after = figures("after", "own")
    assert bold == [number(after[key]["value"]) for key in ("kl_nats", "reverse_kl_nats", "agreement", "acceptance")], (
        "how sure one is of one's own text is no merit, nor is entropy"
    )


def test_differences_are_of_whoever_was_distilled(tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in tables(shown(tmp_path, evaluation()))["Differences, the teacher&#39;s text"]}
    assert list(rows) == ["after less before", "after less fine-tuned", "after less from scratch"]
    assert rows["after less fine-tuned"][0] == "-0.3000 -0.3200 to -0.2800", "turned: the file has fine-tuned less after"
    assert "fine-tuned less before" in str(tables(shown(tmp_path, evaluation())))


def test_calibration_beside_chance(tmp_path: Path) -> None:
    found = evaluation()
    page = shown(tmp_path, found)
    line, chance, raw, scaled = plots(page)["from scratch"]["data"]
    assert line["x"] == [0, 1] and [each["name"] for each in (chance, raw, scaled)] == ["chance", "raw", "scaled"]
    bins = found["calibration"]["from scratch"]["raw"]["bins"]
    assert raw["y"] == [each["accuracy"] for each in bins]
    p, n = bins[7]["confidence"], bins[7]["tokens"]
    assert chance["y"][7] == pytest.approx(p + 1.96 * math.sqrt(p * (1 - p) / n)) and max(chance["y"]) <= 1 and min(chance["y"]) >= 0
    row = next(row for row in tables(page)["Calibration error"] if row[0].startswith("after"))
    assert row[2:4] == ["0.01200", "0.01900"] and row[5] == "1.250", "by chance, below, temperature"


def test_drafts(tmp_path: Path) -> None:
    found = evaluation()
    accepted = found["figures"]["after"]["teacher"]["acceptance"]["value"]
    drawn = plots(shown(tmp_path, found))
    line = next(each for each in drawn["Tokens of a round of the teacher"]["data"] if each["name"] == "after" and each["mode"] != "lines")
    assert line["y"] == [pytest.approx(expected_tokens(accepted, n)) for n in range(13)]
    faster = next(each for each in drawn["Times as fast"]["data"] if each["name"] == "after" and each["mode"] != "lines")
    assert faster["y"] == [pytest.approx(speedup(accepted, n, 50 / 180)) for n in range(13)]
    found["speeds"] = {}
    page = shown(tmp_path, found)
    assert "Times as fast" not in plots(page) and "Tokens of a round of the teacher" in plots(page) and "No speeds are known" in page


def test_gaps_are_a_map(tmp_path: Path) -> None:
    page = shown(tmp_path, evaluation())
    found = {row[0]: row[1:] for row in tables(page)["Gaps, the data&#39;s text"]}
    chemistry = found["chemistry 21 sequences, 901 tokens surely worse: after"]
    assert chemistry == ["category", "2.400 2.208–2.592", "0.9000 0.8280–0.9720", "1.800 1.656–1.944", "7.500 6.900–8.100", "0.2333 0.2147–0.2520"]
    assert found["law 9 sequences, and at least 10 are needed to say how sure it is"][-1] == "— there is no sure gap: -1 to 1 holds 0"
    assert "after, of fine-tuned" in page, "whose gap was closed"
    part = page[page.index("Gaps, the data&#39;s text") : page.index("The stronger the colour")]
    heat = [float(each) for each in re.findall(r"--heat: ([\d.]+)%", part)]
    assert max(heat) == 100 and min(heat) == 0 and len(heat) == 5 * 4 + 4
    assert "<summary>Gaps, each one&#39;s own text</summary>" in page, "texts but the first are folded"
    assert page.count("Wet it is.") == 1 and "Surely worse at: category “chemistry” (after)" in page, "each prompt once"


def test_tasks(tmp_path: Path) -> None:
    page = shown(tmp_path, evaluation())
    found = tables(page)
    assert found["Task: sums"][2][:3] == ["after", "0.5200 0.4784–0.5616", "0.1000 0.0920–0.1080"] and "GSM8K · Number() · 128 prompts" in page
    assert found["Task: sums"][2][3] == f"{number(evaluation()['tasks']['sums']['figures']['after']['calibration']['error'])} 0.1225–0.1425"
    assert found["Recovered: sums"] == [["after, of before", "0.6780 0.6238–0.7322"]]
    assert found["Differences: sums"] == [["after less fine-tuned", "0.1100 0.0600–0.1600"]]
    assert "✗ 5" in page and "Wanted: 4" in page
    assert plots(page)["sums: right"]["data"][0]["x"] == [0.71, 0.12, 0.52, 0.41, 0.03]


def test_robustness(tmp_path: Path) -> None:
    found = evaluation()
    page = shown(tmp_path, found)
    rows = {row[0]: row[1:] for row in tables(page)["Robustness: under edits of the prompt"]}
    assert list(rows) == ["clean", "typos letters that changed places 19 prompts", "upper", "distractor", "all edits"]
    assert rows["typos letters that changed places 19 prompts"][:5] == ["0.8000 0.7360–0.8640", *["0.5000 0.4000–0.6000"] * 4], "kept, lost by each"
    assert rows["all edits"] == ["0.8750 0.8050–0.9450", *["—"] * 12] and rows["clean"][5] == "0.8000 0.7360–0.8640"
    assert "look-alikes: changes no prompt" in page and ["typos", "typos", "letters that changed places", "Waht?"] in tables(page)[
        "The edits, with an example of each"]  # fmt: skip
    assert tables(page)["Suffixes found by a search"][0][3] == "3.300 3.036–3.564"
    lost = plots(page)["Loses by the edit, nats"]["data"]
    assert [each["x"] for each in lost] == [[0.5, pytest.approx(0.2), pytest.approx(1.2)]] * 4
    found["robustness"]["kept"] = {"after": {"typos": {"value": None, "interval": None, "why": "the prompt may be worth nothing"}}}
    page = shown(tmp_path, found)
    assert "nothing is said to be kept. after: the prompt may be worth nothing." in page and "Kept of the teacher" not in page


def test_advice_comes_first(tmp_path: Path) -> None:
    found = evaluation()
    page = shown(tmp_path, found)
    assert page.index("Give more rows of chemistry") < page.index("one thing could not be had") < page.index("Figures with their intervals")
    found["advice"] = [{"of": who, "says": "train longer", "because": "0.1"} for who in ("a", "b")]
    assert "a: train longer" in shown(tmp_path, found), "whose, where there are several"
    found["advice"] = []
    assert "What to do next" not in shown(tmp_path, found) and "not in it" not in shown(tmp_path, found), "nothing to say is not missing"


@pytest.mark.parametrize("key", [key for key, (what, _) in PARTS.items() if what])
def test_says_what_is_missing(tmp_path: Path, key: str) -> None:
    found = evaluation()
    del found[key]
    assert f"not in it: {PARTS[key][0]}" in shown(tmp_path, found)
    for strange in ([1, "a"], {"a": 1}, {"a": {"b": None}}, "words", 7, [{"of": 1}], {"after": {"given": [{"kl_nats": {}}], "raw": {"bins": [{}]}}}):
        page = shown(tmp_path, {**evaluation(), key: strange})
        assert "On the data" in page or key == "figures", "the rest is shown"


def test_nothing_but_a_shape_nobody_knows(tmp_path: Path) -> None:
    for strange in ([], "x", 3, None):
        assert "evaluation.json cannot be read" in shown(tmp_path, strange)
    (tmp_path / "measured" / "evaluation.json").write_text('{"figures": {"torn')
    assert "evaluation.json cannot be read" in markup(report([tmp_path / "measured"], tmp_path / "page.html"))
    assert "not in it: advice, figures of anybody" in shown(tmp_path, {})
    page = shown(tmp_path, {"colours": {"red": {"after": figure(0.25)}}, "moods": "gay"})
    assert tables(page)["Colours"] == [["red", "0.2500 0.2300–0.2700"]] and "&#34;moods&#34; is in it, and this page does not know" in page


def test_nested_tables() -> None:
    by_text = {"a": {"x": {"kl_nats": figure(1.0), "right": figure(0.5)}, "y": {"kl_nats": figure(2.0)}}, "b": {"x": {"kl_nats": figure(3.0)}}}
    (table,) = nested("deep", by_text)
    kl = "KL(teacher ‖ student), nats"
    assert [(each["group"], each["label"]) for each in table["columns"]] == [(kl, "x"), (kl, "y"), ("Right", "x")]
    assert [[each["value"] for each in row["cells"]] for row in table["rows"]] == [[1.0, 2.0, 0.5], [3.0, None, None]]
    assert [each["shade"] for each in table["rows"][1]["cells"]] == [1.0, None, None] and table["rows"][0]["cells"][0]["shade"] == 0.0
    assert [each["title"] for each in nested("deeper", {"one": by_text, "two": by_text})] == ["deeper: one", "deeper: two"]
    assert nested("none", {"a": "b", "c": [1]}) == []


def test_an_evaluation_of_a_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "kd")
    folder(run / "evaluation", evaluation())
    run_folder(run / "baselines" / "fine-tuned")
    page = markup(report([run, run / "evaluation"], tmp_path / "page.html"))
    assert page.count("<h2>What transferred: kd</h2>") == 1, "once, though it was given twice"
    assert "kd: fine-tuned" in page, "what the baseline cost"
    (run / "evaluation" / "evaluation.json").unlink()
    write_json(run / "evaluation" / "settings.json", {})
    page = markup(report([run], tmp_path / "page.html"))
    assert "kd: the evaluation is still going on, or was stopped" in page and "What transferred" not in page


def test_evaluations_beside_each_other(tmp_path: Path) -> None:
    other = evaluation()
    for text in ("given", "teacher", "own"):
        other["figures"]["after"][text]["kl_nats"] = figure(0.5, 0.03)
    runs = [folder(tmp_path / name / "evaluation", each) for name, each in (("one", evaluation()), ("two", other))]
    page = markup(report(runs, tmp_path / "page.html"))
    assert "What transferred: one" in page and "<h2>Evaluations compared</h2>" in page
    part = page[page.index("<h2>Evaluations compared") :]
    assert "two: after less one: after" in part
    half = math.hypot(0.03, 0.08 * 0.3)
    assert f"<strong>0.2000</strong><small>{0.2 - half:.4f}–{0.2 + half:.4f}</small>" in part


def test_difference_of_independent_intervals() -> None:
    found = apart(cell({"value": 3.0, "interval": [2.0, 5.0]}), cell({"value": 1.0, "interval": [0.5, 1.25]}))
    assert found["value"] == 2 and found["interval"] == pytest.approx([2 - math.hypot(1, 0.25), 2 + math.hypot(2, 0.5)]) and found["sure"]
    assert apart(cell({"value": 3.0, "interval": None}), cell(1.0))["value"] is None


def test_a_pipeline_is_its_stages(tmp_path: Path) -> None:
    out = tmp_path / "pipe"
    for name in ("first", "second"):
        run_folder(out / name)
    (out / "pipeline.yaml").write_text("stages:\n  first: {}\n  second: {}\n  third: {}\n")
    write_json(out / "first" / "provenance.json", {"student": {"parameters": 1000}, "teacher": {"parameters": 9000}, "licences": {
        "teacher": [{"name": "apache-2.0", "of": "model t", "permits": "yes", "obliges": "", "source": "its card"}],
        "student": [{"name": "apache-2.0", "of": "model t", "permits": "yes", "obliges": "", "source": "its card"}]}})  # fmt: skip
    page = markup(report([out], tmp_path / "page.html"))
    assert "pipe: stage third has not begun" in page
    assert page.index("pipe/first") < page.index("pipe/second") and "pipe, all stages" in page
    assert f"{float(50 * 100 * (6 * 1000 + 2 * 9000)):,.0f}" in page, "FLOPs of the first"
    assert tables(page)["Licences"] == [["model t", "apache-2.0", "teacher, student", "yes", "—", "its card"]], "each once"
    data = report([out], tmp_path / "page.html", data=tmp_path / "page.json") and read_json(tmp_path / "page.json")
    costs = next(each for each in data["sections"] if each["title"] == "What it cost")["blocks"][-1]
    assert [each["cells"][1]["value"] for each in costs["rows"]] == [75.0, 75.0, 150.0], "the last is the sum"
    shutil.rmtree(out / "second")
    assert "pipe: stage second has not begun" in markup(report([out], tmp_path / "page.html"))


def test_the_data_is_what_the_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "kd")
    found = evaluation()
    found["figures"]["after"]["own"]["perplexity"] = {"value": math.inf, "interval": [1.0, math.inf]}
    folder(run / "evaluation", found)
    app(["report", str(run), "--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "page.json")], standalone_mode=False)
    assert f"data:   {tmp_path / 'page.json'}" in capsys.readouterr().out
    data = json.loads((tmp_path / "page.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    page = markup(tmp_path / "page.html")
    assert re.findall(r"<h2>(.*?)</h2>", page) == [escape(each["title"]) for each in data["sections"]]
    blocks = [block for section in data["sections"] for block in section["blocks"]]
    drawn = [each for block in blocks if block["kind"] == "figures" for each in block["figures"]]
    plots_shown = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert [json.loads(each) for each in plots_shown] == [each["plot"] for each in drawn]
    cells = [found for block in blocks if block["kind"] == "table" for row in block["rows"] for found in row["cells"]]
    values = re.findall(r'<td [^>]*data-value="([^"]*)"', page)
    assert [float(each) for each in values] == [each["value"] for each in cells if isinstance(each["value"], int | float)]
    small = re.findall(r"<small>([^<]*)</small>", page[page.index("<main>") :])
    assert [each for each in small if re.search(r"\d(–| to )", each)] == [between(each) for each in cells if each["interval"]]
    texts = [card["text"] for block in blocks if block["kind"] == "samples" for prompt in block["prompts"] for card in prompt["cards"]]
    words = html.unescape(page)
    assert len(texts) == page.count('<div class="card"') and all(text in words for text in texts)
    assert "inf" in values or any(each["value"] == "inf" for each in cells)


def test_text_never_becomes_markup(tmp_path: Path) -> None:
    found = evaluation()
    for key in ("figures", "positions", "calibration"):
        found[key][WICKED] = found[key]["after"]
    found["samples"] = [{"prompt": WICKED, "completions": {WICKED: WICKED}}]
    found["advice"], found["missing"] = [{"says": WICKED, "because": WICKED}], [WICKED]
    found["gaps"][1] |= {"name": WICKED, "kind": WICKED}
    found["tasks"][WICKED], found["robustness"]["figures"][WICKED] = found["tasks"]["sums"], found["robustness"]["figures"]["typos"]
    found["tasks"]["sums"]["samples"][0]["wanted"] = found["robustness"]["edits"]["typos"]["example"] = WICKED
    found["settings"]["asked"][WICKED], found[WICKED] = WICKED, {WICKED: {WICKED: figure(1.0)}}
    page = report([folder(tmp_path / "<b>e", found)], tmp_path / "page.html").read_text(encoding="utf-8")
    own = markup(tmp_path / "page.html")
    assert "<script>alert" not in page and "<b>bold" not in own and '"<b>' not in own
    assert "<b>e" not in own and own.count("alert(1)") > 20


def test_a_run_with_lines_of_another_shape(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "kd")
    write_jsonl(run / "samples.jsonl", [{"step": 0}, {"evaluation": "own", "prompt": "p", "step": 1, "completion": None}])
    write_jsonl(run / "timings.jsonl", [{"seconds": "soon"}, {"step": 2, "tokens_per_second": True}])
    page = markup(report([run], tmp_path / "page.html"))
    assert "in 0:00:00" in page and "Speed" not in plots(page)


def test_an_evaluation_of_several_runs(tmp_path: Path) -> None:
    names = {"before": "kd: before", "after": "kd", "fine-tuned": "kd: fine-tuned", "from scratch": "gkd"}
    text = json.dumps(evaluation())
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    found = json.loads(text)
    for text_of_gkd in found["figures"]["gkd"].values():
        text_of_gkd["kl_nats"] = figure(5.0)
    page = shown(tmp_path, found)
    assert "On its own text kd is 0.3600 nats a token from its teacher (before: 0.9600), 0.3600 (0.3400 to 0.3800) nearer than" in page
    rows = [row[0] for row in tables(page)["Differences, each one&#39;s own text"]]
    assert rows == ["kd less kd: before", "kd less kd: fine-tuned", "gkd less kd: before", "gkd less kd", "gkd less kd: fine-tuned"]
    assert [row[0] for row in tables(page)["Differences, each one&#39;s own text: the other pairs"]] == ["kd: fine-tuned less kd: before"]
