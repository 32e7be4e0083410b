"""What `limbeck check` sees before a run costs anything, each verdict at least once."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import toys
from test_cli import said

from limbeck import check as checking
from limbeck import estimate
from limbeck.adapters import LoRA
from limbeck.anatomy import Anatomy, anatomy
from limbeck.check import Line, check
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.divergence import ForwardKL, ReverseKL
from limbeck.errors import ModelError
from limbeck.evaluate import Likelihood
from limbeck.objective import CrossEntropy, CustomTerm, Objective
from limbeck.places import locate
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus, CustomSource, Mix
from limbeck.student import Student
from limbeck.teachers import Local, Silent
from limbeck.vocabulary import Vocabulary

LONG = {"prompt": "red " * 80, "completion": "blue"}
"""320 tokens of bytes: more than the toys' context of 256."""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("home")
    toys.folder(made / "student", seed=1)
    toys.folder(made / "teacher", seed=2, layers=3)
    toys.jsonl(made / "train.jsonl", toys.rows(20))
    toys.jsonl(made / "long.jsonl", [*toys.rows(5), LONG])
    toys.jsonl(made / "other.jsonl", [{"question": "?"}])
    toys.jsonl(made / "asked.jsonl", [{"prompt": "red?"}] * 3)
    (made / "empty.jsonl").write_text("")
    (made / "typo.yaml").write_text("studnet: student\n")
    (made / "plain.txt").write_text("text\n")
    (made / "own_functions.py").write_text("def score(completion, row):\n    return 1.0\nnumber = 3\n")
    (made / "own_broken.py").write_text("1 / 0\n")
    return made


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch) -> None:
    monkeypatch.chdir(home)


def kd(student: Any = "student", teacher: Any = "teacher", data: Any = "train.jsonl", **more: Any) -> Recipe:
    student = student if isinstance(student, Student) else Student(str(student), dtype="float32")
    judge = teacher if not isinstance(teacher, str | Path) else Local(str(teacher), dtype="float32")
    source = more.pop("source", None) or Corpus(data)
    return Recipe(student, source, judge, more.pop("objective", Objective([ForwardKL()])), **more)


def found(recipe: Recipe, out: Path, quick: bool = False) -> dict[str, list[Line]]:
    lines = check(recipe, out, quick)
    return {verdict: [line for line in lines if line.verdict == verdict] for verdict in ("ok", "note", "problem")}


def copied(home: Path, to: Path, name: str = "student") -> Path:
    return Path(shutil.copytree(home / name, to / name))


# The command


KD = "check kd --teacher teacher --student student --data train.jsonl --set student.dtype=float32"


def test_a_recipe_that_can_run(home, tmp_path, monkeypatch, capsys) -> None:
    code, out, err = said(f"{KD} --out {tmp_path / 'run'}", home, monkeypatch, capsys)
    assert (code, err) == (0, "") and out.endswith("nothing stands in the way\n")
    assert not (tmp_path / "run").exists()
    for words in ("20 rows", "the same 258 tokens", "20 sequences", "about", "the teacher's gradient is", "272 rows for 258 tokens"):
        assert words in " ".join(out.split())


def test_all_problems_are_told_at_once(home, tmp_path, monkeypatch, capsys) -> None:
    command = f"check kd --teacher ./nobody --student student --data missing.jsonl --out {tmp_path / 'run'}"
    code, out, err = said(command, home, monkeypatch, capsys)
    assert code == 2 and out.endswith("2 problems\n")
    assert err.splitlines() == [
        "limbeck: there is no file missing.jsonl; give a JSONL or Parquet file, or a name on the hub",
        "limbeck: there is no folder ./nobody; give a folder, a GGUF file or a name on the hub",
    ]


