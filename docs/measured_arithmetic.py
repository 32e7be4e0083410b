"""The tables of the page on arithmetic, from what its experiments found: means over seeds and their 95 % intervals."""

from typing import Any

from measured import results, table


def cast() -> str:
    """Who teaches and who learns."""
    found = {role: each for name in ("arith_best_of", "arith_interleaved", "arith_reward") for role, each in results(name)["cast"].items()}
    figures = [("accuracy", 100), ("pass@1", 100), ("pass@16", 100), ("false_positives", 100)]
    rows = [
        [role, f"{each['parameters']:,}", str(each["steps"]), *(f"{times * each[name]:.1f}" for name, times in figures), f"{each['distinct']:.2f}"]
        for role, each in found.items()
    ]
    columns = ["who", "parameters", "steps", "greedy, %", "reward, %", "pass@16, %", "right by a wrong step, %", "sound answers of 16"]
    return table(columns, rows)


def best_of() -> str:
    """Chosen text and its students."""
    found = results("arith_best_of")
    rows = [
        [
            arm,
            str(each["seeds"]),
            *(_percent(each[name]) for name in ("rows_right", "rows_sound")),
            f"{each['teacher_gflops']['mean']:.1f}",
            *(_percent(each[name]) for name in ("accuracy", "pass@1", "pass@16")),
            _points(found["gain_over_single_unverified"].get(arm)),
        ]
        for arm, each in found["summary"].items()
    ]
    columns = ["text", "seeds", "rows right, %", "rows sound, %", "GFLOPs of writing", "greedy, %", "reward, %", "pass@16, %",
               "greedy above unverified, points"]  # fmt: skip
    return table(columns, rows)


def compute_matched() -> str:
    """Text of either teacher for the same FLOPs, and its students."""
    found = results("arith_compute_matched")
    means, budgets = found["summary"], found["settings"]["budgets"]
    text = [
        [f"{teacher}, {budget}", f"{each['answers']['mean']:.0f}", f"{each['teacher_gflops']['mean']:.1f}", f"{each['rows']['mean']:.0f}",
         _percent(each["coverage"]), _value(each["diversity"]), _percent(each["rows_false_positives"])]
        for budget in budgets for teacher in ("strong", "weak") if (each := means.get(f"student from {teacher}, {budget}"))
    ]  # fmt: skip
    learnt = [
        [f"{who}, {budget}", str(means[weak]["seeds"]), *(_percent(means[arm]["accuracy"]) for arm in (strong, weak)),
         *(_points(found["weak_less_strong"][weak][figure]) for figure in ("accuracy", "pass@1", "pass@16"))]
        for who in found["settings"]["learning_rates"] for budget in budgets
        for weak, strong in [(f"{who} from weak, {budget}", f"{who} from strong, {budget}")] if weak in means and strong in means
    ]  # fmt: skip
    about = ["writer, budget", "answers a problem", "GFLOPs", "rows kept", "coverage, %", "different answers a problem", "right by a wrong step, %"]
    columns = ["learner, budget", "seeds", "greedy from strong, %", "from weak, %", "weak less strong: greedy, points", "reward", "pass@16"]
    return f"{table(about, text)}\n\n{table(columns, learnt)}"


def divergences() -> str:
    """The grid."""
    found = results("arith_divergences")
    rows = [
        [*arm.split(", "), str(each["seeds"]), *(_percent(each[name]) for name in ("pass@1", "pass@4", "pass@16", "accuracy")),
         _value(each["first_operand_nats"])]
        for arm, each in found["summary"].items()
    ]  # fmt: skip
    return table(["divergence", "text", "seeds", "reward, %", "pass@4, %", "pass@16, %", "greedy, %", "first operand, nats"], rows)


def orders() -> str:
    """Whether more of the student's own text is better."""
    pairs = results("arith_divergences")["orders"]
    return table(["reward of", "points"], [[what, _points(each)] for what, each in pairs.items()])


def prompts() -> str:
    """Online and offline, from few problems and many."""
    found = results("arith_prompts")
    means = found["summary"]
    rows = [
        [count, str(each["seeds"]), *(_percent(means[f"{way}, {count} problems"]["pass@1"]) for way in ("online", "offline")), _points(each),
         *(f"{_spent(found, f'{way}, {count} problems'):.0f}" for way in ("online", "offline"))]
        for count, each in found["online_less_offline"].items()
    ]  # fmt: skip
    return table(["problems", "seeds", "reward online, %", "offline, %", "online less offline, points", "GFLOPs online", "offline"], rows)


def _spent(found: Any, arm: str) -> float:
    curves = [each["curve"] for each in found["arms"][arm].values()]
    return sum(curve[-1]["gflops"] for curve in curves) / len(curves)


def reward() -> str:
    """FLOPs to a reward by either method."""
    found = results("arith_reward")
    rows = [
        [start, f"{100 * each['reward']:.0f} %", str(each["seeds"]), _costs(each["distillation_gflops"]), _costs(each["reinforcement_gflops"]),
         _times(each["times"]), _times(each["times_at_least"])]
        for start, several in found["to_equal_reward"].items() for each in several
    ]  # fmt: skip
    columns = ["start", "reward", "seeds", "GFLOPs of distillation, by seed", "of reinforcement", "times", "at least"]
    return table(columns, rows)


