"""Ways to cut a table into slices: every token in one of each kind, by what its row, its place and its text say."""

from typing import Any

import numpy as np
import pytest
import toys
from tabled import tokens

from limbeck.batch import Text
from limbeck.errors import DataError
from limbeck.transfer.rows import Rows
from limbeck.transfer.slices import by_certainty, by_class, by_difficulty, by_position, categories, doubts, pieces
from limbeck.transfer.tokens import Tokens
from limbeck.transfer.topics import topics


def test_positions_double() -> None:
    assert by_position(tokens([9], range(9))).place_N.tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4]
    assert by_position(tokens([9], range(9))).names == ["0", "1", "2 to 3", "4 to 7", "8 to 15"]


def test_quarters_are_of_equal_size_and_keep_equals_together() -> None:
    table = tokens([2] * 8, np.zeros(16), teacher_N=np.repeat([3, 1, 2, 4, 8, 7, 6, 5], 2))
    names = [by_difficulty(table).names[place] for place in by_difficulty(table).place_N[::2]]
    assert [names.count(name) for name in dict.fromkeys(sorted(names))] == [2, 2, 2, 2]
    assert names[1] == "easiest quarter" and names[4] == "hardest quarter"
    assert len(set(by_certainty(table).place_N)) == 1  # the same entropy everywhere


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toys.opened(tmp_path_factory.mktemp("bytewise")).vocabulary


def test_classes_of_tokens_by_their_text(bytewise: Any) -> None:
    text = "one 7, té"
    ids = [*bytewise.ids(text), 257]
    table = tokens([len(ids)], np.zeros(len(ids)))
    table = Tokens(table.sequence_N, table.position_N, np.array(ids), table.bytes_B, table.student, table.teacher, table.apart)
    cut = by_class(table, pieces(sorted(set(ids)), bytewise))
    assert [cut.names[place] for place in cut.place_N] == [
        "word start", "word continued", "word continued", "white space", "number", "punctuation", "white space", "word start",
        "part of a character", "part of a character", "end or special"]  # fmt: skip


class Words:
    """A vocabulary whose tokens are pieces of words, or whole words."""

    outcomes = "tokens"

    def __init__(self, names: list[str]) -> None:
        self.map = {name: n for n, name in enumerate(names)}
        self.names, self.end_ids, self.tokenizer = names, frozenset[int](), self
        self.all_special_ids = list[int]()

    def text(self, ids: list[int]) -> str:
        return "".join(self.names[n].replace("Ġ", " ").replace("▁", " ").replace("##", "") for n in ids)

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.names[number]


@pytest.mark.parametrize(
    "names, classes",
    [
        (["The", "Ġcat", "alog", "42", "."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["▁The", "▁cat", "alog", "▁42", "▁."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["the", "cat", "##alog", "42", "."], ["word start", "word start", "word continued", "number", "punctuation"]),
        (["red", "green", "7"], ["word start", "word start", "number"]),
    ],
)  # fmt: skip
def test_words_begin_where_their_tokenizer_says_so(names: list[str], classes: list[str]) -> None:
    table = tokens([len(names)], np.zeros(len(names)))
    table = Tokens(table.sequence_N, table.position_N, np.arange(len(names)), table.bytes_B, table.student, table.teacher, table.apart)
    cut = by_class(table, pieces(range(len(names)), Words(names)))  # type: ignore[arg-type]
    assert [cut.names[place] for place in cut.place_N] == classes


def rows_with(**columns: list[Any]) -> Rows:
    count = len(next(iter(columns.values())))
    told = [{name: values[n] for name, values in columns.items()} | {"row": n} for n in range(count)]
    return Rows([[1]] * count, ["?"] * count, told, [Text.answered([1], [2], each) for each in told])


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(DataError, match=r'no row has the column "topik" to slice by; did you mean "topic"\?'):
        categories(rows_with(topic=["a"], level=[1]), "topik")
    with pytest.raises(DataError, match=r"known: level, topic"):
        categories(rows_with(topic=["a"], level=[1]), "zzz")
    assert categories(rows_with(topic=["a"]), None) is None


def test_empty_categories_and_one_alone_are_said() -> None:
    found = categories(rows_with(category=["a", None, " ", "b", 3]), None)
    assert found == {0: "a", 1: "(none)", 2: "(none)", 3: "b", 4: "3"}
    assert doubts(found) == ["2 of 5 rows have no category; they are one slice, (none)"]
    assert "none to compare" in doubts(categories(rows_with(kind=["a", "a"]), "kind"))[0]
    assert doubts(categories(rows_with(kind=[None, ""]), "kind")) == [
        "no row has a category, so that there are none to compare; name another column with --category"]  # fmt: skip
    many = categories(rows_with(kind=[*range(100), 5]), "kind")
    assert len(set(many.values())) == 41 and many[5] == many[100] == "5"


def test_prompts_are_clustered_by_their_words() -> None:
    draw = np.random.default_rng(0)
    about = {"cook": ["boil", "bake", "fry", "salt", "oven", "soup"], "code": ["loop", "class", "bug", "compile", "stack", "byte"]}
    texts = {n: f"please {' '.join(draw.choice(about['cook' if n % 2 else 'code'], 4))} the {n}" for n in range(40)}
    found = topics(texts)
    assert len(set(found.values())) == 2 and len({found[n] for n in range(0, 40, 2)}) == 1 and found == topics(texts)
    assert set(found[1].split(", ")) < set(about["cook"]) and set(found[0].split(", ")) < set(about["code"])
    assert topics(dict.fromkeys(range(30), "the same")) == {} and topics({0: "a", 1: "b"}) == {}
