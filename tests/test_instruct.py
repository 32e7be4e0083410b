"""Prompts made by the teacher: what is new, what is refused and counted, rounds that resume, and users that are played."""

import random
import re
from itertools import combinations

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.answers import Answer, Bill, Given, Question
from limbeck.data import Data
from limbeck.dialogue import OPENING, Dialogue, Dialogues, exchanged
from limbeck.errors import DataError, RecipeError
from limbeck.instruct import Instruct, Novelty, common_subsequence, rouge_l, seed_tasks, tasks_of

ROWS = st.lists(st.sampled_from("abcd"), max_size=8)
SEEDS = ["Name three rivers of Europe.", "Write a haiku about the sea.", "Explain why the sky is blue at noon."]


def subsequences(row: list[str]) -> set[tuple[str, ...]]:
    return {each for size in range(len(row) + 1) for each in combinations(row, size)}


@given(ROWS, ROWS)
def test_common_subsequences_are_those_of_the_definition(one: list[str], other: list[str]) -> None:
    longest = max(map(len, subsequences(one) & subsequences(other)))
    assert common_subsequence(one, other) == longest
    assert rouge_l(one, other) == (2 * longest / (len(one) + len(other)) if longest else 0.0)


@given(st.lists(ROWS.filter(bool), min_size=1, max_size=8), ROWS.filter(bool), st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
def test_novelty_misses_nothing_by_its_short_cut(known: list[list[str]], new: list[str], similarity: float) -> None:
    novelty = Novelty(similarity)
    for each in known:
        novelty.add(" ".join(each))
    slow = "duplicate" if new in known else "similar" if any(rouge_l(new, each) >= similarity for each in known) else None
    assert novelty.fault(" ".join(new)) == slow


def test_the_bound_itself_is_refused() -> None:
    novelty = Novelty(0.7)
    novelty.add("a b c d e f g h i j")
    assert rouge_l("abcdefgxyz", "abcdefghij") == 0.7
    assert novelty.fault("A b c, d e f g x y z!") == "similar"
    assert novelty.fault("a b c d e f v x y z") is None


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("4. Name a river.\n5. Name\n   a lake.\n", ["Name a river.", "Name a lake."]),
        ("Sure! Here are tasks:\n\n4) Name a river.\n\n5) Name a lake.\n\nI hope this helps!", ["Name a river.", "Name a lake."]),
        ("**4.** **Rivers**: Name one.\n### Task 5: Name a lake.", ["Rivers: Name one.", "Name a lake."]),
        ("4.\n5. In 3.5 hours,\n3.5 miles are walked; how fast is that?", ["In 3.5 hours, 3.5 miles are walked; how fast is that?"]),
        ("The Rhine, the Rhone and the Danube.", []),
    ],
)
def test_lists_are_read_as_models_write_them(text: str, tasks: list[str]) -> None:
    assert tasks_of(text) == tasks


FAULTS = {
    "Name a river.": "too short",
    "Name a river " + "and a lake " * 50 + "please.": "too long",
    "- Name a river of Asia.": "malformed",
    "1. Name a river of Asia.": "malformed",
    "Draw what a river looks like.": "refused word",
    "Describe the Image of a river.": "refused word",
    "Imagine a river without water.": None,
    "Describe a river whose source is the": "unfinished",
    "Describe a river in these words:": "unfinished",
    "Translate the following sentence into French.": "unanswerable",
    "What is wrong with this code?": "unanswerable",
    "Count the verbs in the sentences above.": "unanswerable",
    "Tell whether the claim is true.": "unanswerable",
    "Explain the text of the Magna Carta.": None,
    "Given a paragraph, find its longest word.": "unanswerable",
    "Translate the following sentence into French: I saw a river.": None,
    "Sort the given numbers from small to large, 9 2 5.": None,
    "Übersetze ins Englische: Der Fluss ist lang.": None,
}


def seeds_of(folder, rows: list[dict] | None = None) -> Data:
    return Data(toys.jsonl(folder / "seeds.jsonl", [{"prompt": seed} for seed in SEEDS] if rows is None else rows))


