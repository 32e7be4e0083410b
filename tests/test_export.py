"""A student leaves its run: what lies in the folder, what its card says, what is refused, and what reaches the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub
import pytest
import students
import torch
import toys
import yaml
from typer.testing import CliRunner

import limbeck as lb
from limbeck import publish
from limbeck.cli import app
from limbeck.errors import CheckpointError, EndpointError, LimbeckError, ModelError, RecipeError
from limbeck.exporting import origin_of
from limbeck.files import write_text
from limbeck.licences import of_model
from limbeck.machine import Opening
from limbeck.models import module_of, open_model
from limbeck.pipeline import plan_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    students.run(place)
    students.run(place, "adapted", lb.Student(str(place / "start"), lb.AdamW(1e-2), lora=lb.LoRA(4)))
    return place


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def head(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def rows(place: Path | str) -> torch.Tensor:
    """Log-probabilities that a model gives a text, padding left out."""
    model = open_model(str(place), Opening("float32"))
    ids = torch.tensor([model.vocabulary.ids(students.AWKWARD[0])])
    with torch.no_grad():
        return model.module(input_ids=ids).logits[0, :, : model.vocabulary.size].double().log_softmax(-1)


# A folder of Hugging Face's


@pytest.mark.parametrize("name", ["run", "run/student", "adapted"])
def test_a_run_or_its_student_becomes_the_same_model(name: str, home: Path, tmp_path: Path) -> None:
    made = lb.export(home / name, tmp_path / "out")
    run = home / name.partition("/")[0]
    assert torch.equal(rows(made.folder), rows(run / "student"))
    assert (made.folder / "model.safetensors").read_bytes() == (run / "student" / "model.safetensors").read_bytes()
    assert dict(made.files).keys() == {path.name for path in (run / "student").iterdir()}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in made.folder.iterdir())


def test_the_card_says_what_it_is_made_of(home: Path, tmp_path: Path) -> None:
    card = (lb.export(home / "run", tmp_path / "out").folder / "README.md").read_text()
    for piece in ("# run\n", "| who wrote | Corpus |", "| who scored | Local: ", "| how far | ForwardKL |", "train.jsonl", "1 steps",
                  "## How to use it", "LlamaForCausalLM.from_pretrained", "## How it was made", "## Evaluation", "| held-out | kl_nats |",
                  "## Licences"):  # fmt: skip
        assert piece in card
    told = head(tmp_path / "out")
    assert told["license"] == "apache-2.0" and told["library_name"] == "transformers" and told["pipeline_tag"] == "text-generation"
    assert "base_model" not in told and "datasets" not in told  # these are folders of this machine
    assert {each["of"].split()[0] for each in told["licences"]} == {"model", "data"}
    assert [each.name for each in of_model(str(tmp_path / "out"))] == [each["name"] for each in told["licences"]]


def test_names_on_the_hub_are_linked(home: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    for name in ("recipe.yaml", "provenance.json", "metrics.jsonl", "student/README.md", "student/config.json", "student/model.safetensors"):
        (tmp_path / "run" / name).write_bytes((home / "run" / name).read_bytes())
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    text = text.replace(str(home / "start"), "someone/small-model").replace(str(home / "train.jsonl"), "someone/questions")
    write_text(tmp_path / "run" / "recipe.yaml", text)
    lb.export(tmp_path / "run", tmp_path / "out")
    assert head(tmp_path / "out")["base_model"] == ["someone/small-model"] and head(tmp_path / "out")["datasets"] == ["someone/questions"]


def test_what_is_private_or_a_pickle_stays_behind(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = students.folder(tmp_path / "student")
    for name in ("training_args.bin", ".netrc", "notes.log"):
        (place / name).write_text("x")
    (place / "LICENSE").write_text("Apache License")
    config = students.config_of(place)
    write_text(place / "config.json", json.dumps({**config, "made_in": str(Path.home() / "models")}))
    made = lb.export(place, tmp_path / "out")
    names = set(dict(made.files))
    assert {"LICENSE", "README.md", "config.json"} < names
    assert not {"training_args.bin", ".netrc", "notes.log"} & names
    assert students.config_of(made.folder)["made_in"] == "~/models"


def test_adapters_alone_are_folded_into_what_they_stand_on(home: Path, tmp_path: Path) -> None:
    """As a student of 4- or 8-bit weights leaves them."""
    import peft

    base = module_of(str(home / "start"), Opening("float32"))
    torch.manual_seed(1)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "student")
    students.tokenizer().save_pretrained(tmp_path / "student")
    ids = torch.tensor([students.tokenizer()(students.AWKWARD[0])["input_ids"]])

    def said(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits[0].double().log_softmax(-1)

    wanted = said(adapted)
    made = lb.export(tmp_path / "student", tmp_path / "out")
    found = said(module_of(str(made.folder), Opening("float32")))
    assert float((found - wanted).abs().max()) < 1e-3
    assert float((found - said(module_of(str(home / "start"), Opening("float32")))).abs().max()) > 0.1
    assert "adapter_config.json" not in dict(made.files) and "quantization_config" not in students.config_of(made.folder)


def test_a_pipeline_gives_its_last_stage(home: Path, tmp_path: Path) -> None:
    stage = {"student": str(home / "start"), "source": f"Corpus({str(home / 'train.jsonl')!r})", "teacher": f"Local({str(home / 'teacher')!r})",
             "objective": "ForwardKL()", "steps": 1}  # fmt: skip
    made = plan_of({"stages": {"first": stage, "second": {**stage, "student": "@first"}}})
    lb.distill_stages(made, tmp_path / "stages")
    found = lb.export(tmp_path / "stages")
    assert found.folder == tmp_path / "stages-hf"
    assert torch.equal(rows(found.folder), rows(tmp_path / "stages" / "second" / "student"))
    assert "# stages\n" in (found.folder / "README.md").read_text()


# vLLM


def test_a_folder_for_vllm_has_what_it_looks_for(tmp_path: Path) -> None:
    place = students.folder(tmp_path / "student")
    made = lb.export(place, tmp_path / "out", "vllm")
    config, model = students.config_of(made.folder), open_model(str(made.folder), Opening("float32"))
    assert config["dtype"] == "bfloat16" and config["vocab_size"] == model.vocabulary.size < students.config_of(place)["vocab_size"]
    assert config["architectures"] == ["LlamaForCausalLM"] and "quantization_config" not in config
    assert json.loads((made.folder / "generation_config.json").read_text())["eos_token_id"] in (1, [1])
    assert json.loads((made.folder / "tokenizer_config.json").read_text())["chat_template"] == toys.CHATML
    assert "vllm serve out" in (made.folder / "README.md").read_text()
    rounded = open_model(str(place), Opening("float32"))
    for weight in rounded.module.parameters():
        weight.data = weight.to(torch.bfloat16).float()
    ids = torch.tensor([model.vocabulary.ids(students.AWKWARD[0])])
    with torch.no_grad():
        here, there = (each.module(input_ids=ids).logits[0, :, : model.vocabulary.size] for each in (rounded, model))
    assert torch.equal(here, there)


# What is refused


def _unfinished(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "going").mkdir()
    (tmp_path / "going" / "recipe.yaml").write_text((home / "run" / "recipe.yaml").read_text())
    return tmp_path / "going"


def _several(home: Path, tmp_path: Path) -> Path:
    _unfinished(home, tmp_path)
    return tmp_path


def _masked(home: Path, tmp_path: Path) -> Path:
    place = students.folder(tmp_path / "masked")
    write_text(place / "config.json", json.dumps({**students.config_of(place), "architectures": ["BertForMaskedLM"]}))
    return place


def _classifier(home: Path, tmp_path: Path) -> Path:
    place = students.folder(tmp_path / "classifier")
    write_text(place / "config.json", json.dumps({**students.config_of(place), "architectures": ["LlamaForSequenceClassification"]}))
    return place


def _module(home: Path, tmp_path: Path) -> Path:
    place = students.folder(tmp_path / "module")
    write_text(place / "config.json", json.dumps({"module": "mine:net"}))
    return place


@pytest.mark.parametrize(("what", "asked", "kind", "says"), [
    (_unfinished, {}, CheckpointError, "going has no student yet.*then export"),
    (_several, {}, CheckpointError, "holds several runs .going.; give one of them"),
    (lambda home, tmp: home, {}, CheckpointError, "holds several runs .adapted, run."),
    (lambda home, tmp: tmp, {}, CheckpointError, "is no run, no pipeline's and no student's folder; give the --out"),
    (lambda home, tmp: tmp / "gone", {}, CheckpointError, "there is no such folder"),
    (lambda home, tmp: home / "run", {"format": "ggfu"}, RecipeError, 'there is no format "ggfu"; did you mean "gguf"'),
    (lambda home, tmp: home / "run", {"quantize": "q8"}, RecipeError, 'no quantisation "q8"; did you mean "q8_0"'),
    (lambda home, tmp: home / "run", {"quantize": "q8_0", "format": "vllm"}, RecipeError, "goes with --format gguf, found vllm"),
    (lambda home, tmp: home / "run", {"to": "."}, RecipeError, "is there already"),
    (lambda home, tmp: home / "run", {"dry_run": True}, RecipeError, "--dry-run goes with --push"),
    (lambda home, tmp: home / "run", {"public": True}, RecipeError, "--public goes with --push"),
    (lambda home, tmp: home / "run", {"push": "a b"}, RecipeError, "takes OWNER/NAME"),
    (_masked, {"format": "gguf"}, ModelError, "is a BertForMaskedLM, and GGUF is made of causal language models; export it as hf"),
    (_classifier, {"format": "gguf"}, ModelError, "LlamaForSequenceClassification.*export it as hf"),
    (_classifier, {"format": "vllm"}, ModelError, "LlamaForSequenceClassification.*export it as hf"),
    (_module, {}, ModelError, "is a torch module of your own .mine:net."),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused_in_one_line(what: Any, asked: dict[str, Any], kind: type, says: str, home: Path, tmp_path: Path) -> None:
    run = what(home, tmp_path)
    before = sorted(home.iterdir()), sorted(tmp_path.iterdir())
    with pytest.raises(kind, match=says):
        lb.export(run, **{"to": tmp_path / "out", **asked})
    assert (sorted(home.iterdir()), sorted(tmp_path.iterdir())) == before, "something was left behind"


def test_a_full_disk_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(LimbeckError, match=r"cannot write.*No space left.*free some space"):
        lb.export(home / "run", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# The hub


def test_a_push_needs_a_token_before_anything_is_written(home: Path, tmp_path: Path, no_token: None) -> None:
    with pytest.raises(EndpointError, match="there is no token; run `hf auth login`, or set HF_TOKEN"):
        lb.export(home / "run", tmp_path / "out", push="me/toy")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_and_uploads_nothing(home: Path, tmp_path: Path, no_token: None) -> None:
    said = CliRunner().invoke(app, ["export", str(home / "run"), "--to", str(tmp_path / "out"), "--push", "me/toy", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "model.safetensors" in said.output and "README.md" in said.output
    assert "would be uploaded to me/toy, private; nothing was" in said.output


def test_licences_that_forbid_it_stop_a_push_until_they_are_accepted(home: Path, tmp_path: Path, no_token: None) -> None:
    place = students.folder(tmp_path / "student")
    (place / "README.md").unlink()
    lb.export(place, tmp_path / "here")
    with pytest.raises(RecipeError, match=r"no licence of it was found.*--accept-license"):
        lb.export(place, tmp_path / "out", push="me/toy", dry_run=True)
    name = of_model(str(place))[0].name
    assert lb.export(place, tmp_path / "out", push="me/toy", dry_run=True, accept_license=[name]).url == ""


@pytest.mark.parametrize("where", ["environment", "looks", "metadata"])
def test_secrets_stay_here(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = students.folder(tmp_path / "student")
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    secret = "correct-horse-battery" if where == "environment" else "hf_" + "aB3" * 12
    if where == "metadata":
        from safetensors.torch import load_file, save_file

        save_file(load_file(place / "model.safetensors"), place / "model.safetensors", {"format": "pt", "by": secret})
    else:
        (place / "notes.txt").write_text(f"my key: {secret}")
    with pytest.raises(LimbeckError, match=r"(notes.txt|model.safetensors) holds what looks like a secret, and nothing was uploaded") as found:
        lb.export(place, tmp_path / "out", push="me/toy", dry_run=True)
    assert secret not in str(found.value)
    assert not (tmp_path / "out").exists()


def _pushed(url: str, *asked: str, token: str | None = "hf_" + "a" * 10) -> "subprocess.CompletedProcess[str]":
    start = "import sys; sys.argv[0] = 'limbeck'; from limbeck.cli import main; main()"
    kept = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": token or "", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": "/nowhere"}
    return subprocess.run([sys.executable, "-c", start, "export", *asked], env=kept, capture_output=True, text=True, check=False)


def test_the_real_client_uploads_the_folder_privately(home: Path, tmp_path: Path) -> None:
    with hub.serving() as there:
        done = _pushed(there.url, str(home / "run"), "--to", str(tmp_path / "out"), "--push", "me/toy")
        assert done.returncode == 0, done.stderr
        found = there.repositories["me/toy"]
        assert found["private"] is True
        assert {name: len(data) for name, data in found["files"].items() if name != ".gitattributes"} == dict(publish.listed(tmp_path / "out"))
        assert found["files"]["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
        assert b'from_pretrained("me/toy")' in found["files"]["README.md"]
        assert f"{there.url}/me/toy" in done.stdout

        there.repositories["me/toy"]["private"] = False
        again = _pushed(there.url, str(home / "run"), "--to", str(tmp_path / "again"), "--push", "me/toy")
        assert again.returncode == 2 and "me/toy is there already, and public" in again.stderr
        assert len(again.stderr.strip().splitlines()) == 1

        public = _pushed(there.url, str(home / "run"), "--to", str(tmp_path / "public"), "--push", "me/other", "--public")
        assert public.returncode == 0 and there.repositories["me/other"]["private"] is False

        there.refuses = 403
        refused = _pushed(there.url, str(home / "run"), "--to", str(tmp_path / "refused"), "--push", "me/third")
        assert refused.returncode == 2 and "the hub did not take me/third" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_where_a_student_comes_from(home: Path) -> None:
    assert origin_of(home / "run").name == origin_of(home / "run" / "student").name == "run"
    assert origin_of(home / "start").run is None
