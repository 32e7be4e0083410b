"""The command line as a user meets it: what works ends with 0. (What is typed wrong: `test_bad_input.py`.)"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

from limbeck import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("home")
    toys.folder(made / "student", seed=1)
    toys.folder(made / "teacher", seed=2, layers=3)
    toys.folder(made / "plain", seed=2, template=None)
    toys.jsonl(made / "train.jsonl", toys.rows(20))
    return made


def said(arguments: str, home: Path, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, output and complaints of a command."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["limbeck", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        sys.exit(0)
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


KD = "distill kd --teacher teacher --student student --data train.jsonl --set source.sequences=4 --set steps=2 --set student.dtype=float32"


def test_a_method_runs_and_a_report_is_drawn(home, monkeypatch, capsys) -> None:
    assert said(f"{KD} --out runs/kd", home, monkeypatch, capsys)[:2] == (0, "student: runs/kd/student\n")
    assert said("report runs/kd", home, monkeypatch, capsys)[:2] == (0, "report: runs/kd/report.html\n")
    assert "ForwardKL" in (home / "runs/kd/report.html").read_text()
    again = said("distill runs/kd/recipe.yaml --set seed=1 --out runs/again", home, monkeypatch, capsys)
    assert again[0] == 0
    assert json.loads((home / "runs/again/provenance.json").read_text())["seed"] == 1


def test_evaluate_prints_and_writes_figures(home, monkeypatch, capsys) -> None:
    asked = "evaluate --student student --teacher teacher --data train.jsonl --rows 8 --max-tokens 8 --out runs/e"
    code, out, _ = said(asked, home, monkeypatch, capsys)
    figures = json.loads((home / "runs/e/evaluation.json").read_text())["figures"]["student"]["given"]
    assert code == 0 and "the teacher's text" in out and f"{figures['kl_nats']['value']:.4g}" in out
    low, high = figures["kl_nats"]["interval"]
    assert 0 < low < figures["kl_nats"]["value"] < high


def test_a_student_without_a_template_takes_the_teachers(home, monkeypatch, capsys) -> None:
    command = KD.replace("--student student", "--student plain")
    assert said(f"{command} --out runs/plain", home, monkeypatch, capsys)[0] == 0
    assert (home / "runs/plain/student/chat_template.jinja").read_text() == toys.CHATML


def test_help_and_import_need_no_torch() -> None:
    script = "import sys, limbeck, limbeck.cli; sys.exit('torch' in sys.modules)"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
    assert time.monotonic() - began < 30  # a guard against hanging; speed is measured elsewhere
