"""How different the texts of one writer are: distinct n-grams, and BLEU of each text against the others.

Texts are lists of tokens, so that no language needs words of its own.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

Tokens = Sequence[int]


def ngrams(tokens: Tokens, n: int) -> "Counter[tuple[int, ...]]":
    """How often each run of n tokens stands in a text."""
    return Counter(tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1))


def distinct(texts: Sequence[Tokens], n: int) -> float | None:
    """Different n-grams of all texts, as a share of all there are (Li et al. 2016, arXiv 1510.03055); None where there are none.

    It falls with the amount of text: compare equal amounts.
    """
    counted = sum((ngrams(text, n) for text in texts), Counter[tuple[int, ...]]())
    return len(counted) / counted.total() if counted else None


def self_bleu(texts: Sequence[Tokens], most: int = 4) -> float | None:
    """The mean of each text's BLEU against all others (Zhu et al. 2018, arXiv 1802.01886): 1 where all are the same; None below two texts.

    BLEU (Papineni et al. 2002, eq. 1 to 3): the geometric mean of clipped n-gram precisions for n to `most`, times exp(1 - r / c) where
    the text (c tokens) is shorter than the nearest reference (r). Departs: an n for which nothing matches counts 1 / (2 x its n-grams)
    (smoothing 2 of Chen and Cherry 2014 is another), since one empty n would make the whole 0; n beyond a text's length are left out.
    """
    kept = [text for text in texts if len(text)]
    if len(kept) < 2:
        return None
    grams = [[ngrams(text, n) for n in range(1, most + 1)] for text in kept]
    return sum(_bleu(grams, kept, one) for one in range(len(kept))) / len(kept)


def _bleu(grams: Sequence[Sequence["Counter[tuple[int, ...]]"]], texts: Sequence[Tokens], one: int) -> float:
    logs = list[float]()
    for n, mine in enumerate(grams[one]):
        if not mine:
            continue
        allowed = Counter[tuple[int, ...]]()
        for other, theirs in enumerate(grams):
            if other != one:
                allowed |= Counter({gram: theirs[n][gram] for gram in mine})
        matched = sum((mine & allowed).values())
        logs.append(math.log((matched or 0.5) / mine.total()))
    length = len(texts[one])
    nearest = min((len(text) for other, text in enumerate(texts) if other != one), key=lambda each: (abs(each - length), each))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - nearest / length))


def diversity(groups: Sequence[Sequence[Tokens]]) -> dict[str, Any]:
    """Figures of one writer's texts, in groups of answers to one prompt. self_bleu: within prompts where there are several answers, else over all."""
    every = [text for group in groups for text in group]
    several = [found for group in groups if len(group) > 1 and (found := self_bleu(group)) is not None]
    return {
        **{f"distinct_{n}": distinct(every, n) for n in (1, 2, 3)},
        "self_bleu": sum(several) / len(several) if several else self_bleu(every),
        "answers": len(every), "tokens": sum(map(len, every)),
    }  # fmt: skip
