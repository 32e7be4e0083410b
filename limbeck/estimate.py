"""What models are by their files alone, and what a run with them will take: no weights are read, and no torch is needed.

Names and shapes of weights stand at the head of safetensors and GGUF files; the rest is in config.json.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from limbeck.errors import ModelError
from limbeck.features import HiddenStates, LayerTerm, pairs
from limbeck.insides import ROWS
from limbeck.machine import Precision
from limbeck.offload import resident
from limbeck.places import NOT_HERE
from limbeck.prefetch import Prefetch
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Source
from limbeck.student import Student

EMBEDDINGS = ("embed", "lm_head", "wte", "wpe", "output.weight", "embed_out")
"""What is in the names of weights that are looked up or score the vocabulary: neither quantised nor adapted."""
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "model.embed_tokens.weight", "transformer.wte.weight", "token_embd.weight")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Anatomy:
    """A model as its files describe it: the settings of its language model, its weights' shapes, its end tokens."""

    name: str
    config: dict[str, Any]
    shapes: Shapes
    end_ids: frozenset[int] = field(default_factory=frozenset)
    own_code: bool = False

    def __str__(self) -> str:
        context = f"{self.context:,} tokens" if self.context else "unknown"
        return f"{self.name}: {short(self.parameters_total)} parameters, {self.layers} layers, context {context}"

    def size(self, *names: str) -> int:
        """The first of these settings that the configuration has; 0 where it has none."""
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)

    @property
    def parameters_total(self) -> int:
        """Weights, tied ones counted once."""
        return sum(map(prod, self.shapes.values()))

    @property
    def context(self) -> int | None:
        """The longest sequence it was made for, in tokens."""
        return self.size("max_position_embeddings", "n_positions") or None

    @property
    def layers(self) -> int:
        """How many blocks it has."""
        return self.size("num_hidden_layers", "n_layer", "num_layers")

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return self.size("hidden_size", "n_embd", "d_model")

    @property
    def feed_forward(self) -> int:
        """Width inside its feed-forward layers, of those that see one token."""
        once = self.size("intermediate_size", "n_inner", "ffn_dim") or 4 * self.width
        return max(once, self.size("moe_intermediate_size") * self.size("num_experts_per_tok"))

    @property
    def keys_values(self) -> int:
        """Numbers that a layer remembers of one token."""
        each = self.size("head_dim") or self.width // self.heads
        return 2 * each * (self.size("num_key_value_heads") or self.heads)

    @property
    def heads(self) -> int:
        """By which a layer attends."""
        return self.size("num_attention_heads", "n_head") or 1

    @property
    def queries_keys(self) -> int:
        """Numbers that a layer attends by, of one token."""
        return (self.size("head_dim") * self.heads or self.width) + self.keys_values // 2

    @property
    def head_rows(self) -> int:
        """Outcomes that its head scores, padding among them."""
        return next((self.shapes[name][0] for name in HEADS if name in self.shapes), 0) or self.size("vocab_size")


def anatomy(name: str, place: Path) -> Anatomy:
    """A model's anatomy from its folder or GGUF file. Raises ModelError for what is missing, cut short or a pickle."""
    return _of_gguf(name, place) if place.is_file() else _of_folder(name, place)


