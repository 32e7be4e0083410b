"""A student leaves its run: as a folder of Hugging Face's, for llama.cpp, or for vLLM; and to the hub."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck import llamacpp, publish
from limbeck.config import read_yaml
from limbeck.errors import CheckpointError, ModelError, RecipeError, did_you_mean
from limbeck.export_card import Origin, card
from limbeck.files import new_folder, write_text
from limbeck.gguf_writer import ROUNDED, About, see_writable, write_gguf
from limbeck.kinds import KINDS
from limbeck.lazy import torch
from limbeck.licences import CARD, gate, known, of_model
from limbeck.machine import Opening
from limbeck.models import module_of, see_files, tokenizer_of
from limbeck.places import BASE, MODULE
from limbeck.privacy import expanded, shareable
from limbeck.storage import here, named
from limbeck.vocabulary import Vocabulary

STUDENT, ADAPTERS = "student", "adapter_config.json"
DEFAULT = "q8_0"
KEPT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
"""Files of a model that go with it; pickles never do."""
OTHERS = "export it as hf"
BEFORE = "evaluations below are of the student before it was rounded"


@dataclass(frozen=True)
class Exported:
    """What was made. files: their names in the folder, and bytes; url: where on the hub they are, or would be."""

    folder: Path
    files: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    url: str = ""


def export(
    run: Path | str, to: Path | str | None = None, format: str | None = None, quantize: str | None = None, push: str | None = None,
    public: bool = False, dry_run: bool = False, accept_license: Sequence[str] = (),
) -> Exported:  # fmt: skip
    """Make a folder of a run's student, of the last stage's of a pipeline, or of a student's folder; and put it on the hub.

    format: "hf" (the default), "gguf" or "vllm". quantize: how GGUF rounds; by default q8_0. push: OWNER/NAME on the hub, private
    unless `public`; with `dry_run` nothing is uploaded, and `files` is what would be. accept_license: licences by name that the gate
    of a push lets pass, beside those that the run's recipe accepts. Raises LimbeckError for what cannot be done, before anything is
    written.
    """
    chosen, kind = _chosen(format, quantize)
    origin = origin_of(expanded(run))
    target = expanded(to) if to else _beside(origin, chosen, kind)
    if target.exists():
        raise RecipeError(f"{target} is there already; give another --to, or remove it")
    token = _see_push(origin, push, public, dry_run, accept_license)
    make = FORMATS[chosen]
    with new_folder(target) as work:
        what, use, more = make(origin, work, kind)
        write_text(work / CARD, card(origin, what, use.replace("{folder}", push or target.name), more))
        for path in work.iterdir():
            path.chmod(0o644)
        if push:
            publish.see_no_secrets(work)
    url = publish.push(target, push, token, public) if push and token else ""
    return Exported(target, publish.listed(target), url)


def _chosen(format: str | None, quantize: str | None) -> tuple[str, str]:
    """The format, and how GGUF rounds. Raises RecipeError for what is not known."""
    chosen = format or ("gguf" if quantize else "hf")
    if chosen not in FORMATS:
        raise RecipeError(f'there is no format "{chosen}"{did_you_mean(chosen, FORMATS)}')
    if quantize and chosen != "gguf":
        raise RecipeError(f"--quantize {quantize} goes with --format gguf, found {chosen}; leave one of them out")
    kind = (quantize or DEFAULT).lower()
    if kind not in ROUNDED and kind not in llamacpp.MIXTURES:
        raise RecipeError(f'there is no quantisation "{quantize}"{did_you_mean(kind, [*ROUNDED, *llamacpp.MIXTURES])}')
    if chosen == "gguf" and kind in llamacpp.MIXTURES:
        llamacpp.see_quantiser(kind)
    return chosen, kind


def _see_push(origin: Origin, push: str | None, public: bool, dry_run: bool, accepted: Sequence[str]) -> str:
    """See that a push can be made, before anything is; the token, where one is needed."""
    if not push:
        if public or dry_run:
            raise RecipeError(f"--{'public' if public else 'dry-run'} goes with --push OWNER/NAME; give that too")
        return ""
    publish.see_name(push)
    recipe = read_yaml(origin.run / "recipe.yaml") if origin.run else {}
    told = recipe.get("accept_license") or []
    gate([each for each in origin.licences if each.of not in _bases(origin)], [*accepted, *([told] if isinstance(told, str) else told)])
    return "" if dry_run else publish.see_token()


def _bases(origin: Origin) -> set[str]:
    """What a run's student was before: to train on top of a model is not to train on what it says, as the run's own gate has it."""
    found = known(origin.run / "provenance.json") if origin.run else {}
    others = {each.of for role in found if role != "student" for each in found[role]}
    return {each.of for each in found.get("student", [])} - others


def origin_of(folder: Path) -> Origin:
    """Whose student a folder stands for. Raises CheckpointError where there is none yet, or it is no run."""
    if (folder / "pipeline.yaml").exists():
        last = list(read_yaml(folder / "pipeline.yaml")["stages"])[-1]
        return _of_run(folder / last, folder.resolve().name)
    if (folder / "recipe.yaml").exists():
        return _of_run(folder, folder.resolve().name)
    if (folder / "config.json").exists() or (folder / ADAPTERS).exists():
        above = folder.resolve().parent
        if folder.resolve().name == STUDENT and (above / "recipe.yaml").exists():
            return _of_run(above, above.name)
        return Origin(folder, folder.resolve().name, None, of_model(str(folder)))
    inside = sorted(path.parent.name for path in folder.glob("*/recipe.yaml")) if folder.is_dir() else []
    why = f"holds several runs ({', '.join(inside[:4])}); give one of them" if inside else "is no run, no pipeline's and no student's folder"
    missing = "" if folder.exists() else ", for there is no such folder"
    raise CheckpointError(f"{folder} {why}{missing}{'' if inside else '; give the --out of limbeck distill'}")


def _of_run(run: Path, name: str) -> Origin:
    if not (run / STUDENT).exists():
        raise CheckpointError(f"{run} has no student yet: its run goes on, or was stopped; give its limbeck distill command again, then export")
    found = [each for several in known(run / "provenance.json").values() for each in several]
    return Origin(run / STUDENT, name, run, list(dict.fromkeys(found)) or of_model(str(run / STUDENT)))


def _beside(origin: Origin, chosen: str, kind: str) -> Path:
    place = (origin.run or origin.student).resolve()
    place = place.parent if origin.run and place.name != origin.name else place  # a stage's run lies in its pipeline's
    return here(named(str(place.with_name(f"{origin.name}-{kind if chosen == 'gguf' else chosen}"))))


# The formats: each fills a folder, and says what is in it, how it is used, and what the hub should know

Told = tuple[str, str, dict[str, Any]]


def _config(origin: Origin) -> dict[str, Any]:
    file = origin.student / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{file} is damaged; make the student again")
    if MODULE in found:
        raise ModelError(f"{origin.student} is a torch module of your own ({found[MODULE]}), which no other program opens; it can be read here alone")
    return found


def _see_causal(origin: Origin, format: str) -> None:
    """Raise ModelError for what is no causal language model."""
    config = _config(origin)
    kind = str((config.get("architectures") or ["?"])[0])
    if config and (config.get("is_encoder_decoder") is True or kind.endswith(tuple(KINDS)) or not kind.endswith(("ForCausalLM", "LMHeadModel", "?"))):
        raise ModelError(f"{origin.student} is a {kind}, and {format} is made of causal language models; {OTHERS}")


def _adapted(origin: Origin) -> bool:
    return (origin.student / ADAPTERS).exists()


def _open(origin: Origin) -> tuple[Any, Vocabulary]:
    """The student, adapters folded in, in the numbers in which it was saved (float32 below adapters), and its words."""
    see_files(str(origin.student))
    tokenizer = tokenizer_of(str(origin.student), Opening())
    module = _merged(origin) if _adapted(origin) else module_of(str(origin.student), Opening("float32"))
    given = module.generation_config.eos_token_id if module.generation_config else None
    ends = [given] if isinstance(given, int) else given or []
    return module.eval(), Vocabulary(tokenizer, frozenset(ends))


def _merged(origin: Origin) -> Any:
    """Adapters folded into the weights that they stand on. Beside 4- and 8-bit weights they were learnt for those; here they meet whole ones."""
    from peft import PeftModel

    base = json.loads((origin.student / ADAPTERS).read_text())[BASE]
    return PeftModel.from_pretrained(module_of(base, Opening("float32")), str(origin.student)).merge_and_unload()


def _save(module: Any, vocabulary: Vocabulary, folder: Path, **options: Any) -> None:
    module.config._name_or_path = ""  # a folder of this machine
    module.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder, **options)
    _shared(folder)


def _shared(folder: Path) -> None:
    """Take what is private out of settings."""
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        if path.name != "tokenizer.json" and (said := shareable(text)) != text:
            write_text(path, said)


def _copied(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        if path.is_file() and (path.suffix in KEPT or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))) and path.name[0] != ".":
            shutil.copyfile(path, folder / path.name)
    _shared(folder)


def _hf(origin: Origin, folder: Path, kind: str) -> Told:
    """The student's own files, to the byte; where it is adapters, with them folded in."""
    config = _config(origin)
    if _adapted(origin):
        module, vocabulary = _open(origin)
        _save(module, vocabulary, folder)
        config = json.loads((folder / "config.json").read_text())
    else:
        see_files(str(origin.student))
        _copied(origin.student.iterdir(), folder)
    architecture = str((config.get("architectures") or ["AutoModel"])[0])
    use = f'```python\nfrom transformers import AutoTokenizer, {architecture}\n\ntokenizer = AutoTokenizer.from_pretrained("{{folder}}")\n' \
          f'model = {architecture}.from_pretrained("{{folder}}")\n```'  # fmt: skip
    return f"transformers, {_weights(folder)}", use, {"library_name": "transformers"}


