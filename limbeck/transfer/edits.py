"""Edits of what a user asks: small pure functions of a text and a random generator, each of which changes one thing and says which.

They are made on the user's last turn alone, as text, before the chat template renders it. A rate is a share of the letters that could be
edited, and at least one. Sources: typos, Belinkov and Bisk 2018 (arXiv 1711.02173); the habit of testing that what should not matter
does not, CheckList (Ribeiro et al. 2020, arXiv 2005.04118); distractors, Jia and Liang 2017 (arXiv 1707.07328) and Shi et al. 2023
(arXiv 2302.00093); look-alikes, Boucher et al. 2021 (arXiv 2106.09898). Departs: 1) typos are made at drawn places of the whole text,
not one in each word; 2) paraphrases are templates, which no model wrote: they put words around a question and never reword it;
3) distractors are drawn from a list of plain sentences, not written against the question.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from limbeck.errors import RecipeError, did_you_mean

Random = np.random.Generator
Edited = Callable[[str, Random], str]
Place = TypeVar("Place")

TYPO_RATE = 0.05
"""One letter in twenty."""
LOOK_ALIKE_RATE = 0.1
WIDE_SHARE, CUT_SHARE = 1 / 3, 1 / 3
"""Of the words: in full width; cut at the end."""


@dataclass(frozen=True)
class Edit:
    """One edit. kind: what several have in common, by which they may be asked for together. what: in a few words. of: the edit itself."""

    name: str
    kind: str
    what: str
    of: Edited

    def edited(self, text: str, seed: int, row: int) -> str:
        """A function of text, seed and row alone."""
        return self.of(text, np.random.default_rng([seed, row, zlib.crc32(self.name.encode())]))


# Typos


def _places(found: Sequence[Place], rate: float, random: Random) -> list[Place]:
    """So many of these places, drawn, at least one where there are any."""
    return [found[int(n)] for n in random.permutation(len(found))[: max(1, round(rate * len(found)))]] if found else []


def _in_words(text: str) -> list[int]:
    """Letters that have another beside them."""
    return [place for place in range(len(text)) if text[place].isalpha() and (text[place + 1 : place + 2].isalpha() or text[:place][-1:].isalpha())]


def swapped(text: str, random: Random, rate: float = TYPO_RATE) -> str:
    """Letters that changed places with the next one in their word."""
    pairs = [place for place in range(len(text) - 1) if text[place : place + 2].isalpha() and text[place] != text[place + 1]]
    made = list(text)
    wanted, taken = max(1, round(rate * len(pairs))), set[int]()
    for place in (pairs[int(n)] for n in random.permutation(len(pairs))):
        if wanted and not taken & {place, place + 1}:
            made[place], made[place + 1] = text[place + 1], text[place]
            taken, wanted = taken | {place, place + 1}, wanted - 1
    return "".join(made)


def dropped(text: str, random: Random, rate: float = TYPO_RATE) -> str:
    """Letters left out, none of a word that is one letter."""
    gone = set(_places(_in_words(text), rate, random))
    return "".join(letter for place, letter in enumerate(text) if place not in gone)


def doubled(text: str, random: Random, rate: float = TYPO_RATE) -> str:
    """Letters typed twice."""
    twice = set(_places(_in_words(text), rate, random))
    return "".join(letter * (1 + (place in twice)) for place, letter in enumerate(text))


KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Of each letter the keys around it: each row of keys stands half a key further to the right than the one above."""
    found = dict[str, str]()
    for r, keys in enumerate(KEYBOARD):
        for c, key in enumerate(keys):
            around = [(r, c - 1), (r, c + 1), (r - 1, c), (r - 1, c + 1), (r + 1, c - 1), (r + 1, c)]
            found[key] = "".join(KEYBOARD[y][x] for y, x in around if 0 <= y < len(KEYBOARD) and 0 <= x < len(KEYBOARD[y]))
    return found


NEIGHBOURS = _neighbours()


