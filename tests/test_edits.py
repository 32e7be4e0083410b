"""Edits of prompts: what each changes, and that it changes nothing else."""

import random

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Data
from limbeck.transfer import edits as e
from limbeck.transfer.robustness import asked_last, asking
from limbeck.vocabulary import Vocabulary

EDITS = e.edits(20, lambda text: len(text.split()))
TEXT = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCXYZ0189 .,?\n\t'éßİ東ﬁ😀"), max_size=80)
SEEDS = st.integers(0, 2**31)
TOY = Vocabulary(toys.tokenizer())


def made(name: str, text: str, seed: int = 0, row: int = 0) -> str:
    return EDITS[name].edited(text, seed, row)


def differing(one: str, other: str) -> list[int]:
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def wanted(places: int, rate: float = e.TYPO_RATE) -> int:
    return max(1, round(rate * places)) if places else 0


def in_words(text: str) -> int:
    return sum(a.isalpha() and (before.isalpha() or after.isalpha()) for before, a, after in zip(" " + text, text, text[1:] + " ", strict=False))


@pytest.mark.parametrize("name", EDITS)
@given(text=TEXT, seed=SEEDS, row=SEEDS)
def test_an_edit_is_a_function_of_text_seed_and_row(name: str, text: str, seed: int, row: int) -> None:
    first = made(name, text, seed, row)
    random.random(), np.random.random()
    assert made(name, text, seed, row) == first


def test_rows_and_seeds_and_edits_draw_apart() -> None:
    text = "the quick brown fox jumps over the lazy dog and runs far away from here"
    for name in ("swapped", "dropped", "doubled", "mistyped", "random-case", "distractor-after", "look-alikes"):
        assert len({made(name, text, seed, row) for seed in range(3) for row in range(3)}) > 3, name


@given(text=TEXT, seed=SEEDS)
def test_swapped_letters_are_neighbours_of_one_word(text: str, seed: int) -> None:
    after = made("swapped", text, seed)
    places, pairs = differing(text, after), sum(text[n : n + 2].isalpha() and text[n] != text[n + 1] for n in range(len(text) - 1))
    assert sorted(after) == sorted(text) and len(places) % 2 == 0 and len(places) <= 2 * wanted(pairs) and bool(places) == bool(pairs)
    for first, second in zip(places[::2], places[1::2], strict=True):
        assert second == first + 1 and after[first] + after[second] == text[second] + text[first] and text[first : second + 1].isalpha()


@given(text=TEXT, seed=SEEDS)
def test_dropped_and_doubled_letters_are_as_many_as_the_rate_says(text: str, seed: int) -> None:
    less, more, count = made("dropped", text, seed), made("doubled", text, seed), wanted(in_words(text))
    assert len(text) - len(less) == len(more) - len(text) == count
    for short, long in ((less, text), (text, more)):
        rest = iter(long)
        assert all(letter in rest for letter in short)  # a subsequence: nothing else changed


@given(text=TEXT, seed=SEEDS)
def test_mistyped_letters_are_keys_beside_theirs(text: str, seed: int) -> None:
    after = made("mistyped", text, seed)
    places = differing(text, after)
    assert len(places) == wanted(sum(letter.lower() in e.NEIGHBOURS for letter in text))
    assert all(after[n].lower() in e.NEIGHBOURS[text[n].lower()] and after[n].isupper() == text[n].isupper() for n in places)


def test_keys_are_neighbours_of_each_other() -> None:
    assert set(e.NEIGHBOURS["g"]) == set("fhtyvb") and set(e.NEIGHBOURS["q"]) == set("wa") and set(e.NEIGHBOURS["p"]) == set("ol")
    assert all(key in e.NEIGHBOURS[other] for key, around in e.NEIGHBOURS.items() for other in around)


@given(text=TEXT, seed=SEEDS)
def test_case_changes_case_alone(text: str, seed: int) -> None:
    for name in ("upper", "lower", "random-case"):
        after = made(name, text, seed)
        assert len(after) == len(text) and after.lower() == text.lower(), name
    assert not any(letter in "abcdefghijklmnopqrstuvwxyz" for letter in made("upper", text))
    assert not any(letter in "ABCXYZ" for letter in made("lower", text))


@given(text=TEXT, seed=SEEDS)
def test_what_is_put_around_leaves_the_text_whole(text: str, seed: int) -> None:
    for name, template in e.TEMPLATES.items():
        assert made(name, text, seed) == template.replace("{}", text)
    assert made("distractor-before", text, seed) in {f"{each} {text}" for each in e.UNRELATED}
    assert made("distractor-after", text, seed) in {f"{text} {each}" for each in e.UNRELATED}


