"""Text that stands twice: in a test set, or twice in one corpus. Words are lower-case runs of letters and digits."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from limbeck.data import Data, Row, messages_of

WORD = re.compile(r"\w+")
SHORTEST = 5
"""Words of a test text: fewer stand in other texts by chance."""


def words(text: str) -> list[str]:
    """The words of a text."""
    return WORD.findall(text.lower())


def grams(text: str, size: int) -> set[int]:
    """64-bit hashes of the runs of `size` words; of a shorter text, that of all its words."""
    found = words(text)
    runs = [found[n : n + size] for n in range(len(found) - size + 1)] or ([found] if found else [])
    return {int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest()) for run in runs}


def text_of(row: Row) -> str:
    """All that a row says: prompt, answer, every turn."""
    there = {name: value for name, value in row.items() if value is not None}
    turns = [str(message.get("content") or "") for message in messages_of(there) or []]
    return "\n".join([*turns, *(str(there[name]) for name in ("prompt", "question", "text", "completion", "answer") if name in there)])


class Overlap:
    """Finds rows that share a run of `size` words with a test set (13, as in GPT-3's appendix C, arXiv 2005.14165).

    Test texts shorter than that count where the whole of them stands in a row, those of fewer than `SHORTEST` words not at
    all. About 100 bytes a word of the sets.
    """

    def __init__(self, sets: Iterable[Data], size: int = 13) -> None:
        self.size = size
        self._where = dict[int, str]()
        self._short = dict[int, dict[int, str]]()  # by their count of words
        for data in sets:
            for row in data.rows():
                self._add(text_of(row), data.path)

    def _add(self, text: str, name: str) -> None:
        count = len(words(text))
        if count < SHORTEST:
            return
        table = self._where if count >= self.size else self._short.setdefault(count, {})
        table.update(dict.fromkeys(grams(text, min(count, self.size)), name))

    def found(self, text: str) -> str | None:
        """The test set that a text overlaps with; None where it does with none."""
        for gram in grams(text, self.size):
            if gram in self._where:
                return self._where[gram]
        for count, table in self._short.items():
            if hit := next((table[gram] for gram in grams(text, count) if gram in table), None):
                return hit
        return None


def near_duplicates(texts: Sequence[str], similarity: float, size: int = 3) -> list[int]:
    """Places of the texts that are no near duplicates of one before: the Jaccard index of their runs of words is at most `similarity`.

    Exact, by an index of which earlier texts hold which runs; the first of several alike stays.
    """
    holders, counts, kept = defaultdict[int, list[int]](list), dict[int, int](), list[int]()
    for place, text in enumerate(texts):
        runs = grams(text, size)
        shared = Counter(other for run in runs for other in holders[run])
        if any(common > similarity * (len(runs) + counts[other] - common) for other, common in shared.items()):
            continue
        kept.append(place)
        counts[place] = len(runs)
        for run in runs:
            holders[run].append(place)
    return kept