@pytest.mark.parametrize("task", FAULTS)
def test_tasks_are_refused_for_what_is_wrong_with_them(task: str, tmp_path) -> None:
    assert Instruct(seeds_of(tmp_path), 1).fault(task) == FAULTS[task]


def test_seeds_are_read_in_every_form(tmp_path) -> None:
    rows = [
        {"prompt": "Name a\nriver."},
        {"instruction": "Translate.", "instances": [{"input": "the river", "output": "le fleuve"}]},
        {"instruction": "Translate.", "input": "", "output": "?"},
        {"messages": [{"role": "user", "content": "Name a lake."}, {"role": "assistant", "content": "Garda."}]},
    ]
    assert seed_tasks(seeds_of(tmp_path, rows)) == [["Name a river."], ["Translate.", "Translate. the river"], ["Translate."], ["Name a lake."]]
    for wrong, match in [([{"task": "Name"}], "row 1: found columns task"), ([], "no rows"), ([{"prompt": "river " * 61}], "more than 60")]:
        with pytest.raises(DataError, match=match):
            Instruct(seeds_of(tmp_path, wrong), 1).run(lambda questions: [], "toy")


class Teacher:
    """Answers by a function of the question; what it can pay for is bounded. Remembers what was asked, and answers as a ledger does."""

    def __init__(self, says, purse: int = 10**9) -> None:
        self.says, self.purse, self.calls, self.known = says, purse, [], {}

    def __call__(self, questions):
        found = []
        for question in questions:
            for sample in question.samples:
                name = question.key, sample
                if name not in self.known and self.purse > 0:
                    self.purse -= 1
                    self.calls.append(name)
                    self.known[name] = self.says(question, sample)
                if name in self.known:
                    found.append(Given(question, sample, self.known[name], Bill(completion_tokens=1)))
        assert len({(each.question.key, each.sample) for each in found}) == len(found), "the same was asked twice at once"
        return found[::-1]  # any order


def messy(question: Question, sample: int) -> Answer:
    """A list of random tasks, and after them one of each fault."""
    draw = random.Random(question.key + str(sample))
    fresh = [" ".join(draw.choice(toys.WORDS) + str(draw.randrange(1000)) for _ in range(6)) for _ in range(3)]
    faulty = [fresh[0].title(), f"{fresh[1]} again", SEEDS[1], "Plot the height of a river.", "Rivers."]
    return Answer("\n".join(f"{n}. {task}" for n, task in enumerate([*fresh, *faulty, "Name the riv"], 9)), finish="length")


def test_every_task_is_counted_for_what_became_of_it(tmp_path) -> None:
    teacher = Teacher(messy)
    made = Instruct(seeds_of(tmp_path), 100, answers=2, rounds=2).run(teacher, "toy")
    assert made.counts == {"kept": 12, "duplicate": 8, "similar": 4, "refused word": 4, "too short": 4, "cut": 4}
    assert (made.rounds, made.ended, made.bill.completion_tokens) == (2, "rounds", 4)
    assert [(row["made_by"], row["round"]) for row in made.rows] == [("toy", 0)] * 6 + [("toy", 1)] * 6
    assert Instruct(seeds_of(tmp_path), 7, answers=2).run(teacher, "toy").rows == made.rows[:7], "fewer are the first of more"


def test_a_round_shows_seeds_and_made_tasks(tmp_path) -> None:
    shown = []

    def says(question: Question, sample: int) -> Answer:
        shown.append(re.findall(r"^\d+\. (.+)$", question.messages[0]["content"], re.MULTILINE))
        assert f"write tasks {len(shown[-1]) + 1} to {len(shown[-1]) + 5}." in question.messages[0]["content"]
        return messy(question, sample)

    made = Instruct(seeds_of(tmp_path), 100, examples=4, made=2, new=5, answers=3, rounds=2).run(Teacher(says), "toy")
    first, own = shown[:3], {row["prompt"] for row in made.rows if row["round"] == 0}
    assert all(sorted(tasks) == sorted(SEEDS) for tasks in first)
    for tasks in shown[3:]:
        assert len(own & set(tasks)) == 2 and len(set(SEEDS) & set(tasks)) == 2 and len(tasks) == 4


