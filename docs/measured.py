"""The tables of the page on speed, from what the benchmarks found."""

import json
from pathlib import Path
from typing import Any

from limbeck.planning.others import beside

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *escaped])


def results(name: str) -> Any:
    """What a benchmark found."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def loss_head() -> str:
    """Times and memory of the loss head."""
    found = results("loss_head")
    rows = [
        [what, term, who, f"{each['median']:.2f}", f"{each['times_the_products']:.2f}"]
        for what, by in found["seconds"].items()
        for term, values in by.items()
        for who, each in values.items()
    ]
    times = table(["arithmetic", "term", "who", "seconds", "times its products"], rows)
    mib = [[what, *map(str, by.values())] for what, by in found["MiB_above_the_gradients"].items()]
    return f"{times}\n\n{table(['memory above the two gradients, MiB', 'ReverseKL', 'JSD(0.5)'], mib)}\n\n{_machine(found)}"


def steps() -> str:
    """Times of whole steps."""
    found = results("steps")
    whole = [
        [kind, who, f"{each['median']:.2f}", f"{by['times_limbeck'][who]:.2f}"]
        for kind, by in found["on_policy"].items()
        for who, each in by["seconds"].items()
    ]
    stages = [[kind, name, f"{s['median']:.2f}", f"{s['floor']:.2f}"] for kind, by in found["on_policy"].items() for name, s in by["stages"].items()]
    plain = [
        [kind, who, f"{each['median']:.0f}", str(by["MiB_of_a_step"][who])]
        for kind, by in found["supervised"].items()
        for who, each in by["tokens_per_second"].items()
    ]
    tables = [
        table(["on-policy, arithmetic", "who", "seconds a step", "times Limbeck's"], whole),
        table(["Limbeck's stages", "stage", "seconds", "floor"], [row for row in stages if row[1] != "all"]),
        table(["supervised, arithmetic", "who", "tokens a second", "memory of a step, MiB"], plain),
    ]
    return "\n\n".join([*tables, _machine(found)])


def export_gguf() -> str:
    """What rounding for llama.cpp costs."""
    found = results("export_gguf")

    def nats(told: dict[str, Any]) -> str:
        low, high = told["interval"]
        return f"{told['kl_nats']:.4f} ({low:.4f} to {high:.4f})" if high >= 1e-4 else "under 0.0001"

    rows = [
        [f"`{kind}`", f"{each['MB']:.0f}", f"{each['bits_a_weight']:.1f}", nats(each["transformers"]), nats(each["llama.cpp"]),
         f"{100 * each['same_likeliest']:.1f} %"]
        for kind, each in found["kinds"].items()
    ]  # fmt: skip
    columns = ["", "MB", "bits a weight", "KL in transformers (nats)", "KL in llama.cpp (nats)", "same likeliest token there"]
    machine = found["machine"]
    return (f"{table(columns, rows)}\n\n{found['texts']} answers of its own, {found['tokens']:,} tokens; 95 % intervals by bootstrap over answers. "
            f"transformers {machine['transformers']}, llama-cpp-python {machine['llama-cpp-python']}.")  # fmt: skip


def start() -> str:
    """Seconds until the command line answers."""
    found = results("start")
    return table(["process", "seconds"], [[f"`{what}`", f"{each['median']:.2f}"] for what, each in found["seconds"].items()])


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"Machine: {machine['system']}, {machine['threads']} threads ({', '.join(machine['instructions'])}), torch {machine['torch']}."


def cache_bytes() -> str:
    """Bytes of what can be kept, and how fast it is read."""
    found = results("cache_bytes")
    rows = [[what, *_bytes_row(each)] for what, each in found["found"].items()]
    columns = ["text, kept", "unique", "bytes a token", "an entry", "everything, by the code length", "foretold bytes", "tokens/s read"]
    return f"{table(columns, rows)}\n\n{_machine(found)}"


def _bytes_row(each: dict[str, Any]) -> list[str]:
    foretold = f"{100 * each['foretold']['bytes']['error']:+.1f} %" if "foretold" in each else ""
    read = each["tokens_per_second"]["passes of 2,048"]["from memory"]
    entry, code = each.get("bytes_an_entry"), each.get("all_over_code")
    unique = f"{each['unique']:.1f}" if "unique" in each else ""
    return [unique, f"{each['bytes_a_token']:.1f}", f"{entry:.2f}" if entry else "", f"{code:.2f}" if code else "", foretold, f"{read:,.0f}"]


def cache_steps() -> str:
    """Steps from a cache beside fine-tuning."""
    found = results("cache_steps")
    steps = [
        [dtype, what, f"{each['seconds']['median']:.2f}", f"{each['times_cross_entropy']['median']:.2f}", *_reading(each)]
        for dtype, by in found["steps"].items()
        for what, each in by.items()
    ]
    heads = [
        [dtype, what, f"{each['median']:.3f}", f"{each['times_cross_entropy']:.2f}"]
        for dtype, by in found["loss_head"].items()
        for what, each in by.items()
    ]
    whole = table(["step, arithmetic", "learns from", "seconds", "times cross-entropy", "reading, first time", "again"], steps)
    return f"{whole}\n\n{table(['loss head, arithmetic', 'learns from', 'seconds', 'times cross-entropy'], heads)}\n\n{_machine(found)}"


def _reading(each: dict[str, Any]) -> list[str]:
    shares = each.get("reading")
    return [f"{shares[f'{when}_percent_of_a_step']:.2f} %" for when in ("cold", "warm")] if shares else ["", ""]


def cache_gradient() -> str:
    """Gradients from what is kept beside those from everything."""
    found = results("cache_gradient")
    rows = [
        [name, *(cell for student in found["students"].values() for cell in _gradient(student["targets"][name]))]
        for name in next(iter(found["students"].values()))["targets"]
    ]
    columns = ["kept", *(f"{what}, {student}" for student in found["students"] for what in ("angle", "norm ratio"))]
    return f"{table(columns, rows)}\n\nOver {found['completion_tokens']:,} completion tokens. {_machine(found)}"


def _gradient(each: dict[str, Any]) -> list[str]:
    middle = [each[name]["median"] if isinstance(each[name], dict) else each[name] for name in ("angle", "norm_ratio")]
    return [f"{middle[0]:.1f}°", f"{middle[1]:.3f}"]


def plan() -> str:
    """What plans foretold beside what runs took."""
    found = results("plan")
    rows = [
        [
            f"`{name}`",
            f"{each['foretold']['seconds']:.3g}",
            f"{each['compared_seconds']:.3g} ({each['took']['least']:.3g} to {each['took']['most']:.3g})",
            f"{100 * each['time_error']:+.0f} %",
            f"{each['foretold']['memory_bytes'] / 1e9:.2f}",
            f"{each['took']['memory_bytes'] / 1e9:.2f}",
            f"{100 * each['memory_error']:+.0f} %",
        ]
        for name, each in found["found"].items()
    ]
    columns = ["recipe", "a step foretold, s", "taken (least to most)", "error", "memory foretold, GB", "taken", "error"]
    said = f"Time is within {100 * found['band']:.0f} % in {found['time_within']} of {found['recipes']} recipes, memory in {found['memory_within']}."
    return f"{table(columns, rows)}\n\n{said} {_machine(found)}"


def published() -> str:
    """Runs that others published, foretold."""
    rows = [
        [
            each.name,
            each.source,
            f"{each.published:,.0f}",
            f"{each.foretold:,.0f} ({each.least:,.0f} to {each.most:,.0f})",
            f"{100 * each.error:+.0f} %",
        ]
        for each in beside()
    ]
    columns = ["run", "source", "tokens a second and GPU", "foretold (all layers' activations made again, to none)", "error"]
    return (
        f"{table(columns, rows)}\n\nBoth made about half of their operations again, and ran with less power and slower memory than the card's peaks."
    )


def guidance() -> str:
    """Students of a guided teacher beside that teacher without guidance."""
    found = results("guidance")
    rows = [
        [f"{what}, scale {by['scale']:g}", name.removeprefix("seed "), *(_with_interval(each) for each in found_of.values()), str(by["steps"])]
        for what, by in found.items()
        if isinstance(by, dict) and "scale" in by
        for name, found_of in by.items()
        if isinstance(found_of, dict)
    ]
    columns = ["model", "seed", "KL(guided, unguided teacher), nats", "KL(guided, student in one pass), nats", "nearer by, nats", "steps"]
    how = "Held-out text of SmolLM2's own, or of the toys' data; 95 % intervals by bootstrap over sequences, of the difference paired."
    return f"{table(columns, rows)}\n\n{how} {_machine(found)}"


def _with_interval(each: dict[str, Any]) -> str:
    low, high = each["kl_nats_interval"]
    return f"{each['kl_nats']:.4f} ({low:.4f} to {high:.4f})"


def cache_students() -> str:
    """Students of what was kept, beside the full teacher's."""
    found = results("cache_students")
    rows = [
        [
            name,
            str(each["seeds"]),
            f"{each['kl_nats']:.3f}",
            ", ".join(f"{ratio:.3f}" for ratio in each["kl_times_full"]),
            f"{each['ece_percent']:.1f} ({each['ece_percent_if_calibrated']:.1f})",
            f"{each['ece_percent_against_teacher']:.1f}",
            f"{100 * each['surer_than_teacher']:+.1f}",
        ]
        for name, each in found["summary"].items()
    ]
    columns = ["learnt from", "seeds", "held-out KL, nats", "times the full teacher's, by seed", "ECE, % (if calibrated)",
               "ECE against the teacher, %",                "surer than the teacher, points"]  # fmt: skip
    return table(columns, rows)


