"""The table of the page on condensed data, from what the benchmark found."""

from typing import Any

from measured import results, table


def digits_condense() -> str:
    """Accuracies of fresh networks, by what they learnt from."""
    found = results("digits_condense")
    rows = [
        [name, str(means["seeds"]), _percent(means["accuracy"]), _points(found["above_random"].get(name)), _percent(means["mlp_accuracy"]),
         f"{sum(each['seconds'] for each in found['arms'][name].values()) / means['seeds']:.0f}"]
        for name, means in found["means"].items()
    ]  # fmt: skip
    columns = ["learnt from", "seeds", "accuracy of a fresh ConvNet, %", "above random, points", "of an MLP, %", "processor seconds to make"]
    how = (
        f"On {found['tested']} pictures that nothing was chosen by; means over seeds of {found['fresh_networks']} fresh networks each, with 95 % t "
        f"intervals, differences seed by seed. One thread; experts, trained once for all seeds, are not counted. torch {found['machine']['torch']}."
    )
    return f"{table(columns, rows)}\n\n{how}"


def _percent(each: dict[str, Any]) -> str:
    low, high = each["interval"]
    return f"{100 * each['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _points(each: dict[str, Any] | None) -> str:
    if each is None:
        return ""
    low, high = each["interval"]
    return f"{100 * each['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
