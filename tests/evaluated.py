"""An evaluation.json with everything in it that one can hold, of numbers that are told apart, for pages that show it."""

import math
from typing import Any

WHO = ("teacher", "before", "after", "fine-tuned", "from scratch")
FAR = {"before": 0.8, "after": 0.3, "fine-tuned": 0.6, "from scratch": 2.5}
"""KL of each student on the teacher's text; a fifth more on its own, a tenth less on the data's."""
STUDENT, BESIDE = ("perplexity", "ce_nats", "bits_per_byte", "accuracy", "entropy_nats"), ("kl_nats", "reverse_kl_nats", "agreement", "acceptance")


def figure(value: float, half: float | None = None) -> dict[str, Any]:
    half = 0.08 * abs(value) if half is None else half
    return {"value": value, "interval": [value - half, value + half]}


def figures(who: str, text: str) -> dict[str, Any]:
    far = FAR.get(who, 0.0) * {"given": 0.9, "teacher": 1.0, "own": 1.2}[text]
    values = {"ce_nats": 2 + far, "perplexity": math.exp(2 + far), "bits_per_byte": 0.7 + far / 3, "accuracy": 0.6 - far / 5, "entropy_nats": 1.9}
    beside = {"kl_nats": far, "reverse_kl_nats": 1.1 * far, "agreement": 0.9 - far / 4, "acceptance": 0.9 - far / 4, "teacher_entropy_nats": 1.8}
    return {key: figure(value) for key, value in (values if who == "teacher" else values | beside).items()}


def differences(mine: str, theirs: str, text: str) -> dict[str, Any]:
    own, other = figures(mine, text), figures(theirs, text)
    gap = {key: own[key]["value"] - other[key]["value"] for key in own if key != "perplexity"}
    return {"of": mine, "less": theirs, "text": text, "figures": {key: figure(value, 0.02) for key, value in gap.items()}}


def calibration(over: float) -> dict[str, Any]:
    sure = [(place + 0.5) / 15 for place in range(15)]
    bins = [
        {"low": p - 1 / 30, "high": p + 1 / 30, "tokens": 40 + 60 * place, "confidence": p, "accuracy": max(0.0, p - over * p)}
        for place, p in enumerate(sure)
    ]  # fmt: skip
    error = sum(over * each["confidence"] * each["tokens"] for each in bins) / sum(each["tokens"] for each in bins)
    return {"error": error, "interval": [error - 0.01, error + 0.01], "if_calibrated": {"mean": 0.012, "below": 0.019}, "confidence": 0.62,
            "accuracy": 0.62 - error, "bins": bins}  # fmt: skip


def positions(who: str) -> dict[str, Any]:
    return {
        text: [
            {"first": 2 ** (n - 1) if n else 0, "last": 2**n - 1 if n else 0, "tokens": 64,
             **{key: figure(FAR[who] * (1 + (0.15 * n if text == "own" else 0))) for key in BESIDE}}
            for n in range(6)
        ] for text in ("given", "teacher", "own")
    }  # fmt: skip


def gaps() -> list[dict[str, Any]]:
    """Of the data's text and of the student's own."""
    worse = {
        ("all", "all tokens"): 1.0,
        ("category", "chemistry"): 3.0,
        ("category", "cooking"): 1.0,
        ("category", "law"): 1.4,
        ("position", "4 to 7"): 0.8,
    }
    found = list[dict[str, Any]]()
    for text, names in (("given", WHO[1:]), ("own", ("after",))):
        for n, ((kind, name), times) in enumerate(worse.items()):
            bad = name == "chemistry"
            above = {"above_rest": {"value": 0.1 * times, "at_least": 0.1, "compared": 4}}
            each = {who: {"kl_nats": figure(FAR[who] * times), **above, "surely_worse": bad and who == "after"} for who in names}
            why = {"value": None, "interval": None, "why": "there is no sure gap: -1 to 1 holds 0"}
            if text == "given":
                each["after"]["recovered"] = {"against": "fine-tuned", "kl_nats": why if name == "law" else figure(0.7 / times)}
            one = {"row": 1, "prompt": "Why is water wet?", "completions": {"teacher": "It wets.", "after": "Wet it is."}}
            few = {"few": "9 sequences, and at least 10 are needed to say how sure it is"} if name == "law" else {}
            found.append({"text": text, "kind": kind, "name": name, "sequences": 20 + n, "tokens": 900 + n, **few, "students": each,
                          **({"examples": {"after": [one]}} if bad else {})})  # fmt: skip
    return found


