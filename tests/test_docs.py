"""The pages say what the program says, and every example in them runs, on toys under the names that the examples use."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import toys
import yaml
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.config import Part, read_yaml, settings_of
from limbeck.errors import LimbeckError, Stopped
from limbeck.methods import named
from limbeck.pipeline import plan_of
from limbeck.recipe import Recipe

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
BASE: dict[str, Any] = {"student": "student", "source": "Corpus('train.jsonl')", "teacher": "Local('teacher')"}
"""What a YAML example that is part of a recipe is part of."""


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


docs = _generator()
PAGES = docs.pages()
WITH_EXAMPLES = [page for page in PAGES if BLOCK.search(page.read_text())]


def name_of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_parts_are_fresh(page: Path) -> None:
    text = page.read_text()
    assert docs.filled(text) == text, f"{page.name} is stale: run make docs"
    assert text.count("<!-- generated: ") == len(docs.MARKED.findall(text)), f"{page.name}: a generated block without an end"


def test_a_stale_page_is_found() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert docs.filled(page.replace("`steps` | whole number", "`steps` | number")) == page


@pytest.mark.parametrize("part", docs.parts(), ids=lambda part: part.__name__)
def test_every_part_and_setting_is_named(part: type[Part]) -> None:
    tables = [found for page in PAGES for found in docs.MARKED.finditer(page.read_text()) if found[2] == f"settings {part.__name__}"]
    assert tables, f"no page has <!-- generated: settings {part.__name__} -->"
    assert [name for name in settings_of(part) if f"| `{name}` |" not in tables[0][0]] == []


def test_every_command_has_a_page_with_its_help() -> None:
    pages = {path.stem.removeprefix("cmd-"): path.read_text() for path in (ROOT / "docs").glob("cmd-*.md")}
    assert sorted(pages) == sorted(docs.commands())
    assert [name for name, text in pages.items() if f"<!-- generated: help {name} -->" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_the_index_leads_to_every_page() -> None:
    found = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= found


def test_the_schema_is_fresh() -> None:
    assert docs.SCHEMA.read_text() == docs.schema(), f"{docs.SCHEMA.name} is stale: run make docs"


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    found = json.loads(docs.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize("method, given", [(method, given) for method, several in docs.EXAMPLES.items() for given in several])
def test_the_schema_allows_every_method(method: str, given: dict[str, str], schema: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    teacher = {"teacher": "teacher"} if method != "sft" else {}
    (tmp_path / "recipe.yaml").write_text(named(method, student="student", **teacher, **given).yaml)
    assert list(schema.iter_errors(read_yaml(tmp_path / "recipe.yaml"))) == []


WHOLE: dict[str, Any] = {"student": {"model": "s"}, "source": {"type": "Corpus", "data": "a"}, "teacher": {"type": "Local", "model": "t"}}


@pytest.mark.parametrize(
    "changed",
    [
        {"student": "s", "source": "Corpus('a')", "teacher": "Local('t')", "objective": "ForwardKL() + 0.5 * JSD()"},
        {"student": {"type": "Student", "model": "s", "lora": {"rank": 4, "targets": ["q"]}, "quantization": "4bit"}},
        {"source": {"type": "Corpus", "data": ["a", {"path": "b", "weight": 2, "template_arguments": {"x": [1]}}]}},
        {"source": {"type": "Mix", "fraction": 1, "first": "OnPolicy('p')", "second": {"type": "Corpus", "data": "a"}},
         "objective": {"type": "JSD", "weight": 2, "writer": "student"}},
        {"teacher": {"type": "Privileged", "model": "@student", "hint": "{answer}"}},
        {"teacher": {"type": "Guided", "teacher": {"type": "Local", "model": "t"}, "scale": 2}},
        {"source": {"type": "Prefetch", "source": "OnPolicy('p')"}, "objective": {"type": "SampledReverseKL", "ratio": 2}},
        {"objective": ["JSD", {"type": "ForwardKL", "temperature": 2}]},
        {"objective": {"type": "Objective", "terms": ["JSD"]}},
        {"objective": {"type": "my_terms:Power", "power": 1.5}, "teacher": {"type": "my.teachers:Own"}},
        {"evaluations": [{"type": "Likelihood", "data": "a", "sampling": {"max_tokens": 3}}], "evaluate_every": None},
    ],
)  # fmt: skip
def test_the_schema_allows_what_a_recipe_allows(changed: dict[str, Any], schema: jsonschema.Draft202012Validator) -> None:
    assert list(schema.iter_errors(WHOLE | changed)) == []
    if ":" not in str(changed.get("teacher")):
        assert Recipe.of(WHOLE | changed)


@pytest.mark.parametrize(
    "changed, where",
    [
        ({"stepps": 10}, []),
        ({"steps": "many"}, ["steps"]),
        ({"steps": 1.5}, ["steps"]),
        ({"keep": "worst"}, ["keep"]),
        ({"trackers": ["wanda"]}, ["trackers", 0]),
        ({"student": {"model": "s", "optimizer": {"lerning_rate": 1}}}, ["student"]),
        ({"student": {"type": "Local", "model": "s"}}, ["student"]),
        ({"student": {"dtype": "float32"}}, ["student"]),
        ({"source": {"type": "Copus", "data": "a"}}, ["source"]),
        ({"source": {"data": "a"}}, ["source"]),
        ({"source": {"type": "Corpus", "data": {"path": "a", "wieght": 1}}}, ["source"]),
        ({"source": {"type": "Corpus"}}, ["source"]),
        ({"teacher": {"type": "JSD"}}, ["teacher"]),
        ({"teacher": ["Local('t')"]}, ["teacher"]),
        ({"objective": []}, ["objective"]),
        ({"objective": [{"type": "JSD", "beta": "half"}]}, ["objective"]),
        ({"objective": {"type": "my terms", "power": 1.5}}, ["objective"]),
        ({"evaluations": "Likelihood('a')"}, ["evaluations"]),
        ({"source": None}, ["source"]),
    ],
)
def test_the_schema_marks_what_is_wrong_and_so_does_the_recipe(
    changed: dict[str, Any], where: list[Any], schema: jsonschema.Draft202012Validator
) -> None:
    assert [list(error.absolute_path) for error in schema.iter_errors(WHOLE | changed)] == [where]
    with pytest.raises(LimbeckError):
        Recipe.of(WHOLE | changed)


def test_the_schema_knows_every_setting_its_default_and_its_meaning() -> None:
    found = json.loads(docs.SCHEMA.read_text())
    student = next(each for each in found["$defs"]["Student"]["anyOf"] if "properties" in each)
    assert student["properties"]["lora"]["description"] == "train adapters instead of the weights."
    assert found["properties"]["save_every"]["description"].startswith("in steps;")
    assert found["properties"]["steps"] == {"type": "integer", "default": 100}
    assert found["$defs"]["Likelihood"]["properties"]["sampling"]["default"]["max_tokens"] == 64
    for part in {Recipe, *docs.below(Recipe)} & set(docs.parts()):  # others stand in no recipe
        spelt = [found, found["$defs"].get(part.__name__, {}), *found["$defs"].get(part.__name__, {}).get("anyOf", [])]
        own = next(each for each in spelt if each.get("properties", {}).get("type", {}).get("const") == part.__name__)
        assert list(own["properties"]) == ["type", *settings_of(part)] and own["description"] and not own["additionalProperties"]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one family and three files, as the examples name them."""
    made = tmp_path_factory.mktemp("toys")
    toys.folder(made / "student", seed=1)
    toys.folder(made / "teacher", seed=2)
    toys.jsonl(made / "train.jsonl", toys.rows(40))
    toys.jsonl(made / "heldout.jsonl", toys.rows(12, seed=1))
    toys.jsonl(made / "prompts.jsonl", [{"prompt": row["prompt"], "answer": row["completion"]} for row in toys.rows(20, seed=2)])
    return made


