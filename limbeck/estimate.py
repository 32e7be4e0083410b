"""What a run with given models will take of memory and disk, and what is here: no weights are read, and no torch is needed."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from limbeck.anatomy import Anatomy, is_linear, short
from limbeck.features import HiddenStates, LayerTerm, pairs
from limbeck.insides import ROWS
from limbeck.machine import Precision
from limbeck.offload import resident
from limbeck.prefetch import Prefetch
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Source
from limbeck.student import Student


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