SCRIPT = """
import sys
from limbeck import cli
for arguments in ("typo.yaml", "kd --teacher teacher --student student --data missing.jsonl", "kd --teacher student --student student --data x",
                  "kd --teacher teacher --student student --data train.jsonl --quick"):
    sys.argv = ["limbeck", "check", *arguments.split()]
    try:
        cli.main()
    except SystemExit as ended:
        print(ended.code or 0, [name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""


def test_what_needs_no_torch_is_answered_without_it() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    codes = [line for line in ran.stdout.splitlines() if line.endswith("]")]
    assert codes == ["2 []", "2 []", "2 []", "0 []"], ran.stderr


# The first round: files


@pytest.mark.parametrize("damage", ["cut", "code"])
def test_models_that_cannot_be_opened(damage: str, home, tmp_path) -> None:
    folder = copied(home, tmp_path)
    if damage == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    else:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "model_type": "nobody_knows", "auto_map": {"AutoConfig": "own.py"}}))
    words = {"cut": "model.safetensors is cut short: ", "code": "runs code of its own; read it, then set student.trust_remote_code: true"}
    (problem,) = found(kd(folder), tmp_path / "run", quick=True)["problem"]
    assert problem.what == "student" and words[damage] in problem.found


def test_code_beside_a_known_architecture_is_left_alone(home, tmp_path) -> None:
    folder = copied(home, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoConfig": "own.py"}}))
    assert found(kd(folder), tmp_path / "run", quick=True)["problem"] == []


def test_files_that_cannot_be_read(home, tmp_path, monkeypatch) -> None:
    def denied(self: Path, *mode: str, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Data, "rows", lambda self: denied(Path(self.path)))
    (problem,) = found(kd(), tmp_path / "run", quick=True)["problem"]
    assert problem.found.startswith("cannot read train.jsonl: Permission denied")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (lambda: kd(data="missing.jsonl"), "there is no file missing.jsonl"),
        (lambda: kd(data="empty.jsonl"), "empty.jsonl holds no rows"),
        (lambda: kd(data={"path": "empty.jsonl", "streaming": True}), "empty.jsonl holds no rows"),
        (lambda: kd(data="other.jsonl"), "other.jsonl: found columns question; rows need one of"),
        (lambda: kd(data="plain.txt"), "plain.txt is no JSONL or Parquet file"),
        (lambda: kd(data="./nowhere"), "./nowhere is not there"),
        (lambda: kd(evaluations=[Likelihood("missing.jsonl")]), "there is no file missing.jsonl"),
        (lambda: kd(teacher="plain.txt"), "plain.txt is a file, and no model"),
        (lambda: kd(teacher="model.gguf"), "there is no GGUF file model.gguf"),
        (lambda: kd(teacher="a b"), "there is no folder a b"),
        (lambda: kd(source=OnPolicy("train.jsonl", reward="own_functions:scor", group=2)), 'cannot import "own_functions:scor"'),
        (lambda: kd(source=OnPolicy("train.jsonl", reward="own_broken:score", group=2)), "ZeroDivisionError: division by zero; mend the module"),
        (lambda: kd(source=CustomSource("own_functions:number")), '"own_functions:number" is no function'),
        (lambda: kd(objective=Objective([CustomTerm("own_nowhere:f")])), 'cannot import "own_nowhere:f"'),
    ],
)
def test_what_is_not_there(recipe, words: str, tmp_path) -> None:
    (problem,) = found(recipe(), tmp_path / "run", quick=True)["problem"]
    assert words in problem.found


def test_functions_data_and_parts_that_are_there(home, tmp_path) -> None:
    toys.licensed(tmp_path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(toys.rows(7)), tmp_path / "rows.parquet")
    source = Mix(0.5, OnPolicy("asked.jsonl", reward="own_functions:score", group=2), Corpus([str(tmp_path / "rows.parquet"), str(tmp_path)]))
    lines = found(kd(source=source, teacher=Silent(), objective=Objective([CrossEntropy().on("corpus")])), tmp_path / "run", quick=True)
    said = {line.what: line.found for line in lines["ok"]}
    assert lines["problem"] == [] and said["function own_functions:score"] == "found"
    assert said[f"data {tmp_path / 'rows.parquet'}"] == "7 rows" and said["teacher"] == "Silent"
    assert said["recipe"] == "Mix, Silent, CrossEntropy@corpus, 100 steps"


def test_damaged_and_empty_parquet(tmp_path) -> None:
    toys.licensed(tmp_path)
    (tmp_path / "damaged.parquet").write_bytes(b"nothing of the kind")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(toys.rows(1)).slice(0, 0), tmp_path / "empty.parquet")
    for name, words in (("damaged", "cannot read"), ("empty", "holds no rows")):
        (problem,) = found(kd(data=str(tmp_path / f"{name}.parquet")), tmp_path / "run", quick=True)["problem"]
        assert words in problem.found


def test_names_on_the_hub_are_said(tmp_path) -> None:
    notes = found(kd(teacher="someone/large-model", data="someone/dataset"), tmp_path / "run", quick=True)["note"]
    assert [line.found.partition(":")[0] for line in notes if "name on the hub" in line.found] == [
        "no file of that name here", "no folder someone/large-model here",
    ]  # fmt: skip


def test_a_model_in_the_hubs_cache_is_read_there(home, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(home / "student" / file))
    assert locate("someone/model") == home / "student"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(home / "no_weights" / file))
    assert locate("someone/model") is None


def test_a_run_folder_of_another_recipe(home, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(kd(seed=1).yaml)
    (problem,) = found(kd(), tmp_path, quick=True)["problem"]
    assert "holds a run of another recipe (seed is 1 there, 0 here); give another --out" in problem.found
    assert Line("run folder", f"{tmp_path}, to go on from") in found(kd(seed=1), tmp_path, quick=True)["ok"]


def test_a_run_folder_that_cannot_be(home, tmp_path) -> None:
    (problem,) = found(kd(), home / "plain.txt" / "run", quick=True)["problem"]
    assert problem.found == f"cannot write to {home / 'plain.txt'}; give another --out"


# Sizes and licences


def test_a_gap_is_a_note(home, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "FAR", 1)
    assert any(line.what == "size gap" for line in found(kd(), tmp_path / "run", quick=True)["note"])


@pytest.mark.parametrize(("here_bytes", "verdict"), [(10**12, "ok"), (10**9, "note"), (10**8, "problem")])
def test_memory_against_what_is_here(here_bytes: int, verdict: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checking, "memory_here_bytes", lambda torch: here_bytes)
    (line,) = [line for line in found(kd(), tmp_path / "run", quick=True)[verdict] if line.what == "memory"]
    assert f"of {here_bytes / 1e9:.1f} GB" in line.found and ("lower tokens_per_pass" in line.found) == (verdict == "problem")


def test_a_disk_too_small(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    (problem,) = found(kd(), tmp_path / "run", quick=True)["problem"]
    assert problem.what == "disk" and "lower keep_last" in problem.found


CARDS = [("apache-2.0", "ok"), ("llama2", "note"), (None, "note")]


@pytest.mark.parametrize(("licence", "verdict"), CARDS)
def test_a_students_base_is_told_and_stops_nothing(licence: str | None, verdict: str, home, tmp_path) -> None:
    folder = copied(home, tmp_path)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "# license: none\n")
    lines = found(kd(folder), tmp_path / "run", quick=True)
    name = licence or f"unknown licence of {folder}"
    assert Line("licences", f"student: {name}; teacher: apache-2.0; source: apache-2.0", verdict) in lines[verdict]
    assert lines["problem"] == []


@pytest.mark.parametrize("licence", ["llama2", None])
def test_a_teachers_licence_that_stops_is_a_problem_until_it_is_accepted(licence: str | None, home, tmp_path) -> None:
    folder = copied(home, tmp_path, "teacher")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "")
    name = licence or f"unknown licence of {folder}"
    (problem,) = found(kd(teacher=folder), tmp_path / "run", quick=True)["problem"]
    assert problem.what == "licences" and f'set accept_license: "{name}" in the recipe' in problem.found
    lines = found(kd(teacher=folder, accept_license=name), tmp_path / "run", quick=True)
    assert lines["problem"] == []
    assert f"student: apache-2.0; teacher: {name}; source: apache-2.0" in [line.found for line in lines["note"]]


# The second round: vocabularies and lengths


def with_tokenizer(home: Path, to: Path, change) -> Path:
    folder = copied(home, to, "teacher")
    tokenizer = toys.tokenizer()
    change(tokenizer)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_vocabularies_that_differ(home, tmp_path) -> None:
    folder = with_tokenizer(home, tmp_path, lambda tokenizer: tokenizer.add_tokens(["<think>"]))
    (problem,) = found(kd(teacher=folder), tmp_path / "run")["problem"]
    assert "the vocabularies of student and teacher differ in 1 of 259 tokens ('<think>' is absent / 258)" in problem.found


def test_templates_that_differ(home, tmp_path) -> None:
    other = toys.CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n")
    folder = with_tokenizer(home, tmp_path, lambda tokenizer: setattr(tokenizer, "chat_template", other))
    (problem,) = found(kd(teacher=folder), tmp_path / "run")["problem"]
    assert "the chat templates differ" in problem.found and "set student.chat_template=teacher" in problem.found
    taken = found(kd(Student("student", dtype="float32", chat_template="teacher"), folder), tmp_path / "run")
    assert Line("chat template", "the student takes the teacher's; its own is another") in taken["ok"] and not taken["problem"]


def test_templates_that_differ_only_where_nothing_is_rendered(home, tmp_path) -> None:
    folder = with_tokenizer(home, tmp_path, lambda tokenizer: setattr(tokenizer, "chat_template", toys.CHATML + "{# more #}"))
    notes = found(kd(teacher=folder), tmp_path / "run")["note"]
    assert Line("chat template", "they differ as text, and render a plain dialogue alike", "note") in notes


def test_end_tokens_that_differ(home, tmp_path) -> None:
    folder = copied(home, tmp_path, "teacher")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 257]}))
    notes = [line for line in found(kd(teacher=folder), tmp_path / "run")["note"] if line.what == "end tokens"]
    assert notes[0].found.startswith("the student ends at <|im_end|>, the teacher at <|im_start|>, <|im_end|>")


def test_a_head_smaller_than_its_vocabulary(home, tmp_path) -> None:
    folder = with_tokenizer(home, tmp_path, lambda tokenizer: tokenizer.add_tokens([f"<{n}>" for n in range(20)]))
    problems = found(kd(folder, Silent(), objective=Objective([CrossEntropy()])), tmp_path / "run")["problem"]
    assert [line.found for line in problems] == [f"{folder} scores 272 tokens and its tokenizer knows 278; resize its embeddings"]


def test_lengths_of_text(tmp_path) -> None:
    cut = found(kd(source=Corpus("train.jsonl", max_tokens=40)), tmp_path / "run")
    lengths = [line.found for line in cut["note"] if line.what.startswith("lengths")]
    assert "of 20 sequences are longer than the 40 tokens of max_tokens and are cut there" in lengths[0] and not cut["problem"]
    left_out = found(kd(source=Corpus("long.jsonl", max_tokens=200)), tmp_path / "run")["note"]
    assert any(line.found == "1 of 6 rows have no completion token within the 200 tokens of max_tokens and are left out" for line in left_out)
    (none,) = found(kd(source=Corpus("train.jsonl", max_tokens=4)), tmp_path / "run")["problem"]
    assert none.found.startswith("train.jsonl: none of 20 rows has a completion token within the 4 tokens of max_tokens")
    (asked,) = found(kd(data="asked.jsonl"), tmp_path / "run")["problem"]
    assert asked.found.startswith("asked.jsonl: ") and asked.found.endswith("(row 1)")


def test_text_longer_than_a_context(tmp_path) -> None:
    notes = found(kd(data={"path": "long.jsonl", "streaming": True}), tmp_path / "run")["note"]
    assert "1 of 6 rows have no completion token within the 256 tokens of the student's context and are left out" in [line.found for line in notes]
    short_sighted = toys.folder(tmp_path / "short", seed=2, max_position_embeddings=40)
    (problem,) = found(kd(teacher=short_sighted), tmp_path / "run")["problem"]
    assert problem.found.endswith("of 20 sequences are longer than the 40 tokens of the teacher's context; lower source.max_tokens to 40")


def test_plain_text_is_cut_into_pieces(home, tmp_path) -> None:
    toys.jsonl(home / "texts.jsonl", [{"text": "sun " * 100}])
    notes = found(kd(source=Corpus("texts.jsonl", max_tokens=100)), tmp_path / "run")["note"]
    assert "1 of 1 sequences are longer than the 100 tokens of max_tokens and are cut into pieces" in [line.found for line in notes]


def test_a_hub_that_does_not_answer_is_asked_once(home, tmp_path, monkeypatch) -> None:
    def silent(name: str, trust_remote_code: bool) -> Anatomy:
        raise ModelError(f"there is no folder {name}, and the hub did not give it")

    monkeypatch.setattr(checking, "anatomy_on_hub", silent)
    accepted = "unknown licence of someone/model"
    (problem,) = found(kd(teacher="someone/model", accept_license=accepted), tmp_path / "run")["problem"]
    assert problem.found == "there is no folder someone/model, and the hub did not give it"
    there = anatomy("student", home / "student")
    monkeypatch.setattr(checking, "anatomy_on_hub", lambda name, trust: there)
    monkeypatch.setattr("limbeck.models.open_vocabulary", lambda name, opening: Vocabulary(toys.tokenizer()))
    monkeypatch.setattr(checking._Looking, "models_alive", lambda self: iter(()))
    assert not found(kd(teacher="someone/model", accept_license=accepted), tmp_path / "run")["problem"]


def on_policy(prompts: str, **more: Any) -> Recipe:
    return kd(source=OnPolicy(prompts, sampling=Sampling(max_tokens=more.pop("new", 8)), **more), objective=Objective([ReverseKL()]))


def test_lengths_of_prompts(home, tmp_path) -> None:
    notes = [line.found for line in found(on_policy("long.jsonl"), tmp_path / "run")["note"] if line.what.startswith("lengths")]
    assert notes == ["1 of 6 prompts are longer than the 255 tokens of the student's context, with one left for an answer, and are left out"]
    notes = [line.found for line in found(on_policy("train.jsonl", max_prompt=30), tmp_path / "run")["note"] if line.what.startswith("lengths")]
    assert len(notes) == 1 and "prompts are longer than the 30 tokens of max_prompt and are left out" in notes[0]
    (none,) = found(on_policy("train.jsonl", max_prompt=3), tmp_path / "run")["problem"]
    assert none.found.startswith("train.jsonl: none of 20 prompts is within the 3 tokens of max_prompt")


def test_room_for_answers(home, tmp_path) -> None:
    notes = [line.found for line in found(on_policy("train.jsonl", new=240), tmp_path / "run")["note"] if line.what.startswith("lengths")]
    assert notes == ["20 of 20 prompts leave no room for 240 new tokens in the 256 of the student's context: their answers end there"]
    short_sighted = toys.folder(tmp_path / "short", seed=2, max_position_embeddings=40)
    recipe = replace(on_policy("train.jsonl", new=30), teacher=Local(short_sighted))
    (problem,) = found(recipe, tmp_path / "run")["problem"]
    assert "20 of 20 prompts and their answers may pass the 40 tokens of the teacher's context" in problem.found


def test_later_rounds_wait_for_the_first(tmp_path) -> None:
    lines = check(kd(data="missing.jsonl"), tmp_path / "run")
    assert [line.found for line in lines[-2:]] == ["looked at once the problems above are mended"] * 2


# The third round


def test_the_self_test_speaks_last(home, tmp_path) -> None:
    (problem,) = found(kd(teacher=copied(home, tmp_path)), tmp_path / "run")["problem"]
    assert problem.what == "self-test" and "says already" in problem.found
    adapted = Student("student", dtype="float32", lora=LoRA(rank=2))
    lines = found(kd(adapted, Local("@student")), tmp_path / "run")["ok"]
    assert Line("teacher", "the student without its adapters") in lines and lines[-1].what == "self-test"