@pytest.fixture
def workplace(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The toys in the working folder; what a page imports and registers is forgotten afterwards."""
    here = tmp_path / "here"
    shutil.copytree(toy_folder, here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    monkeypatch.setattr(Part, "registry", dict(Part.registry))
    before = set(sys.modules)
    yield here
    for name in set(sys.modules) - before:
        if name == "docs_page" or str(getattr(sys.modules[name], "__file__", None)).startswith(str(here)):
            del sys.modules[name]


def run_python(text: str, module: types.ModuleType, where: str, line: int) -> None:
    """Run a block in its page's module; a failure shows the page and the line in it."""
    exec(compile("\n" * line + text, where, "exec"), vars(module))


def build_yaml(text: str) -> None:
    """Stages, a whole recipe, or a part of one."""
    given = yaml.safe_load(text)
    made = plan_of(given if "stages" in given else {**BASE, **given})
    assert plan_of(yaml.safe_load(made.yaml)) == made


def run_commands(text: str, where: str) -> None:
    """Every line of a block is a command of ours that ends well."""
    for line in text.strip().splitlines():
        program, *arguments = shlex.split(line)
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert program == "limbeck" and done.exit_code == 0, f"{where}: {line}: {done.output}"


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_run(page: Path, workplace: Path) -> None:
    """All blocks of a page in their order; the Python of a page is one module, and blocks marked as files are files."""
    module = sys.modules["docs_page"] = types.ModuleType("docs_page")
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        if found["file"]:
            Path(found["file"]).write_text(found["text"])
        match found["language"]:
            case "python":
                run_python(found["text"], module, str(page), line)
            case "yaml":
                build_yaml(found["text"])
            case "bash":
                run_commands(found["text"], f"{page.name}, line {line}")
            case other:
                assert other == "text", f"{page.name}, line {line}: a block of {other or 'no language'}; use python, yaml, bash or text"


def test_the_examples_for_schedulers_can_be_read() -> None:
    """They cannot run here: the YAML is loaded, the script parsed by bash, and both know the code that the command ends with."""
    text = (ROOT / "docs" / "processes.md").read_text()
    found = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert set(found) == {"slurm.sh", "kubernetes.yaml"}
    subprocess.run(["bash", "-n"], input=found["slurm.sh"], text=True, check=True)
    code = Stopped("", signal.SIGTERM).code
    assert f'"$code" -eq {code}' in found["slurm.sh"]
    job = yaml.safe_load(found["kubernetes.yaml"])
    pod, rules = job["spec"]["template"]["spec"], job["spec"]["podFailurePolicy"]["rules"]
    codes = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules if "onExitCodes" in rule}
    assert (job["kind"], codes, pod["restartPolicy"]) == ("Job", {(code,): "Ignore", (2,): "FailJob"}, "Never")
    assert pod["terminationGracePeriodSeconds"] >= 30 and pod["containers"][0]["name"] == rules[0]["onExitCodes"]["containerName"]