def mistyped(text: str, random: Random, rate: float = TYPO_RATE) -> str:
    """Letters replaced by a key beside theirs (QWERTY), as great or as small."""
    made = list(text)
    for place in _places([place for place, letter in enumerate(text) if letter.lower() in NEIGHBOURS], rate, random):
        around = NEIGHBOURS[text[place].lower()]
        key = around[int(random.integers(len(around)))]
        made[place] = key.upper() if text[place].isupper() else key
    return "".join(made)


# Case


def _cased(letter: str, upper: bool) -> str:
    """A letter in the other case where that is one letter and comes back; others are left alone."""
    made = letter.upper() if upper else letter.lower()
    return made if len(made) == 1 and made.lower() == letter.lower() and made.upper() == letter.upper() else letter


def upper(text: str, random: Random) -> str:
    """All capitals."""
    return "".join(_cased(letter, True) for letter in text)


def lower(text: str, random: Random) -> str:
    """No capitals."""
    return "".join(_cased(letter, False) for letter in text)


def random_case(text: str, random: Random) -> str:
    """Each letter a capital or none, by chance."""
    return "".join(_cased(letter, bool(high)) for letter, high in zip(text, random.integers(0, 2, len(text)), strict=True))


# What is put around it


def _around(text: str, random: Random, template: str) -> str:
    before, _, after = template.partition("{}")
    return before + text + after


TEMPLATES = {
    "please": "Please help me with this: {}",
    "question-answer": "Question: {}\nAnswer:",
    "instruction": "### Instruction:\n{}\n\n### Response:",
    "roundabout": "I was wondering about something, and I hope that you can help me with it. {} Thank you very much.",
}
"""Paraphrases by name. They are templates."""

UNRELATED = (
    "The shop on the corner closes at six on weekdays.",
    "A grey cat sat on the garden wall for most of the morning.",
    "The train to the coast leaves from platform four.",
    "Last winter the lake was frozen for eleven days.",
    "My neighbour has painted her front door green.",
    "The library keeps old newspapers in the cellar.",
    "Two of the lamps in the hallway need new bulbs.",
    "The baker puts the bread on the shelves before seven.",
    "There is a wooden bench under the chestnut tree.",
    "The school choir sang three songs at the fair.",
    "A blue bicycle has stood by the fence since Tuesday.",
    "The ferry carries cars only in the summer months.",
    "Somebody left an umbrella in the waiting room.",
    "The museum shows a collection of glass bottles.",
    "Our team lost the match by a single point.",
    "The kitchen window looks out over the harbour.",
    "Rain is expected in the hills towards the evening.",
    "The new bridge was opened by the mayor in May.",
    "An old map of the town hangs beside the stairs.",
    "The gardener cut the hedge and swept the path.",
    "Most of the apples were picked before the storm.",
    "The clock in the tower is four minutes slow.",
    "A letter came for the people who used to live here.",
    "The farmer's market moves to the square on Sundays.",
)
"""Plain sentences about nothing that anybody asks."""


def _sentence(random: Random) -> str:
    return UNRELATED[int(random.integers(len(UNRELATED)))]


def distractor_before(text: str, random: Random) -> str:
    """An unrelated sentence before it."""
    return f"{_sentence(random)} {text}"


def distractor_after(text: str, random: Random) -> str:
    """An unrelated sentence after it."""
    return f"{text} {_sentence(random)}"


def passage(tokens: int, count: Callable[[str], int], random: Random) -> str:
    """Unrelated sentences, as few as hold so many tokens; each once before any comes again."""
    said, waiting = list[str](), list[int]()
    while count(" ".join(said)) < tokens:
        waiting = waiting or [int(n) for n in random.permutation(len(UNRELATED))]
        said.append(UNRELATED[waiting.pop()])
    return " ".join(said)


def longer(text: str, random: Random, tokens: int, count: Callable[[str], int]) -> str:
    """A passage of unrelated text before it, a paragraph of its own."""
    return f"{passage(tokens, count, random)}\n\n{text}"


# Other scripts

