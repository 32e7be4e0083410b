"""The tables on which layers stay, and in which order rows come, from what the benchmarks found."""

from typing import Any

from measured import results, table
from measured_arithmetic import _percent, _points


def depths() -> str:
    """Students by influence and by even distances, as cut and taught."""
    found = results("depths")
    cut = [
        [depth, *(_nats(each["as_cut"][way]) for way in WAYS), _lower(each["influence_lower_by"]["as_cut"]["kl_nats"]),
         *(_perplexity(each["as_cut"][way]) for way in WAYS), _lower(each["influence_lower_by"]["as_cut"]["ce_nats"])]
        for depth, each in found["depths"].items()
    ]  # fmt: skip
    taught = [
        [depth, *(_nats(each["taught"][way]) for way in WAYS), _lower(each["influence_lower_by"]["taught"]["kl_nats"]),
         *(_perplexity(each["taught"][way]) for way in WAYS), _lower(each["influence_lower_by"]["taught"]["ce_nats"])]
        for depth, each in found["depths"].items() if "taught" in each
    ]  # fmt: skip
    columns = ["KL by influence, nats a token", "even", "lower by", "perplexity by influence", "even", "lower by, nats a token"]
    asked = found["settings"]
    how = (
        f"Taught for {asked['steps']} steps of {asked['sequences']} answers, learning rate {asked['learning_rate']:g}, "
        f"seeds {_listed(asked['seeds'])}. "
        f"{asked['held_out_sequences']} held-out answers, {asked['held_out_tokens']:,} tokens. Machine: {found['machine']['system']}, "
        f"{found['machine']['threads']} thread, torch {found['machine']['torch']}."
    )
    stay = [[depth, *(_listed(each["kept"][way]) for way in WAYS)] for depth, each in found["depths"].items()]
    tables = [table(["layers, as cut", *columns], cut), table(["layers, taught", *columns], taught), table(["layers", "by influence", "even"], stay)]
    return "\n\n".join([*tables, how])


WAYS = ("influence", "even")


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _nats(each: dict[str, Any]) -> str:
    low, high = each["interval"]
    return f"{each['kl_nats']:.3f} ({low:.3f} to {high:.3f})"


def _perplexity(each: dict[str, Any]) -> str:
    value = each["perplexity"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _lower(each: dict[str, Any]) -> str:
    low, high = each["interval"]
    return f"{each['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def curricula() -> str:
    """Rewards and accuracies by the order of the rows, and by size."""
    found = results("arith_curriculum")
    means, above, sizes = found["summary"], found["above_shuffled"], found["settings"]["sizes"]
    whole = [
        [arm, str(each["seeds"]), f"{each['steps']['mean']:.0f}", f"{each['tokens at the end']['mean'] / 1000:.0f}",
         *(_percent(each[f"{figure} at {when}"]) for when in WHEN for figure in ("reward", "accuracy")),
         *(_points(above.get(arm, {}).get(f"{figure} at the end")) for figure in ("reward", "accuracy"))]
        for arm, each in means.items()
    ]  # fmt: skip
    columns = ["rows", "seeds", "steps", "thousand tokens", *(f"{what} at {when}" for when in WHEN for what in ("reward, %,", "greedy, %,")),
               "reward above shuffled, points", "greedy above shuffled, points"]  # fmt: skip
    by_size = [[arm, *(_percent(each[f"reward of {size} at the end"]) for size in sizes)] for arm, each in means.items()]
    return f"{table(columns, whole)}\n\n{table(['reward at the end, %', *(f'{size} digits' for size in sizes)], by_size)}"


WHEN = ("the middle", "the end")


def curricula_tried() -> str:
    """Settings on development problems."""
    tried = results("arith_curriculum_grid")["reward"]
    rows = [[*([*arm.split(": "), "", ""][:4]), *(f"{100 * value:.1f}" for value in values)] for arm, values in tried.items()]
    return table(["rows", "learning rate", "pace", "start", *(f"reward at {when}, %" for when in WHEN)], rows)


TABLES = {"depths": depths, "arith_curriculum": curricula, "arith_curriculum_tried": curricula_tried}
