"""What a text says: the answer it states, its last number, its blocks of code, its JSON. Whatever the text, reading takes linear time."""

import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

MARK = re.compile(r"####(?=[^A-Za-z\n]{1,40}$)|\\(?:boxed|fbox)\s{0,3}\{|\banswer\b[\s*_]{0,4}(?:is\b|[:=])", re.IGNORECASE | re.MULTILINE)
"""What stands before a stated answer; so does `####` with words after it in the last line, being no heading there."""
VULGAR = "[¼-¾⅐-⅞↉]"
CLEANED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"[−–－]", "-"),
        (rf"(?<=\d){VULGAR}", lambda found: " " + _vulgar(found)),
        (VULGAR, lambda found: _vulgar(found)),
        (r"(?<=\d)\s{0,3}\\[dt]?frac", r" \\frac"),
        (r"\\[dt]?frac\s{0,3}(?:\{([^{}]{0,40})\}|(\d))\s{0,3}(?:\{([^{}]{0,40})\}|(\d))", lambda found: _over(found)),
        (r"\^\s?\{?\\circ\}?", "°"),
        (r"\\([%$€£¥₹])", r"\1"),
        (r"(?<=\d)(?:\{,\}|\\[,!; ]|[\u00a0\u2009\u202f])(?=\d{3})", ","),
    )
]
"""Spellings of numbers, and the plain one of each: signs, fractions, what parts thousands."""
NUMBER = re.compile(
    r"""(?<![\w^])(?<!\d\.)(?<!\^\{)                     # no part of a word, a version or an exponent
    (?P<sign>(?<![)\]}])[-+])?(?:[$€£¥₹][ ]?(?P<inner>[-+])?)?
    (?: (?:(?P<whole>\d+)[ \t]{1,3})?(?P<above>\d+)[ ]?[/⁄][ ]?(?P<below>\d+)(?![\d/]|\.\d)
      | (?P<body>\d{1,3}(?:,\d{2,3}){0,12},\d{3}(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\.)\.\d+)
        (?:[eE](?P<e>[-+]?\d{1,3})(?!\d)|[ ]?(?:×|\*|x|\\times|\\cdot)[ ]?10\^\{?(?P<ten>[-+]?\d{1,3})\}?)?
    ) (?!\d|[ ]?\^) (?P<percent>[ ]?%|[ ]percent\b)?""",
    re.VERBOSE,
)


def stated(text: str) -> str | None:
    """The line that follows the last mark of an answer, or what its braces hold, up to 1000 characters of it."""
    found, last = _end(MARK.finditer(text)), text.rstrip().rpartition("\n")[2]
    if "####" in last and not (found and found[0].endswith("{") and found.start() > text.rindex("####")):
        return last.rpartition("####")[2].strip()
    if found is None:
        return None
    after = text[found.end() : found.end() + 1000]
    if not found[0].endswith("{"):
        return next((line for line in after.split("\n") if line.strip(" \t\r*_:$")), "").strip()
    depth = 1
    for place, character in enumerate(after):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return after[:place]
    return after


def folded(text: str) -> str:
    """A text as it is compared where spelling does not matter."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(" \"'`*_“”‘’").rstrip(".,;: \"'`*_“”‘’")


def _vulgar(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", found[0])


def _over(found: re.Match[str]) -> str:
    """a/b for TeX's fraction."""
    above, below = (found[1] or found[2] or "").strip(), (found[3] or found[4] or "").strip()
    return f"{above}/{below}"


def number(text: str) -> tuple[Fraction, bool] | None:
    """The number that a text answers, and whether it is a percentage."""
    line = stated(text)
    found = None if line is None else _direct(_cleaned(line))
    found = found or _end(NUMBER.finditer(_cleaned(text)))
    return None if found is None else _value(found)


def _direct(line: str) -> re.Match[str] | None:
    """A line's first number, where no words stand before it: they may tell of how it is found. Of `3 + 4 = 7`, what follows the last `=`."""
    found = NUMBER.search(line)
    if found is None or re.search(r"[^\W\d_]{2,}[^=≈]*$", line[: found.start()]):
        return None
    line = line[found.start() :]
    while sums := re.match(r"[-\d\s.,+*/×·÷^()$%]{1,200}=", line):
        line = line[sums.end() :]
    return NUMBER.search(line)


def _cleaned(text: str) -> str:
    for pattern, new in CLEANED:
        text = pattern.sub(new, text)
    return text


def _value(found: re.Match[str]) -> tuple[Fraction, bool] | None:
    """None for a division by zero, and for more digits than a number can be meant to have."""
    if len(found[0]) > 400 or (found["below"] is not None and int(found["below"]) == 0):
        return None
    if found["body"] is None:
        size = int(found["whole"] or 0) + Fraction(int(found["above"]), int(found["below"]))
    else:
        size = Fraction(found["body"].replace(",", "")) * Fraction(10) ** int(found["e"] or found["ten"] or 0)
    return (-size if "-" in (found["sign"], found["inner"]) else size), found["percent"] is not None


def number_pairs(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> Iterator[tuple[Fraction, Fraction]]:
    """The numerals, and where only one is a percentage its hundredth too."""
    yield one[0], other[0]
    if one[1] != other[1]:
        yield (one[0] / 100, other[0]) if one[1] else (one[0], other[0] / 100)


def fenced(text: str) -> list[tuple[str, str]]:
    """(mark, content) of every block between lines of ```; one that is left open ends with the text."""
    blocks, indent = list[tuple[str, list[str]]](), None
    for line in text.split("\n"):
        bare = line.lstrip(" \t")
        if indent is None and bare.startswith("```"):
            indent = line[: len(line) - len(bare)]
            blocks.append((bare[3:].strip().lower(), []))
        elif indent is not None and bare.rstrip() == "```":
            indent = None
        elif indent is not None:
            blocks[-1][1].append(line.removeprefix(indent))
    return [(mark, "\n".join(lines)) for mark, lines in blocks]


def json_of(text: str) -> list[Any]:
    """The value that a text is, in a list; none where it is no JSON."""
    blocks = fenced(text)
    try:
        return [json.loads(blocks[-1][1] if blocks else text, parse_constant=_no_json)]
    except (ValueError, RecursionError):
        return []


def _no_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def first_of(pattern: str, text: str) -> str | None:
    """The letter, a capital, that a pattern's only group with a match finds first."""
    found = re.search(pattern, text)
    return found and next(filter(None, found.groups())).upper()


def last_of(pattern: str, text: str) -> str | None:
    """The same, found last."""
    found = _end(re.finditer(pattern, text))
    return found and next(filter(None, found.groups())).upper()


def _end(found: Iterator[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(deque(found, maxlen=1)), None)
