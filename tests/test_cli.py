"""The command line as a user meets it: what works ends with 0, what is typed wrong with 2 and one line."""

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
    toys.jsonl(made / "other.jsonl", [{"question": "?"}])
    (made / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    (made / "empty.jsonl").write_text("")
    (made / "list.yaml").write_text("- a\n")
    (made / "broken.yaml").write_text("a: [\n")
    (made / "typo.yaml").write_text("studnet: student\n")
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
    code, out, _ = said("evaluate --student student --teacher teacher --data train.jsonl --rows 8 --out figures.json", home, monkeypatch, capsys)
    figures = json.loads((home / "figures.json").read_text())
    assert code == 0 and f"{figures['kl_nats']:.4f}" in out
    assert figures["sequences"] == 8 and figures["kl_nats"] > 0
    low, high = figures["kl_nats_interval"]
    assert low < figures["kl_nats"] < high


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("distill gdk", 'there is no method "gdk"; did you mean "gkd"? A recipe is a YAML file'),
        ("distill nothing.yaml", "there is no recipe file nothing.yaml; give a YAML file or a method's name"),
        ("distill list.yaml", "list.yaml holds a list where a mapping of settings was expected"),
        ("distill broken.yaml", "broken.yaml, line 2: no YAML"),
        ("distill typo.yaml", 'Recipe has no setting "studnet"; did you mean "student"?'),
        ("distill typo.yaml --data x", "--data goes with a method"),
        ("distill kd --student student --data train.jsonl", "kd needs --teacher"),
        ("distill sft --teacher t --student student --data train.jsonl", "sft takes no --teacher; it takes --student, --data"),
        (f"{KD} --set objective.temprature=2", 'ForwardKL has no setting "temprature"; did you mean "temperature"?'),
        (f"{KD} --set objective.temperature=0", "ForwardKL.temperature must be above 0, found 0.0"),
        (f"{KD} --set steps=many", "Recipe.steps: input should be a valid integer"),
        (f"{KD} --set steps", 'cannot read the override "steps"; write it like objective.temperature=2'),
        (f"{KD} --set objective=ReversKL", 'there is no Part "ReversKL"; did you mean "ReverseKL"?'),
        (f"{KD} --set source.data=broken.jsonl", "broken.jsonl, line 2: no JSON"),
        (f"{KD} --set source.data=empty.jsonl", "empty.jsonl holds no rows; give it at least one"),
        (f"{KD} --set source.data=other.jsonl", "other.jsonl: found columns question; rows need one of"),
        (f"{KD} --set source.data=missing.jsonl", "there is no file missing.jsonl"),
        (f"{KD} --set teacher=Silent", "ForwardKL needs a teacher that says"),
        ("distill kd --teacher student --student student --data train.jsonl", "the teacher student is the student itself and says the same"),
        ("distill kd --teacher teacher --student ./nobody --data train.jsonl", "there is no folder ./nobody"),
        ("report nowhere", "nowhere"),
        ("evaluate --student student --data missing.parquet", "there is no file missing.parquet"),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_gets_one_line(arguments: str, line: str, home, monkeypatch, capsys, tmp_path) -> None:
    out = f" --out {tmp_path / 'run'}" if arguments.startswith("distill") else ""
    code, _, err = said(arguments + out, home, monkeypatch, capsys)
    complaint = [each for each in err.splitlines() if each.startswith("limbeck: ")]
    assert code == 2 and len(complaint) == 1 and err.endswith(complaint[0] + "\n")
    assert line in complaint[0] and "Traceback" not in err


def test_a_student_without_a_template_takes_the_teachers(home, monkeypatch, capsys) -> None:
    command = KD.replace("--student student", "--student plain")
    assert said(f"{command} --out runs/plain", home, monkeypatch, capsys)[0] == 0
    assert (home / "runs/plain/student/chat_template.jinja").read_text() == toys.CHATML


def test_help_and_import_need_no_torch() -> None:
    script = "import sys, limbeck, limbeck.cli; sys.exit('torch' in sys.modules)"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
    assert time.monotonic() - began < 30  # a guard against hanging; speed is measured elsewhere