def anatomy_on_hub(name: str, trust_remote_code: bool) -> Anatomy:
    """The same of a name on the hub, of which the configuration alone is fetched; needs torch, and no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"there is no folder {name}, and the hub did not give it: {' '.join(str(error).split())[:200]}; {NOT_HERE}") from None
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    return Anatomy(name, config.get_text_config().to_dict(), shapes)


def _of_folder(name: str, folder: Path) -> Anatomy:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} has no config.json, so it holds no model; {NOT_HERE}")
    whole = _json(folder / "config.json")
    config = {**whole, **(whole.get("text_config") or {})}
    writes = _json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = writes.get("eos_token_id", config.get("eos_token_id"))
    own_code = "auto_map" in whole and not _known_to_transformers(str(whole.get("model_type")))
    shapes = {weight: shape for file in _weight_files(name, folder) for weight, shape in safetensors_shapes(file).items()}
    end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
    return Anatomy(name, config, shapes, end_ids, own_code)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; fetch the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__} where settings were expected; fetch the model again")
    return found


def _known_to_transformers(model_type: str) -> bool:
    """Whether the library has this architecture itself, and so runs none of the folder's code; asked without importing it."""
    from importlib.util import find_spec

    found = find_spec("transformers")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def _weight_files(name: str, folder: Path) -> list[Path]:
    """The files that hold the weights, each of them there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    else:
        files = [folder / file for file in sorted(set(_json(index).get("weight_map", {}).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{name} lacks {missing[0]}, one of {len(files)} files of weights ({len(missing)} missing); fetch it again")
    if not files and (any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))):
        raise ModelError(f"{name} has no safetensors weights, and pickles are never read; convert it with save_pretrained")
    if not files:
        raise ModelError(f"{name} has no weights; fetch the model again, or give another")
    return files


def safetensors_shapes(file: Path) -> Shapes:
    """Names and shapes of the weights in a file. Raises ModelError for one whose length is not what its head says.

    The format: 8 bytes, little-endian, the length of the head; the head, JSON; then the weights at its offsets.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        (head_bytes,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if head_bytes > size_bytes - 8:
            raise ModelError(f"{file} is cut short: {size_bytes:,} bytes cannot hold its head of {head_bytes:,}; fetch it again")
        head = stream.read(head_bytes)
    try:
        entries: dict[str, Any] = {key: value for key, value in json.loads(head).items() if key != "__metadata__"}
        shapes = {key: tuple(map(int, value["shape"])) for key, value in entries.items()}
        expected_bytes = 8 + head_bytes + max((int(value["data_offsets"][1]) for value in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file} is damaged: its head is no list of weights; fetch it again") from None
    if size_bytes != expected_bytes:
        what = "cut short" if size_bytes < expected_bytes else "damaged"
        raise ModelError(f"{file} is {what}: {size_bytes:,} bytes of {expected_bytes:,}; fetch it again")
    return shapes


GGUF_SETTINGS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings", "vocab_size": "vocab_size",
}  # fmt: skip
"""What GGUF calls what config.json calls otherwise."""


def _of_gguf(name: str, file: Path) -> Anatomy:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(f"{file} is cut short or no GGUF file ({error}); fetch it again") from None
    try:
        said: Callable[[str], Any] = lambda key: reader.fields[key].contents() if key in reader.fields else None  # noqa: E731
        kind = said("general.architecture")
        config = {ours: said(f"{kind}.{theirs}") for theirs, ours in GGUF_SETTINGS.items()}
        shapes = {str(tensor.name): tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
        end = said("tokenizer.ggml.eos_token_id")
        return Anatomy(name, config, shapes, frozenset() if end is None else frozenset([int(end)]))
    finally:
        reader.data._mmap.close()  # pyright: ignore[reportAttributeAccessIssue]  # numpy tells nobody of it, and waits for the collector


# What a run takes


@dataclass(frozen=True)
class Load:
    """What a pass and a prompt hold, as far as is known.

    longest_tokens: of a sequence, which is a pass of its own where it is longer than tokens_per_pass; prompt_tokens: of
    the longest prompt; chunk_bytes: of the loss head's logits; base_bytes: of the program itself.
    """

    longest_tokens: int = 0
    prompt_tokens: int = 256
    chunk_bytes: int = 200 * 2**20
    base_bytes: int = 600_000_000


AT_ONCE = 64
"""Rows that are written together; `generate.write`."""


def memory_bytes(recipe: Recipe, student: Anatomy, teacher: Anatomy | None, load: Load, width_of: Callable[[Precision], int]) -> dict[str, int]:
    """What a run holds at its fullest, in bytes, by what for; `width_of` says how many bytes a number of a precision has.

    Learning:  4 P masters (and b P more where the arithmetic has b < 4 bytes: autocast's copy) + 4 M gradients + 8 M moments
               (2 M in 8 bits), of P weights, M of which move; + 4 V D, the head's gradient beside the one that is added up;
               + T (L + 1) a, activations of the T tokens of a pass in L layers: a = 24 D + b (10 D + 4 F) bytes; with activation
               checkpoints T (4 L D + a). Where layers are compared, also what `_inside_bytes` says.
    Writing:   R (2 (p + m) L k b + p a + 16 V), what R rows remember of a prompt of p tokens and m new ones, which is copied as it
               grows, the prompt's pass, and four float32 copies of the logits; the activations of learning are not there then,
               unless the source draws ahead, which takes as many copies of the moving weights too.

    Found with SmolLM2-135M as both models on a CPU, T = 1024 and 2048, two passes a step: +0.7 to +2.1 % of the process's peak
    (float32, bfloat16, adapters); with activation checkpoints -13 %, as freed gradients leave holes in the heap. Writing 32 and 64
    rows of 256 tokens: +15 and -9 % of what was taken beside the weights; 64 rows of 64 tokens: +94 %, of 0.5 GB.
    """
    numbers = width_of(recipe.student.dtype)
    found, moving = learner_bytes(student, recipe.student), moving_parameters(student, recipe.student)
    if numbers < 4 and not recipe.student.quantization:
        found["student"] += numbers * student.parameters_total
    if teacher is not None:
        quantization, offload = (getattr(recipe.teacher, name, None) for name in ("quantization", "offload"))
        found["teacher"] = frozen_bytes(teacher, quantization, width_of(getattr(recipe.teacher, "dtype", "auto")), offload)
    learning = _learning_bytes(recipe, student, load, numbers)
    learning += _inside_bytes(recipe, student, teacher or student, load, (numbers, width_of(getattr(recipe.teacher, "dtype", "auto"))))
    writing = max((_writing_bytes(source, student, load, numbers) for source in written_by_student(recipe.source)), default=0)
    if isinstance(recipe.source, Prefetch):
        copied = numbers * student.parameters_total if numbers < 4 else 4 * moving
        return found | {"a pass": learning, "writing ahead": writing + recipe.source.ahead * copied, "program": load.base_bytes}
    found["a pass" if learning >= writing else "writing"] = max(learning, writing)
    return found | {"program": load.base_bytes}


def learner_bytes(model: Anatomy, student: Student) -> dict[str, int]:
    """Masters, gradients and moments, in float32 but for moments in 8 bits; adapters come on top of what they are put on."""
    moving = moving_parameters(model, student)
    weights = frozen_bytes(model, student.quantization, 4) + (4 * moving if student.lora else 0)
    return {"student": weights, "gradients": 4 * moving, "moments": (2 if student.optimizer.eight_bit else 8) * moving}


def _learning_bytes(recipe: Recipe, student: Anatomy, load: Load, numbers: int) -> int:
    tokens = max(recipe.tokens_per_pass, load.longest_tokens)
    one_layer = _layer_bytes(student, numbers)
    kept = 4 * student.width if recipe.student.gradient_checkpointing else one_layer
    head = 0 if recipe.student.lora else 4 * student.head_rows * student.width
    return tokens * (student.layers * kept + one_layer) + head + load.chunk_bytes


def _inside_bytes(recipe: Recipe, student: Anatomy, teacher: Anatomy, load: Load, numbers: tuple[int, int]) -> int:
    """What comparing layers adds to a pass; `numbers`: bytes of the student's and of the teacher's.

    States, for each of T tokens: those of each of the student's layers D b and of the teacher's D' b', and of each pair 4 D' for their difference;
    where widths differ, each pair's projection with its gradient and moments 16 D D' besides. Attention: the teacher's queries and keys of
    each layer and the gradient of the student's (which stand among its activations themselves), and of `ROWS` rows at once six float32
    copies over H heads and K keys. Found with 9 heads, T = 2048, 512 keys: that, and up to 30 MB a layer of holes in the heap.
    """
    tokens, total, copies = max(recipe.tokens_per_pass, load.longest_tokens), 0, 0
    for term in (each for each in recipe.objective.feature_terms if isinstance(each, LayerTerm)):
        mapped = pairs(term.map, student.layers, teacher.layers)
        theirs = len(set(mapped.values()))
        if isinstance(term, HiddenStates):
            total += tokens * (len(mapped) * (student.width * numbers[0] + 4 * teacher.width) + theirs * teacher.width * numbers[1])
            total += len(mapped) * 16 * student.width * teacher.width * (student.width != teacher.width)
        else:
            total += tokens * (len(mapped) * student.queries_keys * numbers[0] + theirs * teacher.queries_keys * numbers[1])
            copies = 6 * 4 * ROWS * max(student.heads, teacher.heads) * (load.longest_tokens or tokens)
    return total + copies


def _writing_bytes(source: OnPolicy, student: Anatomy, load: Load, numbers: int) -> int:
    rows = min(AT_ONCE, source.sequences * source.group)
    prompt = min(source.max_prompt, load.prompt_tokens)
    remembered = (prompt + source.sampling.max_tokens) * student.layers * student.keys_values * numbers
    return rows * (2 * remembered + prompt * _layer_bytes(student, numbers) + 16 * student.head_rows)


def _layer_bytes(student: Anatomy, numbers: int) -> int:
    """Activations of a token in one layer; norms and the residual stream stay in float32."""
    return 24 * student.width + numbers * (10 * student.width + 4 * student.feed_forward)


def written_by_student(source: Source) -> list[OnPolicy]:
    """The sources below one in which the student writes."""
    inner = [value for value in vars(source).values() if isinstance(value, Source)]
    return [source] if isinstance(source, OnPolicy) else [found for each in inner for found in written_by_student(each)]


def frozen_bytes(model: Anatomy, quantization: str | None, width: int, offload: str | None = None) -> int:
    """Weights as they are held: 4 bits cost 0.53 bytes each with their scales; embeddings and norms stay whole. offload: one layer at a time."""
    packed, held = {"4bit": 0.53, "8bit": 1.01}.get(quantization or "", width), resident(model.shapes) if offload else model.shapes
    return int(sum(prod(shape) * (packed if is_linear(name, shape) else width) for name, shape in held.items()))


def is_linear(name: str, shape: Iterable[int]) -> bool:
    """Whether a weight is that of a linear layer within the blocks."""
    return len(list(shape)) == 2 and not any(word in name for word in EMBEDDINGS)


def moving_parameters(model: Anatomy, student: Student) -> int:
    """Weights that a step changes: all, or those of adapters: rank x (inputs + outputs) of each layer they are put on."""
    if student.lora is None:
        return model.parameters_total
    wanted = student.lora.targets
    chosen = [shape for name, shape in model.shapes.items() if is_linear(name, shape) and (wanted == "all-linear" or name.split(".")[-2] in wanted)]
    return sum(student.lora.rank * sum(shape) for shape in chosen)


def disk_bytes(recipe: Recipe, student: Anatomy) -> dict[str, int]:
    """What a run folder holds at its fullest: checkpoints of masters and moments, one of them being written, and the student."""
    moving = moving_parameters(student, recipe.student)
    one = (4 + (2 if recipe.student.optimizer.eight_bit else 8)) * moving
    saves = 1 + (recipe.steps - 1) // recipe.save_every if recipe.save_every else 1
    held = min(recipe.keep_last + 1, saves) + (recipe.keep == "best")
    exported = 4 * (moving if recipe.student.quantization else student.parameters_total)
    return {f"{held} checkpoints": held * one, "student": exported}


# What is here


def widths(torch: bool) -> Callable[[Precision], int]:
    """How many bytes a number of a precision has on this machine; without torch, "auto" counts as float32."""

    def width(precision: Precision) -> int:
        from limbeck import machine

        return machine.precision(precision).itemsize if torch else 2 if precision == "bfloat16" else 4

    return width


def memory_here_bytes(torch: bool) -> int:
    """Memory of the GPU where there is one and torch may be asked, else of the machine or the container that we are in."""
    if torch:
        from limbeck.lazy import torch as library

        if library.cuda.is_available():
            return int(library.cuda.mem_get_info()[1])
    import psutil

    limit = Path("/sys/fs/cgroup/memory.max")
    given = limit.read_text().strip() if limit.is_file() else "max"
    return min(int(psutil.virtual_memory().total), int(given) if given.isdecimal() else 2**63)


def short(count: float) -> str:
    """A number of parameters as people say it: 135M, 1.7B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.2g}{unit}" if count < 9.95 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


FAR, TOO_FAR = 20, 50
"""How many times larger a teacher may be before it is worth a note, and before a stage between them is advised."""


def size_gap(student: Anatomy, teacher: Anatomy) -> tuple[str, bool]:
    """How much larger the teacher is, in words, and whether that is worth a note."""
    small, large = student.parameters_total, teacher.parameters_total
    times = large / small
    if times > TOO_FAR:
        between = short((small * large) ** 0.5)
        return f"{short(small)} cannot absorb {short(large)} in one step: stage it through an assistant of about {between}", True
    if times > FAR:
        return f"{short(small)} has little room for {short(large)}, {times:.0f} times its size", True
    return f"the teacher is {times:.2g} times the student", False