@given(text=TEXT, seed=SEEDS, tokens=st.integers(1, 600))
def test_a_longer_context_has_the_tokens_asked_for_and_no_sentence_more(text: str, seed: int, tokens: int) -> None:
    count = lambda text: len(text.split())  # noqa: E731
    after = e.edits(tokens, count)["long-context"].edited(text, seed, 0)
    assert after.endswith("\n\n" + text)
    sentences = [each + "." for each in after.removesuffix("\n\n" + text).removesuffix(".").split(". ")]
    assert set(sentences) <= set(e.UNRELATED) and count(" ".join(sentences)) >= tokens > count(" ".join(sentences[:-1]))
    assert len(set(sentences[: len(e.UNRELATED)])) == min(len(sentences), len(e.UNRELATED))


def test_unrelated_sentences_ask_nothing_and_say_each_something_else() -> None:
    assert len(set(e.UNRELATED)) == len(e.UNRELATED) >= 20 and all(each.endswith(".") and each.count(".") == 1 for each in e.UNRELATED)


@given(text=TEXT, seed=SEEDS)
def test_other_scripts_are_read_back(text: str, seed: int) -> None:
    for name, table in (("other-digits", e.DIGITS), ("full-width", e.FULL_WIDTH), ("look-alikes", e.LOOK_ALIKES)):
        after = made(name, text, seed)
        assert after.translate(str.maketrans({value: key for key, value in table.items()})) == text, name
        assert name != "other-digits" or not set(after) & table.keys()
    assert len(differing(text, made("look-alikes", text, seed))) == wanted(sum(each in e.LOOK_ALIKES for each in text), e.LOOK_ALIKE_RATE)
    wide = [one != other for one, other in zip(text.split(), made("full-width", text, seed).split(), strict=True)]
    assert sum(wide) == wanted(sum(bool(set(word) & e.FULL_WIDTH.keys()) for word in text.split()), e.WIDE_SHARE)
    assert not any(set(after) & e.FULL_WIDTH.keys() for after, is_wide in zip(made("full-width", text, seed).split(), wide, strict=True) if is_wide)
    assert all(ord(other) > 127 and ord(own) < 128 for own, other in e.LOOK_ALIKES.items())


@given(text=TEXT)
def test_truncation_cuts_words_at_the_end(text: str) -> None:
    after, words = made("truncated", text), text.split()
    assert text.startswith(after)
    assert after.split() == (words[: len(words) - max(1, round(len(words) / 3))] if len(words) > 1 else words)
    assert after == text if len(words) < 2 else after[-1:].strip() != ""


@pytest.mark.parametrize("name", EDITS)
@given(text=st.text(st.sampled_from("abcxyz 019.?"), min_size=1, max_size=30), seed=SEEDS)
def test_templates_hold(name: str, text: str, seed: int) -> None:
    """All but the user's last turn keeps its tokens, whatever the dialogue."""
    vocabulary, data = TOY, Data("held.jsonl")
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
             {"role": "user", "content": text}, {"role": "assistant", "content": "three"}]  # fmt: skip
    sharegpt = [{"from": {"user": "human", "assistant": "gpt"}.get(each["role"], each["role"]), "value": each["content"]} for each in turns]
    edited = made(name, text, seed)
    for row in ({"messages": turns}, {"conversations": sharegpt}, {"prompt": text, "completion": "three"}):
        assert asked_last(row) == text
        other = asking(row, edited)
        before = vocabulary.chat(turns[:3]) if len(row) == 1 else ""
        whole = vocabulary.tokenizer.decode(vocabulary.prompt(other, data))
        assert whole == f"{before}<|im_start|>user\n{edited}<|im_end|>\n<|im_start|>assistant\n"
        assert asked_last(other) == edited


def test_rows_without_a_turn_of_text_are_none() -> None:
    assert asked_last({"prompt_ids": [1, 2]}) is None
    assert asked_last({"messages": [{"role": "system", "content": "x"}]}) is None
    assert asked_last({"messages": [{"role": "user", "content": [{"type": "image"}]}]}) is None
    assert asked_last({"prompt": "x", "messages": None}) == "x"


def test_edits_are_chosen_by_name_and_kind() -> None:
    assert e.chosen([]) == tuple(EDITS) and e.chosen(["lower", "typos"]) == ("swapped", "dropped", "doubled", "mistyped", "lower")
