"""The report holds what the files hold, says what they lack, and is a page that a phone can show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from limbeck.errors import CheckpointError, LimbeckError
from limbeck.files import append_jsonl, write_json
from limbeck.report import report
from limbeck.report.blocks import number as _number
from limbeck.report.training import means as _means

WICKED = "<script>alert(1)</script> & </script><b>bold"


def evaluation(kl: float, ce: float) -> dict:
    return {"sequences": 24, "tokens": 1237, "ce_nats": ce, "ce_nats_interval": [ce - 0.1, ce + 0.1], "kl_nats": kl,
            "kl_nats_interval": [kl - 0.01, kl + 0.01], "perplexity": 2.718 ** ce}  # fmt: skip


def run_folder(path: Path, kl_after: float = 0.1234, steps: int = 50, objective: str = "ForwardKL") -> Path:
    """A run's files, as a run writes them."""
    path.mkdir(parents=True)
    own = {"type": "Likelihood", "name": "own", "own_text": True}
    parts = {"student": {"type": "Student", "model": "toy-student"}, "source": {"type": "Corpus"}, "teacher": {"type": "Local"}}
    recipe = {**parts, "objective": {"type": objective}, "steps": steps, "evaluations": [{"type": "Likelihood", "name": "heldout"}, own]}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    facts = {"limbeck": "0.1.0", "command": "limbeck distill kd", "packages": {"torch": "2.9"}, "seed": 41, "teacher": "toy-teacher"}
    write_json(path / "provenance.json", facts)
    found = {
        0: {"heldout": evaluation(0.5678, 3.0), "own": evaluation(0.4, 1.0)},
        steps: {"heldout": evaluation(kl_after, 3.5), "own": evaluation(0.2, 2.0)},
    }
    for step in range(1, steps + 1):
        append_jsonl(path / "metrics.jsonl", {"step": step, "loss_nats": 1 / step, "tokens": 100})
        append_jsonl(path / "timings.jsonl", {"step": step, "seconds": 1.5, "tokens_per_second": 66.7})
    for step, completion in ((0, WICKED), (steps // 2, "halfway"), (steps, f"learned by {path.name}")):
        append_jsonl(path / "samples.jsonl", {"step": step, "evaluation": "own", "prompt": "Say <i>something</i>", "completion": completion})
    write_json(path / "evaluations.json", found)
    (path / "student").mkdir()
    return path


def markup(page: Path | str) -> str:
    """The page, or its text, without plotly's own script."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    start, end = text.index("</main>"), text.rindex("<script>")
    return text[:start] + text[end:]


def plots(page: str) -> dict[str, dict]:
    """The figures of a page by their titles."""
    found = re.findall(r'<figcaption>(.*?)</figcaption>.*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {title: json.loads(figure) for title, figure in found}


def test_holds_the_numbers(tmp_path: Path) -> None:
    page = markup(report([run_folder(tmp_path / "kd")], tmp_path / "page.html"))
    assert "KL(teacher ‖ student) on heldout fell from 0.5678 to 0.1234 nats a token in 50 steps." in page
    assert "<strong>0.1234</strong><small>0.1134–0.1334</small>" in page
    assert '<td class="value first" data-value="3.0"><strong>3.000</strong>' in page, "cross-entropy was best before"
    assert "<strong>1.000</strong>" not in page, "cross-entropy on the student's own text has no better and worse"
    assert "24 sequences, 1,237 tokens" in page
    for fact in ("toy-teacher", "limbeck distill kd", "torch 2.9", "41", "model: toy-student", "50 steps in 0:01:15", "finished"):
        assert fact in page
    assert "What is missing" not in page


def test_curves(tmp_path: Path) -> None:
    page = markup(
        report([run_folder(tmp_path / "a"), run_folder(tmp_path / "b"), run_folder(tmp_path / "c", objective="JSD")], tmp_path / "page.html")
    )
    figures = plots(page)
    loss = figures["Training loss, ForwardKL"]["data"]
    assert [trace["name"] for trace in loss] == ["a", "a", "b", "b"], "each step and the means of neighbours"
    assert loss[0]["y"] == [1 / step for step in range(1, 51)]
    assert {trace["name"] for trace in figures["Training loss, JSD"]["data"]} == {"c"}, "nats of two objectives do not compare"
    assert figures["Speed"]["data"][0]["y"] == [66.7] * 50
    band, line = figures["KL(teacher ‖ student), heldout"]["data"][:2]
    assert (line["x"], line["y"]) == ([0, 50], [0.5678, 0.1234])
    assert band["y"] == pytest.approx([0.5778, 0.1334, 0.1134, 0.5578])
    assert "Cross-entropy, heldout" in figures and "Perplexity, heldout" not in figures


def test_many_runs_side_by_side(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / "one" / "kd"), run_folder(tmp_path / "gkd", kl_after=0.07771), run_folder(tmp_path / "two" / "kd")]
    page = markup(report(runs, tmp_path))
    assert (tmp_path / "report.html").exists()
    assert "to 0.07771 nats a token in 50 steps (gkd, the best of 3 runs)." in page
    assert page.count("<strong>0.07771</strong>") == 1 and "<strong>0.1234</strong>" not in page
    assert str(runs[0]) in page and str(runs[2]) in page, "one name for two folders would not tell them apart"
    assert page.count("alert(1)") == 1, "what all wrote alike is shown once"
    assert "learned by gkd" in page and "learned by kd" in page and "halfway" not in page


def test_text_never_becomes_markup(tmp_path: Path) -> None:
    table = {"columns": [WICKED], "rows": [[WICKED]], "note": WICKED, "samples": [{"prompt": WICKED, "completions": {WICKED: WICKED}}]}
    page = report([run_folder(tmp_path / "<b>kd")], tmp_path / "page.html", table, title=WICKED).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>" not in markup(tmp_path / "page.html").replace("<b>&lt;", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;/script&gt;&lt;b&gt;bold" in page
    assert "Say &lt;i&gt;something&lt;/i&gt;" in page


def test_table_of_the_caller_stands_first(tmp_path: Path) -> None:
    samples = [{"prompt": "Why?", "completions": {"teacher": "Because.", "student before": ""}}]
    table = {"columns": ["who", "KL"], "rows": [["teacher", None], ["student", 0.123456]], "samples": samples, "note": "On 64 prompts."}
    page = markup(report([run_folder(tmp_path / "kd")], tmp_path / "page.html", table))
    assert page.index("0.1235") < page.index("<h2>Before and after")
    for words in ("Because.", "student before", "(nothing)", "On 64 prompts.", '<td class="value">—</td>'):
        assert words in page
    assert "0.1235" in markup(report([], tmp_path / "alone.html", table))


@pytest.mark.parametrize("file", ["recipe.yaml", "provenance.json", "metrics.jsonl", "timings.jsonl", "evaluations.json", "samples.jsonl"])
def test_says_what_is_missing(tmp_path: Path, file: str) -> None:
    run = run_folder(tmp_path / "kd")
    (run / file).unlink()
    assert f"{file} is not there" in markup(report([run], tmp_path / "page.html"))
    (run / file).write_text("")
    assert re.search(rf"{file} (is empty|cannot be read)", markup(report([run], tmp_path / "page.html")))
    (run / file).write_text('{"torn": [\n')
    assert f"{file} cannot be read" in markup(report([run], tmp_path / "page.html"))
    page = markup(report([run, run_folder(tmp_path / "whole")], tmp_path / "page.html"))
    assert re.search(rf"{file} cannot be read \([^)]*\): kd<", page)


def test_a_run_that_is_still_growing(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "kd")
    (run / "student").rmdir()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:20]) + '{"step": 21, "loss_nats": NaN}\n' + '{"step": 22, "loss')
    write_json(run / "evaluations.json", {"0": {"heldout": evaluation(0.5678, 3.0)}})
    page = markup(report([run], tmp_path / "page.html"))
    assert "21 of 50 steps" in page and "not finished" in page
    assert "No evaluation has a before and an after yet." in page and "0.5678" in page
    assert len(plots(page)["Training loss, ForwardKL"]["data"][0]["y"]) == 20, "what is no number is not drawn"


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"nowhere is no run folder .*found nothing; give the --out"):
        report([tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(CheckpointError, match="found a folder without any of them"):
        report([tmp_path], tmp_path / "page.html")
    with pytest.raises(CheckpointError, match="found a file"):
        report([tmp_path / "file"], tmp_path / "page.html")
    with pytest.raises(CheckpointError, match="no runs was asked for"):
        report([], tmp_path / "page.html")
    with pytest.raises(LimbeckError, match=r"cannot write .*page\.html: File exists"):
        report([run_folder(tmp_path / "kd")], tmp_path / "file" / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_importing_it_is_quick() -> None:
    heavy = "import sys, limbeck.report; print([name for name in ('torch', 'transformers', 'plotly', 'jinja2') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_numbers_and_means() -> None:
    written = [_number(value) for value in (0.0, 0.00123456, 0.5, 12.3456, 12345.678, 7000, 1e-9, float("nan"), None, "as it is")]
    assert written == ["0.000", "0.001235", "0.5000", "12.35", "12,346", "7,000", "1.00e-09", "nan", "—", "as it is"]
    assert _means([(1, 2.0), (2, 4.0), (3, 9.0)], 2) == [(1.5, 3.0), (3.0, 9.0)]
    assert _means([], 40) == []