def test_each_request_of_each_round_shows_other_tasks(tmp_path) -> None:
    shown = set()
    many = seeds_of(tmp_path, [{"prompt": f"Name river {n}."} for n in range(50)])
    Instruct(many, 1, answers=2).run(Teacher(lambda question, sample: shown.add(question.key) or Answer("No.")), "toy")
    assert len(shown) == 6


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 14))
def test_stopped_anywhere_and_paid_again_it_makes_the_same(paid: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "stream", lambda data: iter([{"prompt": seed} for seed in SEEDS]))
        work, whole, killed = Instruct(Data("seeds.jsonl"), 45, answers=3), Teacher(messy), Teacher(messy, paid)
        wanted, begun = work.run(whole, "toy"), work.run(killed, "toy")
        assert (wanted.ended, begun.ended, len(begun.rows)) == ("count", "purse", 3 * paid)
        killed.purse = 10**9
        assert work.run(killed, "toy") == wanted
        assert sorted(killed.calls) == sorted(whole.calls) and len(set(whole.calls)) == 15


def test_a_teacher_without_ideas_is_not_asked_for_ever(tmp_path) -> None:
    made = Instruct(seeds_of(tmp_path), 5, answers=2).run(Teacher(lambda question, sample: Answer("No.")), "toy")
    assert (made.rows, made.counts, made.rounds, made.ended) == ([], {"no list": 6}, 3, "dry")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"made": 8}, {"similarity": 0.0}, {"longest": 3}, {"seed": -1}])
def test_nonsense_is_refused(wrong: dict) -> None:
    with pytest.raises(RecipeError, match=f"Instruct.*{next(iter(wrong))}"):
        Instruct(**{"seeds": Data("seeds.jsonl"), "count": 1, **wrong})


# Dialogues

CALL = [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": "Let me look.", "tool_calls": CALL},
    {"role": "tool", "content": "12:00", "tool_call_id": "1"},
]


def begun(answer: Answer, sample: int = 0, **row) -> Given:
    return Given(Question({"prompt": "Name a river.", **row}, Data("prompts.jsonl"), (0, 1)), sample, answer, Bill())


def echo(question: Question, sample: int) -> Answer:
    return Answer(f"{len(question.messages)} of {sample}", reasoning=f"I count {len(question.messages)}")


def test_the_user_sees_the_roles_exchanged() -> None:
    assert exchanged([*HISTORY, {"role": "assistant", "content": "Noon."}, {"role": "user", "content": [{"type": "text", "text": "Ah"}]}]) == [
        {"role": "assistant", "content": "What time is it?"},
        {"role": "user", "content": "Let me look.\n\nNoon."},
        {"role": "assistant", "content": "Ah"},
    ]


def test_turns_are_asked_in_turn_and_reasoning_stays_apart() -> None:
    teacher, user = Teacher(echo), Teacher(lambda question, sample: Answer(f"User: and {len(question.messages)}?", reasoning="unseen"))
    asked = []
    teacher.says = lambda question, sample: asked.append(question.messages) or echo(question, sample)
    (one,) = Dialogues(turns=3).run([begun(Answer("The Rhine.", reasoning="Big."), tools=TOOLS, topic="rivers")], teacher, user)
    assert one.row() == {
        "messages": [
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "content": "The Rhine.", "reasoning_content": "Big."},
            {"role": "user", "content": "and 4?"},  # request, opening, two turns
            {"role": "assistant", "content": "3 of 0", "reasoning_content": "I count 3"},
            {"role": "user", "content": "and 6?"},
            {"role": "assistant", "content": "5 of 0", "reasoning_content": "I count 5"},
        ],
        "topic": "rivers",
        "tools": TOOLS,
    }
    assert one.row(inline=True)["messages"][1] == {"role": "assistant", "content": "<think>\nBig.\n</think>\n\nThe Rhine."}
    assert asked[1] == [{name: said for name, said in each.items() if name != "reasoning_content"} for each in one.messages[:5]]
    assert (one.ended, len(one.given)) == ("turns", 4)