def writing() -> str:
    """Local writing beside transformers'."""
    found = results("writing")
    dtypes = [each for each in ("bfloat16", "float32") if each in found]
    rows = [
        [
            dtype,
            LOADS[load],
            who,
            f"{rate['median']:.0f}",
            f"{times['median']:.2f} ({times['min']:.2f} to {times['max']:.2f})" if who == "ours" else "",
        ]
        for dtype in dtypes
        for load in LOADS
        if load in found[dtype]
        for times in [found[dtype][load]["times"]]
        for who, rate in found[dtype][load]["tokens_per_second"].items()
    ]
    shared = [[dtype, what, f"{took['median']:.2f}"] for dtype in dtypes for what, took in found[dtype]["shared_prompts"]["seconds"].items()]
    limit = found["bfloat16"]["limit"]
    said = f"A step of 32 rows takes {1e3 * limit['step_seconds']:.0f} ms in bfloat16, of which the products with its weights alone take "
    tables = [
        table(["arithmetic", "load", "who", "tokens/s", "times the faster of theirs (rounds)"], rows),
        table(["arithmetic", "64 prompts of 200 tokens, one token each", "seconds"], shared),
        f"{said}{1e3 * limit['products_seconds']:.0f} ms ({100 * limit['share']:.0f} %).",
    ]
    return "\n\n".join([*tables, _machine(found)])