def _vllm(origin: Origin, folder: Path, kind: str) -> Told:
    """The student in 16 bits without padding of its head, its chat template and its ends where vLLM looks for them."""
    _see_causal(origin, "a vLLM folder")
    module, vocabulary = _open(origin)
    if module.get_output_embeddings().weight.shape[0] > vocabulary.size:
        module.resize_token_embeddings(vocabulary.size)  # what stands in no vocabulary would be drawn, and mean nothing
    dtype = torch.float16 if _config(origin).get("dtype") == "float16" else torch.bfloat16
    module.to(dtype)
    module.config.dtype = dtype
    module.generation_config.eos_token_id = sorted(vocabulary.end_ids) or None
    _save(module, vocabulary, folder, save_jinja_files=False)
    path = "/v1/chat/completions" if vocabulary.has_template else "/v1/completions"
    use = f"```bash\nvllm serve {{folder}}\n```\n\nAsk it at `{path}`."
    use += "" if vocabulary.has_template else " It has no chat template: dialogues need `--chat-template`."
    return (
        f"vLLM, {_weights(folder)} in {str(dtype).removeprefix('torch.')}; {BEFORE}",
        use,
        {"library_name": "transformers", "pipeline_tag": "text-generation"},
    )


def _gguf(origin: Origin, folder: Path, kind: str) -> Told:
    """One file for llama.cpp and all that reads its format."""
    _see_causal(origin, "GGUF")
    module, vocabulary = _open(origin)
    see_writable(module, str(origin.student))
    file, about = folder / f"{origin.name}-{kind}.gguf", About(origin.name, [each.name for each in origin.licences])
    if kind in ROUNDED:
        write_gguf(module, vocabulary, file, kind, about)
    else:
        whole = folder / "whole.gguf"
        write_gguf(module, vocabulary, whole, "f32", about)
        llamacpp.quantise(whole, file, kind)
        whole.unlink()
    _copied((path for path in origin.student.iterdir() if path.suffix not in KEPT), folder)
    bits = 8 * file.stat().st_size / sum(weight.numel() for weight in module.parameters())
    use = f'```bash\nllama-server --model {file.name}\n```\n\nor transformers: `from_pretrained("{{folder}}", gguf_file="{file.name}")`.'
    return f"GGUF, {kind}, {_weights(folder)}, {bits:.1f} bits a weight; {BEFORE}", use, {"library_name": "gguf", "tags": ["gguf"]}


def _weights(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    return f"{size / 1e6:,.1f} MB of weights"


FORMATS: dict[str, Callable[[Origin, Path, str], Told]] = {"hf": _hf, "gguf": _gguf, "vllm": _vllm}
