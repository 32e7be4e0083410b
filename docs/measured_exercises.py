"""The tables of the page on the exercises, from what was measured: what a comparison shows is said by its interval, and by nothing else."""

from typing import Any

from measured import results, table

NAMES = {
    "1": {"scratch": "text, from nothing", "scratch-twice": "the same, twice as long", "distilled": "strong teacher, from nothing",
          "code": "source code alone", "fine-tuned": "code, then text: fine-tuned", "code-distilled": "code, then strong teacher"},
    "2": {"code": "source code alone", "human": "text of people", "synthetic": "text of the teacher", "half": "half of each",
          "both": "all of both"},
    "3": {},
    "4": {"generation-0": "generation 0", "generation-1": "generation 1", "generation-2": "generation 2", "generation-3": "generation 3",
          "again": "text, another order", "twice": "text, twice as long"},
    "5": {"text": "text", "text-twice": "text, twice as long", "one-step": "strong teacher, one step",
          "one-step-twice": "strong teacher, one step, twice as long", "assistant": "(the assistant itself)", "by-assistant": "by the assistant"},
}  # fmt: skip
"""What the stages of an exercise are called on the page."""


def cast() -> str:
    """The teachers, and how sure they are of which text."""
    found = results("exercises")
    rows = [
        [role, f"{each['parameters']:,}", str(each["steps"]), f"{each['windows']:,}",
         *(f"{each[part][name]:.{digits}f}" for part in ("learning", "test") for name, digits in (("perplexity", 1), ("entropy_nats", 2)))]
        for role, each in found["cast"].items()
    ]  # fmt: skip
    columns = ["teacher", "parameters", "steps", "windows it learnt from", "perplexity on text to learn from", "its entropy there, nats",
               "perplexity on the test", "its entropy there, nats"]  # fmt: skip
    return f"{table(columns, rows)}\n\n{_settings(found)}"


def _settings(found: Any) -> str:
    told, machine = found["settings"], found["machine"]
    sizes = ", ".join(f"{name} {told[key]['layers']} x {told[key]['width']}" for name, key in (("student", "own"), ("tiny", "tiny")))
    return (
        f"Layers x width: {sizes}. {told['steps']} steps of {told['sequences']} windows of 128 tokens, learning rate {told['learning_rate']:g}; "
        f"windows to learn from: {told['windows']['learning']:,}, of the test: {told['windows']['test']:,}. "
        f"Teachers are described on {told['described_on']} windows of each. "
        f"Machine: {machine['system']}, {machine['threads']} thread, torch {machine['torch']}; the library of Python {told['python']}."
    )


def exercise(number: str) -> str:
    """The students of an exercise, and what comparing them shows."""
    found = results("exercises")["exercises"][number]
    names = NAMES[number]
    rows = [[names.get(name, name.replace("-", ", temperature ")), str(each["seeds"]), _value(each["perplexity"], 1),
             _value(each["bits_per_byte"], 3)] for name, each in found["summary"].items()]  # fmt: skip
    pairs = [
        [*(names.get(each[who], each[who].replace("-", " at ")) for who in ("of", "less")), _value(each, 2, "+"),
         _value(each["bits_per_byte"], 3, "+"), _shown(each["bits_per_byte"])] for each in found["differences"]
    ]  # fmt: skip
    columns = ["this", "less this", "perplexity", "bits a byte", "the first is"]
    students = table(["student", "seeds", "perplexity on the test", "bits a byte"], rows)
    return f"{students}\n\n{table(columns, pairs)}"


def temperature() -> str:
    """The same for temperatures, and where the least perplexity stands for either teacher."""
    means = results("exercises")["exercises"]["3"]["summary"]
    least = {role: min((name for name in means if name.startswith(role)), key=lambda name: means[name]["perplexity"]["mean"]) for role in
             ("confident", "uncertain")}  # fmt: skip
    said = "; ".join(f"by the {role} teacher at {name.rpartition('-')[2]}" for role, name in least.items())
    return f"{exercise('3')}\n\nThe least mean perplexity: {said}."


def _shown(each: dict[str, Any]) -> str:
    """What an interval shows."""
    if not each["interval"]:
        return "not known: one seed"
    low, high = each["interval"]
    return "better" if high < 0 else "worse" if low > 0 else "not shown to differ"


def _value(each: dict[str, Any], digits: int, sign: str = "") -> str:
    interval = f" ({each['interval'][0]:{sign}.{digits}f} to {each['interval'][1]:{sign}.{digits}f})" if each["interval"] else ""
    return f"{each['mean']:{sign}.{digits}f}{interval}"


TABLES = {"exercises_cast": cast, "exercise_1": lambda: exercise("1"), "exercise_2": lambda: exercise("2"), "exercise_3": temperature,
          "exercise_4": lambda: exercise("4"), "exercise_5": lambda: exercise("5")}  # fmt: skip