LOADS = {"equal": "equal lengths", "real": "real answers"}


def endpoint_agreement() -> str:
    """Scores and greedy text of a server beside those of the same model here."""
    found = results("endpoint_agreement")
    rows = [
        [dtype, f"{apart['mean']:.2g}", f"{apart['p99']:.2g}", f"{greedy['same']} of {greedy['answers']}", f"{greedy['widest_float32']:.2f}"]
        for dtype in ("bfloat16", "float32")
        for apart, greedy in [(found[dtype]["scores"]["tokens_apart"]["server and here"], found[dtype]["greedy"])]
    ]
    columns = ["arithmetic", "nats apart, mean", "99th percentile", "greedy answers the same", "where others part, at most apart in float32, nats"]
    return f"{table(columns, rows)}\n\n{found['server']}, {found['float32']['scores']['tokens']:,} tokens. {_machine(found)}"


def across_tokenizers() -> str:
    """A student with another tokenizer, taught by text."""
    found = results("across_tokenizers")
    before, own = found["seeds"][0]["before"], found["after"]
    shown = {"student before": before, "its tokens' frequencies alone": found["frequencies"],
             "student taught by text": {"bits_a_byte": own["mean"], "interval": own["interval_over_seeds"]}, "teacher": found["teacher"]}  # fmt: skip
    rows = [[name, f"{each['bits_a_byte']:.3f}", f"{each['interval'][0]:.3f} to {each['interval'][1]:.3f}"] for name, each in shown.items()]
    return table(["on the teacher's answers to other prompts", "bits a byte", "95 % interval"], rows)


