"""The tables of what writes in the student's place, from what the benchmark found."""

from measured import results, table

MISMATCH, EXCESS = "writer/mismatch_nats", "writer/excess_nats"
FAULTS = {"stale weights": "the reload, at every step", "stale prefix cache": "the reset of the prefix cache, at every step"}


def vllm_writer() -> str:
    """What vLLM says of its text beside the student as it is and as it was, and what was planted."""
    found = results("vllm_writer")
    rows = found["agreement"]
    shown = [["as they are", rows, "now"], ["as they were a step before", rows[1:], "a step before"]]
    cells = [
        [name, str(len(each)), *(f"{least:.3f} to {most:.3f}" for least, most in (_range(each, which, key) for key in ("mean", "signed")))]
        for name, each, which in shown
    ]
    text = table(["the student's weights", "draws", "`writer/mismatch_nats`", "`writer/excess_nats`"], cells)
    left_out = [[what, _caught(found["planted"][fault]["caught_after_steps"])] for fault, what in FAULTS.items()]
    moved = found["remembered"]
    names = [name for name in moved if name != "moved_by"]
    seen = [[name, f"{moved[name][MISMATCH]:.3f}", f"{moved[name][EXCESS]:+.3f}", "yes" if moved[name]["stops"] else "no"] for name in names]
    size = (
        f"{found['layers']} layers of SmolLM2-135M-Instruct, bfloat16, {found['sequences']} sequences of at most {found['max_tokens']} tokens a step"
    )
    about = f"{size}, learning rate {found['learning_rate']:g}. {found['server']}."
    whole = f"The whole model in float32, whose prompts the server remembers, all weights moved by {100 * moved['moved_by']:.0f} % of their spread:"
    remembered = table(["its weights", f"`{MISMATCH}`", f"`{EXCESS}`", "the run stops"], seen)
    return "\n\n".join([text, table(["left out", "the run stops"], left_out), about, whole, remembered])


def vllm_speed() -> str:
    """Tokens a second of vLLM and of the student itself, and where the time goes."""
    found = results("vllm_writer")
    speed, where = found["speed"], found["machine"]
    writers = list(next(iter(speed["batches"].values()))["tokens_per_second"])
    rows, spent = list[list[str]](), list[list[str]]()
    for name, each in speed["batches"].items():
        rate, reading, whole = each["tokens_per_second"], each["seconds_reading"], each["seconds"]
        times = [f"{rate['vLLM']['median'] / rate[who]['median']:.1f}" for who in writers[1:]]
        rows.append([name, *(_rate(rate[who]) for who in writers), f"{each['with_hand_over']:.0f}", " / ".join(times)])
        spent.append([name, *(f"{reading[who]['median']:.2f} of {whole[who]['median']:.2f}" for who in writers)])
    hand, load = speed["hand_over_seconds"], f"{speed['load'][0]:g} at the beginning and {speed['load_after'][0]:g} at the end"
    about = (
        f"Medians of {speed['rounds']} rounds, the least and the most beside them. Handing over the weights takes {hand['median']:.2f} s "
        f"({hand['min']:.2f} to {hand['max']:.2f}). {where['cpus']} processors, load {load}; vLLM computes on one of them and keeps the other for "
        "its calls."
    )
    own = [f"`Student.write` {who.removeprefix('here ')}" for who in writers[1:]]
    first = table(["prompts", "vLLM, tokens/s", *own, "vLLM with the hand-over", "vLLM times as fast as each"], rows)
    return "\n\n".join([first, table(["prompts", "vLLM, seconds of reading the prompts", *own], spent), about])


def _rate(found: dict[str, float]) -> str:
    return f"{found['median']:.0f} ({found['min']:.0f} to {found['max']:.0f})"


def _range(rows: list[dict], which: str, key: str) -> tuple[float, float]:
    values = [row[which][key] for row in rows]
    return min(values), max(values)


def _caught(steps: int | None) -> str:
    return "not within 6 steps" if steps is None else f"after {steps} {'step' if steps == 1 else 'steps'}"
