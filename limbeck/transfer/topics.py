"""Prompts in clusters where no column says what they are about: k-means on the words they have, each cluster named by its own.

Axes: R rows, W words, K clusters. Words are weighed by how seldom they are (tf-idf: log of the rows over the rows that have the word), rows
are brought to length 1, and nearness is their product (spherical k-means, Dhillon and Modha 2001, doi 10.1023/A:1007612920971), begun by
k-means++ (Arthur and Vassilvitskii 2007) with one fixed seed.
"""

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from limbeck.evaluate.statistics import Array

FEWEST, MOST, WORDS, ROUNDS, TRIES = 20, 8, 2000, 50, 8
"""Rows below which there are no clusters; clusters; different words that are looked at; rounds of one try; tries, of which the tightest counts."""
WORD = re.compile(r"[^\W_]+")


def topics(texts: Mapping[int, str]) -> dict[int, str]:
    """The cluster of each row, by name; empty where rows are too few, or no word tells them apart."""
    if len(texts) < FEWEST:
        return {}
    counted = [Counter(WORD.findall(text.lower())) for text in texts.values()]
    weight_RW, words = _weights(counted)
    if not words:
        return {}
    clusters = min(MOST, max(2, len(texts) // FEWEST))
    place_R = _clustered(weight_RW, clusters)
    names = _names(weight_RW, words, place_R)
    return {row: names[int(place)] for row, place in zip(texts, place_R, strict=True)}


def _weights(counted: "list[Counter[str]]") -> tuple[Array, list[str]]:
    """Tf-idf of rows, each of length 1 (or 0 where it has no known word), and the words: those of several rows and not of all."""
    rows_of = Counter(word for each in counted for word in each)
    known = sorted((word for word, count in rows_of.items() if 1 < count < len(counted)), key=lambda word: (-rows_of[word], word))[:WORDS]
    rarity_W = np.array([np.log(len(counted) / rows_of[word]) for word in known])
    weight_RW = np.array([[each[word] for word in known] for each in counted], float) * rarity_W if known else np.zeros((len(counted), 0))
    length_R1 = np.linalg.norm(weight_RW, axis=1, keepdims=True)
    return np.divide(weight_RW, length_R1, out=np.zeros_like(weight_RW), where=length_R1 > 0), known


def _clustered(weight_RW: Array, clusters: int) -> Array:
    """The cluster of each row [R], of the try in which rows lie nearest to their centres."""
    random = np.random.default_rng(0)
    tried = [_once(weight_RW, clusters, random) for _ in range(TRIES)]
    return max(tried, key=lambda each: each[1])[0]


def _once(weight_RW: Array, clusters: int, random: np.random.Generator) -> tuple[Array, float]:
    centre_KW = _begun(weight_RW, clusters, random)
    place_R = np.argmax(weight_RW @ centre_KW.T, 1)
    for _ in range(ROUNDS):
        for k in range(len(centre_KW)):
            if (place_R == k).any() and (length := np.linalg.norm(total_W := weight_RW[place_R == k].sum(0))) > 0:
                centre_KW[k] = total_W / length
        before, place_R = place_R, np.argmax(weight_RW @ centre_KW.T, 1)
        if (before == place_R).all():
            break
    return place_R, float((weight_RW * centre_KW[place_R]).sum())


def _begun(weight_RW: Array, clusters: int, random: np.random.Generator) -> Array:
    """Rows far from one another, each drawn by the square of its distance from the nearest that is chosen."""
    chosen = [int(random.integers(len(weight_RW)))]
    for _ in range(clusters - 1):
        apart_R = np.maximum(0, 1 - (weight_RW @ weight_RW[chosen].T).max(1))  # half the squared distance of rows of length 1
        if not apart_R.sum():
            break
        chosen.append(int(random.choice(len(weight_RW), p=apart_R / apart_R.sum())))
    return weight_RW[chosen].copy()


def _names(weight_RW: Array, words: list[str], place_R: Array, most: int = 3) -> dict[int, str]:
    """Each cluster by the words that weigh more in it than elsewhere."""
    names, every_W = dict[int, str](), weight_RW.mean(0)
    for k in np.unique(place_R).tolist():
        above_W = weight_RW[place_R == k].mean(0) - every_W
        typical = [words[n] for n in np.argsort(-above_W, kind="stable")[:most] if above_W[n] > 0]
        name = ", ".join(typical) or "(no typical words)"
        names[k] = name if name not in names.values() else f"{name} ({k})"
    return names