def tasks() -> dict[str, Any]:
    right = {"teacher": 0.71, "before": 0.12, "after": 0.52, "fine-tuned": 0.41, "from scratch": 0.03}
    answers = {"teacher": {"completion": "4", "reward": 1.0, "right": True}, "after": {"completion": "5", "reward": 0.0, "right": False}}
    return {
        "sums": {
            "shape": "GSM8K", "verifier": "Number()", "prompts": 128,
            "figures": {who: {"right": figure(share), "cut": figure(0.1), "calibration": calibration(0.2)} for who, share in right.items()},
            "differences": [{"of": "fine-tuned", "less": "after", "figures": {"right": figure(-0.11, 0.05)}}],
            "recovered": [{"of": "after", "beside": "before", "figures": {"right": figure(0.678)}}],
            "samples": [{"row": 0, "prompt": "2 + 2?", "wanted": "4", "answers": answers}],
        }
    }  # fmt: skip


def robustness() -> dict[str, Any]:
    times = {"clean": 1.0, "typos": 1.5, "upper": 1.2, "distractor": 2.2}
    names = (*WHO[1:4], "teacher")
    found = {
        edit: {
            who: {"ce_nats": figure(2 * n), "kl_nats": figure(FAR[who] * n) if who in FAR else figure(0.0), "steady": figure(1 / n),
                  **({"lost": {"ce_nats": figure(n - 1, 0.1)}} if edit != "clean" else {})}
            for who in names
        } for edit, n in times.items()
    }  # fmt: skip
    kept = {"after": {"typos": {**figure(0.8), "share_lost": 0.3, "more_nats": figure(0.2)}, "upper": figure(0.95), "all": figure(0.875)}}
    edits = {"typos": {"kind": "typos", "what": "letters that changed places", "prompts": 19, "example": "Waht?"}}
    suffix = {"suffix": [1], "text": "! ! %", "steps": 8, "aim": "kl_nats", "sequences_read": 99, "random_each": [0.4]}
    suffix |= {"clean": figure(0.3), "random": figure(0.4), "found": figure(3.3), "above_random": figure(2.9), "lost": {"student": figure(1.0)}}
    missing = ["look-alikes: changes no prompt"]
    return {"text": "given", "prompts": 20, "missing": missing, "edits": edits, "figures": found, "kept": kept, "adversarial": {"after": suffix}}


def evaluation() -> dict[str, Any]:
    """All of it."""
    over = {"teacher": 0.03, "before": 0.25, "after": 0.1, "fine-tuned": 0.2, "from scratch": 0.4}
    pairs = [(mine, theirs) for place, mine in enumerate(WHO[1:]) for theirs in WHO[1:][:place]]
    texts, prompts = ("given", "teacher", "own"), [f"Prompt number {n}: what of it?" for n in range(20)]
    speed = {"side_by_side": 32, "parameters": 135_000_000, "weights_bytes": 270_000_000}
    models = {who: {"model": f"models/{who}", "weights": "abc"} for who in WHO[1:]}
    return {
        "settings": {"asked": {"data": "heldout.jsonl", "rows": 64, "seed": 0}, "students": models, "teacher": {"model": "models/teacher"}},
        "missing": ["one thing could not be had: it is dear"],
        "speeds": {who: {"tokens_per_second": 50.0 if who == "teacher" else 180.0, **speed} for who in WHO},
        "figures": {who: {text: figures(who, text) for text in texts if (who, text) != ("teacher", "teacher")} for who in WHO},
        "differences": [differences(mine, theirs, text) for mine, theirs in pairs for text in texts],
        "positions": {who: positions(who) for who in WHO[1:]},
        "calibration": {who: {"text": "given", "raw": calibration(each), "scaled": {**calibration(each / 4), "temperatures": [1.2, 1.3]}}
                        for who, each in over.items()},
        "diversity": {who: {"distinct_1": 0.3, "distinct_2": 0.8, "self_bleu": 0.2, "answers": 64, "tokens": 4096} for who in WHO},
        "samples": [{"row": n, "prompt": prompt, "completions": {who: f"{who} says {'much' if n % 2 else 'little'} of {n}" for who in WHO}}
                    for n, prompt in enumerate(prompts)],
        "gaps": gaps(), "tasks": tasks(), "robustness": robustness(),
        "advice": [{"says": "Give more rows of chemistry: it is the worst slice.", "because": "KL 0.9 there, 0.3 elsewhere (64 sequences)."},
                   {"says": "Nothing else stands out.", "because": ""}],
    }  # fmt: skip