LOOK_ALIKES = dict(zip("aceijopsxyABCEHIJKMOPSTXYZ", "асеіјорѕхуАВСЕНІЈКМОРЅТХУΖ", strict=True))
"""Latin letters and those of Cyrillic (and one of Greek) that look the same."""
DIGITS = dict(zip("0123456789", "٠١٢٣٤٥٦٧٨٩", strict=True))
"""Arabic-Indic."""
FULL_WIDTH = {chr(place): chr(place + 0xFEE0) for place in range(0x21, 0x7F)}


def look_alikes(text: str, random: Random, rate: float = LOOK_ALIKE_RATE) -> str:
    """Some letters replaced by others that look the same."""
    made = list(text)
    for place in _places([place for place, letter in enumerate(text) if letter in LOOK_ALIKES], rate, random):
        made[place] = LOOK_ALIKES[text[place]]
    return "".join(made)


def other_digits(text: str, random: Random) -> str:
    """Every digit in Arabic-Indic."""
    return text.translate(str.maketrans(DIGITS))


def full_width(text: str, random: Random, share: float = WIDE_SHARE) -> str:
    """Some words in their full-width form, as far as they are ASCII; not all, since a letter then takes three bytes, often as many tokens."""
    words = [word.span() for word in re.finditer(r"\S+", text) if set(word.group()) & FULL_WIDTH.keys()]
    made = list(text)
    for first, last in _places(words, share, random):
        made[first:last] = [FULL_WIDTH.get(letter, letter) for letter in text[first:last]]
    return "".join(made)


# Truncation


def truncated(text: str, random: Random, share: float = CUT_SHARE) -> str:
    """Without its last words: a third of them, at least one, never the first."""
    words = list(re.finditer(r"\S+", text))
    if len(words) < 2:
        return text
    return text[: words[len(words) - max(1, round(share * len(words))) - 1].end()]


def edits(tokens: int, count: Callable[[str], int]) -> dict[str, Edit]:
    """All edits by name, in the order in which they are shown. tokens: of the longer context, by `count`."""
    made = [
        Edit("swapped", "typos", "letters that changed places with the next, one in twenty", swapped),
        Edit("dropped", "typos", "letters left out, one in twenty", dropped),
        Edit("doubled", "typos", "letters typed twice, one in twenty", doubled),
        Edit("mistyped", "typos", "letters replaced by a key beside theirs (QWERTY), one in twenty", mistyped),
        Edit("upper", "case", "all capitals", upper),
        Edit("lower", "case", "no capitals", lower),
        Edit("random-case", "case", "each letter a capital or none, by chance", random_case),
        *(Edit(name, "paraphrase", "a template around it", partial(_around, template=template)) for name, template in TEMPLATES.items()),
        Edit("distractor-before", "distractor", "an unrelated sentence before it", distractor_before),
        Edit("distractor-after", "distractor", "an unrelated sentence after it", distractor_after),
        Edit("long-context", "context", f"{tokens} tokens of unrelated text before it", partial(longer, tokens=tokens, count=count)),
        Edit("look-alikes", "script", "letters replaced by others that look the same (Cyrillic), one in ten", look_alikes),
        Edit("other-digits", "script", "every digit in Arabic-Indic", other_digits),
        Edit("full-width", "script", "one word in three in its full-width form", full_width),
        Edit("truncated", "truncation", "without its last words, a third of them", truncated),
    ]
    return {edit.name: edit for edit in made}


KINDS = {name: edit.kind for name, edit in edits(1, len).items()}
"""Of each edit by name."""


def chosen(asked: Iterable[str]) -> tuple[str, ...]:
    """Names of edits, by their names or kinds, in the order in which they are shown; all where nothing is asked for.

    Raises RecipeError for one that nobody knows.
    """
    wanted = set(asked)
    if unknown := sorted(wanted - KINDS.keys() - set(KINDS.values())):
        raise RecipeError(f'there is no edit "{unknown[0]}"{did_you_mean(unknown[0], {*KINDS, *KINDS.values()})}')
    return tuple(name for name, kind in KINDS.items() if not wanted or {name, kind} & wanted)
