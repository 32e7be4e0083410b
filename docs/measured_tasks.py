"""The tables of what transferred: tasks, and how long it takes, from what the benchmarks found."""

from typing import Any

from measured import results, table


def tasks() -> str:
    """Figures of teacher and student, and the student's less the teacher's."""
    rows = list[list[str]]()
    for name, task in results("tasks")["tasks"].items():
        apart = next(each["figures"] for each in task["differences"] if (each["of"], each["less"]) == ("student", "teacher"))
        for figure, by in _by_figure(task["figures"]).items():
            cells = [_cell(by.get(who)) for who in ("teacher", "student")]
            rows.append([f"{name}: {task['shape']}, {task['prompts']} prompts", f"`{figure}`", *cells, _cell(apart.get(figure))])
    return table(["task", "figure", "teacher", "student", "student less teacher"], rows)


def transfer_time() -> str:
    """Seconds of a whole evaluation, and of one that was killed."""
    found = results("transfer_time")
    again = found["killed_and_again_seconds"]
    kills = "once" if len(again) == 2 else f"{len(again) - 1} times"
    rows = [["whole", f"{found['whole_seconds']:.0f}"], [f"killed {kills}, and begun again", " + ".join(f"{each:.0f}" for each in again)],
            ["the same figures", "yes" if found["same_figures"] else "no"]]  # fmt: skip
    return table(["an evaluation", "seconds"], rows)


def _by_figure(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(name for each in figures.values() for name in each)
    return {name: {who: each[name] for who, each in figures.items() if name in each} for name in names}


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{figure.get('value', figure.get('error')):.2f} ({low:.2f} to {high:.2f})"