def grid() -> str:
    """What was tried for either method, on development problems."""
    found = results("arith_reward_grid")
    chosen = {f"{way['method']}, rate {way['rate']:g}, {way['problems']} x {way['group']}" for way in found["chosen"].values()}
    rows = [
        [*way.replace("rate ", "").split(", "), f"{curve[-1][0]:.0f}", f"{100 * curve[-1][1]:.1f}", "yes" if way in chosen else ""]
        for way, curve in found["gflops_and_reward"].items()
    ]
    return table(["method", "learning rate", "problems of a step x answers", "GFLOPs", "reward at the end, %", "chosen"], rows)


SHARES = ("a quarter", "half", "three quarters", "all")
"""Of a run's steps, at which rewards are looked at."""


def interleaved() -> str:
    """SKD, supervised and on-policy text, from each start."""
    found = results("arith_interleaved")
    rows = [
        [*arm.split(": "), str(each["seeds"]), *(_percent(each[name]) for name in (*_rewards(each), "pass@1", "sound", "accuracy", "acceptance"))]
        for arm, each in found["summary"].items()
    ]
    looks = [f"reward after {share}, %" for share in SHARES]
    return table(["start", "text", "seeds", *looks, "reward of more draws, %", "greedy and sound, %", "greedy, %", "accepted as a draft, %"], rows)


def interleaved_orders() -> str:
    """How far apart they are, seed by seed."""
    orders = {what: by for what, by in results("arith_interleaved")["orders"].items() if by["pass@1"]["seeds"]}
    rows = [[what, *(_points(by[name]) for name in (*_rewards(by), "pass@1", "acceptance"))] for what, by in orders.items()]
    return table(["points of", *(f"reward after {share}" for share in SHARES), "reward of more draws", "accepted as a draft"], rows)


def _rewards(each: dict[str, Any]) -> list[str]:
    """The looks at the reward after the first."""
    return [name for name in each if name.startswith("reward at ") and name != "reward at 0"]


def interleaved_tried() -> str:
    """What was tried, on development problems."""
    curves = results("arith_interleaved_grid")["step_and_reward"]
    rows = [
        [*arm.split(": "), ", ".join(f"{100 * reward:.1f}" for step, reward in curve if step % 50 == 0 or step == curve[-1][0])]
        for arm, curve in curves.items()
    ]
    return table(["begins", "text", "learning rate", "problems", "steps", "reward at every 50 steps and at the end, %"], rows)


def stages() -> str:
    """The students of both pipelines, and how far each is above the one it is measured against."""
    rows = list[list[str]]()
    for arm, each in results("arith_stages")["summary"].items():
        for name in dict.fromkeys(figure.partition(": ")[0] for figure in each if ": " in figure and " less " not in figure):
            above = [next((each[key] for key in each if key.startswith(f"{name} less ") and key.endswith(f": {figure}")), None)
                     for figure in ("pass@1", "accuracy")]  # fmt: skip
            figures = [_percent(each[f"{name}: {figure}"]) for figure in ("accuracy", "pass@1", "pass@16")]
            rows.append([arm, name, str(each["seeds"]), *figures, *map(_points, above)])
    return table(["pipeline", "student", "seeds", "greedy, %", "reward, %", "pass@16, %", "reward above, points", "greedy above, points"], rows)


def _costs(values: list[float | None]) -> str:
    return ", ".join("never" if each is None else f"{each:.0f}" if each >= 10 else f"{each:.1f}" for each in values)


def _times(each: dict[str, Any] | None) -> str:
    return "" if each is None else f"{each['mean']:.1f}" + (f" ({each['interval'][0]:.1f} to {each['interval'][1]:.1f})" if each["interval"] else "")


def _percent(each: dict[str, Any]) -> str:
    half = f" ± {100 * (each['interval'][1] - each['mean']):.1f}" if each["interval"] else ""
    return f"{100 * each['mean']:.1f}{half}"


def _value(each: dict[str, Any]) -> str:
    half = f" ± {each['interval'][1] - each['mean']:.2f}" if each["interval"] else ""
    return f"{each['mean']:.2f}{half}"


def _points(each: dict[str, Any] | None) -> str:
    if not each or each["mean"] is None:
        return ""
    half = f" ± {100 * (each['interval'][1] - each['mean']):.1f}" if each["interval"] else ""
    return f"{100 * each['mean']:+.1f}{half}"


TABLES = {"arith_cast": cast, "arith_best_of": best_of, "arith_compute_matched": compute_matched, "arith_divergences": divergences,
          "arith_orders": orders, "arith_prompts": prompts, "arith_reward": reward, "arith_grid": grid,
          "arith_interleaved": interleaved, "arith_interleaved_orders": interleaved_orders, "arith_interleaved_tried": interleaved_tried,
          "arith_stages": stages}  # fmt: skip
