"""The tables of the page on clusters, from what the benchmarks found."""

from measured import results, table


def ray_scaling() -> str:
    """Throughput by workers."""
    found = results("ray_scaling")
    rows = [
        [str(row["workers"]), *(cell for name in ("steady", "whole") for cell in (f"{row[name]:.1f}", f"{row[f'{name}_efficiency']:.0%}"))]
        for row in found["rows"]
    ]
    rounds = len(found["rows"][0]["rounds"])
    return f"{table(['workers', 'steady, answers a second', 'efficiency', 'whole, answers a second', 'efficiency'], rows)}\n\nRounds: {rounds}."


def ray_kills() -> str:
    """What was killed, and what was left."""
    found, groups = results("ray_kills"), dict[tuple[str, str], list[dict[str, object]]]()
    for each in found["kills"]:
        groups.setdefault((each["job"], each["killed"]), []).append(each)
    rows = [
        [job, killed, str(len(some)), f"{sum(bool(each['same_rows']) for each in some)} of {len(some)}",
         ", ".join(str(each["asked_again"]) for each in some) if job == "write" else "",
         str(some[0]["may_be_asked_again"]) if job == "write" else "",
         ", ".join(str(each["doubled"]) for each in some) if job == "cache" else "0" if job == "write" else ""]
        for (job, killed), some in groups.items()
    ]  # fmt: skip
    return table(["job", "killed", "times", "the same rows", "asked again", "at most", "rows twice"], rows)


TABLES = {"ray_scaling": ray_scaling, "ray_kills": ray_kills}