def across_terms() -> str:
    """A student with another tokenizer, taught by text and by what its teacher says of it."""
    found = results("across_terms")
    rows = [
        [name, f"{each['bits_a_byte']:.3f}", "{:.3f} to {:.3f}".format(*each["interval_over_seeds"]),
         "{:.3f} to {:.3f}".format(*each["less_than_text"]) if each["less_than_text"] else ""]
        for name, each in found["objectives"].items()
    ]  # fmt: skip
    cut, asked = found["cut"], found["settings"]
    columns = ["learnt from", "bits a byte", "95 % interval over seeds", "less than text alone, 95 % interval"]
    return (
        f"{table(columns, rows)}\n\n{asked['steps']} steps of {asked['sequences']} answers. The held-out answers are {cut['tokens']:,} tokens of "
        f"the student's and {cut['teacher_tokens']:,} of the teacher's, {cut['spans']:,} spans; {100 * cut['share_in_pairs']:.0f} % of the "
        f"student's tokens are cut alike, and both have {cut['tokens_both_have']:,} tokens."
    )


def speculation() -> str:
    """Drafts: acceptance, what they gain by formula and by the clock, and the speed of one beside another's."""
    found = results("speculation")
    temperatures = {name.removeprefix("temperature "): each for name, each in found.items() if name.startswith("temperature ")}
    accepted = [[at, name, *(_between(each) for each in on.values())] for at, each in temperatures.items() for name, on in each["acceptance"].items()]
    gains = [
        [at, name, rows, f"{each['cost']:.2f}", f"{each['row_cost']:.2f}", gamma, f"{gain['foretold']:.2f}", f"{gain['measured']:.2f}",
         f"{100 * gain['share']:.0f}", f"{gain['tokens_a_round']:.2f} ({gain['foretold_tokens_a_round']:.2f})",
         f"{each['times_assisted']:.2f}" if each["times_assisted"] else ""]
        for at, there in temperatures.items() for name in ("supervised", "DistillSpec in turn") for rows, each in there[name].items()
        for gamma, gain in each["gains"].items()
    ]  # fmt: skip
    beside = [
        [at, rows, str(each["gamma"]), f"{each['times']:.2f} ({each['interval'][0]:.2f} to {each['interval'][1]:.2f})"]
        for at, there in temperatures.items() for rows, each in there["in supervised's speed"].items()
    ]  # fmt: skip
    columns = ["temperature", "draft", "batch", "c", "r", "proposed", "times as fast, foretold", "measured", "share, %",
               "tokens a round (foretold)", "times transformers' assisted"]  # fmt: skip
    same = [f"{rows}: {each['differ']} of {each['texts']} differ" for rows, each in found["greedy_float32"].items()]
    on = ["temperature", "draft", "acceptance on the target's text", "on the draft's", "on the target's, more than supervised"]
    paces = ["temperature", "batch", "proposed", "tokens a second of DistillSpec in turn, in supervised's"]
    tables = [table(on, accepted), table(columns, gains), table(paces, beside)]
    return "\n\n".join([*tables, f"Greedy text beside plain greedy text in float32: {'; '.join(same)}.", _machine(found)])


def _between(each: dict[str, Any]) -> str:
    return f"{each['mean']:.3f} ({each['interval'][0]:.3f} to {each['interval'][1]:.3f})"


def layers() -> str:
    """What comparing layers added to a forward KL."""
    found = results("layers")
    rows = [
        [each["objective"].replace("ForwardKL", "ForwardKL()", 1), f"{each['kl_nats']:.3f} ({each['interval'][0]:.3f} to {each['interval'][1]:.3f})",
         "" if name == "alone" else f"{each['lower_by']:+.3f} ({each['lower_by_interval'][0]:+.3f} to {each['lower_by_interval'][1]:+.3f})",
         f"{each['times_alone']:.2f}"]
        for name, each in found["arms"].items()
    ]  # fmt: skip
    asked = found["settings"]
    said = (f"Held-out KL before: {found['before_kl_nats']:.3f} nats a token, of {asked['held_out_tokens']:,} tokens. {asked['steps']} steps of "
            f"{asked['sequences']} answers, learning rate {asked['learning_rate']:g}, {len(asked['seeds'])} seeds. {_machine(found)}")  # fmt: skip
    tried = ", ".join(f"{name.removeprefix('ForwardKL + ')} {value:.3f}" for name, value in found["tried_on_kept_back"].items())
    columns = ["objective", "held-out KL, nats a token", "lower than alone by", "time of a pass, times alone"]
    apart = found["states_lower_than_both_by"]
    both = f"States alone are lower than both by {apart['mean']:.3f} ({apart['interval'][0]:+.3f} to {apart['interval'][1]:+.3f}), seed by seed."
    return f"{table(columns, rows)}\n\n{both} {said}\n\nTried with seed 0, on answers kept back: {tried}."