def test_a_user_is_shown_what_a_template_can_render() -> None:
    shown = []
    user = Teacher(lambda question, sample: shown.append(question.messages) or Answer("[DONE]"))
    Dialogues().run([begun(Answer("Noon."), messages=HISTORY, tools=TOOLS)], Teacher(echo), user)
    ((request, *rest),) = shown
    assert request["role"] == "system" and "[DONE] alone" in request["content"]
    assert [(each["role"], each["content"]) for each in rest] == [
        ("user", OPENING), ("assistant", "What time is it?"), ("user", "Let me look.\n\nNoon."),
    ]  # fmt: skip


def test_calls_of_tools_survive_and_end_a_dialogue() -> None:
    user = Teacher(lambda question, sample: Answer("And now?"))
    called = Answer("", finish="tools", tool_calls=CALL)
    teacher = Teacher(lambda question, sample: called if question.row["tools"] == TOOLS else None)
    (one,) = Dialogues().run([begun(Answer("Noon."), messages=HISTORY, tools=TOOLS)], teacher, user)
    wanted = [*HISTORY, {"role": "assistant", "content": "Noon."}, {"role": "user", "content": "And now?"}]
    assert one.row() == {"messages": [*wanted, {"role": "assistant", "content": "", "tool_calls": CALL}], "tools": TOOLS}
    assert one.ended == "tools"


@pytest.mark.parametrize(
    ("ended", "said", "answer", "messages"),
    [
        ("user", Answer("Thank you! [DONE]"), None, 2),
        ("user", Answer(" "), None, 2),
        ("repeated", Answer("user: Name a river."), None, 2),
        ("repeated", Answer("The Rhine."), None, 2),
        ("cut", Answer("And a", finish="length"), None, 2),
        ("cut", Answer("And a lake?"), Answer("Gar", finish="length"), 2),
        ("cut", Answer("And a lake?"), Answer("", reasoning="Hm"), 2),
        ("turns", Answer("And a lake?"), Answer("Garda."), 4),
    ],
)
def test_dialogues_end_with_a_whole_answer(ended: str, said: Answer, answer: Answer | None, messages: int) -> None:
    (one,) = Dialogues(turns=2).run([begun(Answer("The Rhine."))], Teacher(lambda q, s: answer), Teacher(lambda q, s: said))
    assert (one.ended, len(one.messages), one.messages[-1]["role"]) == (ended, messages, "assistant")


def both(question: Question, sample: int) -> Answer:
    """Teacher and user in one."""
    return echo(question, sample) if question.messages[0]["role"] == "user" else Answer(f"And then, {question.key}?")


def plain(dialogues: list[Dialogue]) -> list[tuple]:
    return [(each.row(), each.ended) for each in dialogues]


@pytest.mark.parametrize("paid", range(12))
def test_dialogues_stopped_anywhere_and_paid_again_are_the_same(paid: int) -> None:
    first = [begun(Answer("The Rhine."), sample) for sample in (0, 1)] + [begun(Answer("The Po."), prompt="Name another.")]
    first.append(first[0])  # the same once more is asked once
    whole, killed = Teacher(both), Teacher(both, paid)
    wanted = plain(Dialogues(turns=3).run(first, whole))
    stopped = plain(Dialogues(turns=3).run(first, killed))
    assert len(whole.calls) == 12 and "purse" in {ended for _, ended in stopped}
    assert all(row["messages"] == full["messages"][: len(row["messages"])] for (row, _), (full, _) in zip(stopped, wanted, strict=True))
    killed.purse = 10**9
    assert plain(Dialogues(turns=3).run(first, killed)) == wanted
    assert sorted(killed.calls) == sorted(whole.calls)


def test_prompts_that_are_continued_have_no_turns() -> None:
    question = Question({"prompt": "Name a river."}, Data("prompts.jsonl", template="plain"))
    with pytest.raises(RecipeError, match=r"prompts\.jsonl: a dialogue has turns"):
        Dialogues().run([Given(question, 0, Answer("The Rhine."), Bill())], Teacher(echo))