def interleaved_cost() -> str:
    """What SKD's text costs, as counted and by arithmetic; and its step by the clock."""
    found = results("interleaved_cost")
    counted = [
        [name, str(each["k"]), str(each["gamma"]), f"{each['acceptance']:.2f}", f"{each['tokens_a_round']:.2f} ({each['told_tokens_a_round']:.2f})",
         f"{each['steps']:.2f}", f"{each['times_ours']:.2f}", f"{each['without_last_rounds']['times_ours']:.2f}",
         f"{each['steps_times_bonus']:.2f}", f"{each['rows_times_bonus']:.2f}", f"{_flops_times_bonus(each, pair['parameters']):.2f}"]
        for name, pair in found["pairs"].items() for each in pair["costs"]
    ]  # fmt: skip
    passes = [[name, *(str(pair["passes"][what]) for what in ("steps", "wrote", "other", "self_test"))] for name, pair in found["pairs"].items()]
    clocked = [
        [name, str(pair["clock"]["k"]), kind, f"{by['tokens']['median']:.0f}",
         *(f"{by[part]['median']:.2f}" for part in ("write", "score", "learn", "all")), f"{pair['clock']['skd_times'][kind]['median']:.2f}"]
        for name, pair in found["pairs"].items() for kind, by in pair["clock"]["seconds"].items()
    ]  # fmt: skip
    columns = ["pair", "K", "g", "A", "tokens a round (told)", "steps, and rows, a token", "times ours", "without last rounds",
               "steps, times the other's", "rows, times the other's", "FLOPs, times the other's"]  # fmt: skip
    tables = [
        table(columns, counted),
        table(["pair", "steps of a run", "the teacher's passes that wrote", "others", "of the self-test before"], passes),
        table(["pair", "K", "step", "tokens", "write, s", "score, s", "learn, s", "all, s", "SKD's, times this"], clocked),
    ]
    return "\n\n".join([*tables, _machine(found)])


def _flops_times_bonus(each: dict[str, Any], parameters: dict[str, int]) -> float:
    """Of both models, beside the arithmetic with a bonus."""
    counted = each["steps"] * parameters["student"] + each["rows"] * parameters["teacher"]
    told = each["steps"] / each["steps_times_bonus"] * parameters["student"] + each["rows"] / each["rows_times_bonus"] * parameters["teacher"]
    return counted / told


def digits() -> str:
    """What teaching a small net of digits was worth."""
    found, of = results("digits"), results("digits")["settings"]

    def between(each: dict[str, Any], value: str, interval: str, sign: str = "") -> str:
        return f"{each[value]:{sign}.2f} ({each[interval][0]:{sign}.2f} to {each[interval][1]:{sign}.2f})" if value in each else ""

    plain = {name: each for name, each in found["arms"].items() if ":" not in name}
    rows = [[name, between(each, "mean", "interval"), between(each, "fewer_than_alone", "fewer_interval", "+")] for name, each in plain.items()]
    kinds = ["no 3s, alone", "no 3s, taught", "all digits, scores alone"]
    columns = ["right_of_left_out", "right_once_raised", "errors", "errors_once_raised"]
    never = [[kind, *(between(found["arms"][f"{kind}: {name}"], "mean", "interval") for name in columns)] for kind in kinds]
    rates = ", ".join(f"{rate:g} at T={t}" for t, rate in of["taught_rates"].items())
    said = (f"{of['learn']} images to learn from, {of['test']} to test on, {of['steps']} steps of {of['rows']} rows, {len(of['seeds'])} seeds. "
            f"Chosen on other {of['choose']}, with other seeds: learning rate {of['rate']['teacher']:g} of teachers, "
            f"{of['rate']['alone']:g} alone, {rates}; T={of['temperature']:g} for ensemble, generations and 3s.")  # fmt: skip
    tables = [table(["net", "test errors, per cent", "fewer than alone by"], rows),
              table(["learnt from", "3s told rightly, per cent", "once the logit of 3 is raised", "all errors", "then"], never)]  # fmt: skip
    return "\n\n".join([*tables, said, _machine(found)])
