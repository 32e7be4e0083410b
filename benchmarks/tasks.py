"""What three small tasks say of SmolLM2-135M-Instruct and of the same model less one of its layers, on this processor.

    python benchmarks/tasks.py

Own rows, in our own words: sums of two numbers (`prompt`, `answer`: Number), everyday questions with four options (as MMLU has them: the letter
written, and the likelihood of the letters), short functions with their tests (as HumanEval has them). The layer that is left out is the
one that changes the sums' hidden states least; nothing is trained. Writes `benchmarks/results/tasks.json`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from measure import machine

from limbeck.files import write_json
from limbeck.quickstart import converted, packaged_teacher
from limbeck.shrink import Shape, shrink
from limbeck.transfer.measure import evaluate_transfer
from limbeck.transfer.rows import Asked
from limbeck.transfer.subjects import asked_for
from limbeck.transfer.tasks import TasksAsked

RESULTS = Path(__file__).parent / "results"
SUMS = [{"prompt": f"What is {a} + {b}?", "answer": a + b} for a in range(2, 10) for b in range(11, 19)]
OPTIONS = [
    ("Which of these is a fruit?", "apple", "hammer", "river", "cloud"), ("Which animal barks?", "dog", "cat", "cow", "fish"),
    ("What do bees make?", "honey", "milk", "bread", "paper"), ("Which season is the coldest?", "winter", "summer", "spring", "autumn"),
    ("What is frozen water called?", "ice", "steam", "sand", "oil"), ("Which of these can fly?", "eagle", "horse", "whale", "snail"),
    ("What is the capital of France?", "Paris", "Rome", "Berlin", "Madrid"), ("How many legs has a spider?", "eight", "two", "four", "six"),
    ("Which planet do we live on?", "Earth", "Mars", "Venus", "Saturn"), ("What colour is grass?", "green", "purple", "white", "black"),
    ("Which of these is a metal?", "iron", "wood", "glass", "wool"), ("What do you read?", "a book", "a spoon", "a shoe", "a lamp"),
    ("Which is the largest?", "an elephant", "a mouse", "a fox", "a bee"), ("What is used to cut paper?", "scissors", "a pillow", "a cup", "soap"),
    ("Where do fish live?", "in water", "in trees", "in the desert", "in clouds"), ("Which of these is hot?", "fire", "snow", "ice", "frost"),
]  # fmt: skip
CHOICES = [
    {"question": question, "choices": [*wrong[:place], right, *wrong[place:]], "answer": place}
    for question, right, *wrong in OPTIONS for place in range(4)
]  # fmt: skip
FUNCTIONS = [
    ("double", "x", "Return twice x.", "return 2 * x", "f(3) == 6 and f(-1) == -2"), ("is_even", "n", "Return True if n is even, else False.",
     "return n % 2 == 0", "f(4) and not f(7)"), ("largest", "numbers", "Return the largest number of a list.", "return max(numbers)",
     "f([3, 9, 2]) == 9"),
    ("total", "numbers", "Return the sum of a list of numbers.", "return sum(numbers)", "f([1, 2, 3]) == 6"), ("shout", "text",
     "Return the text in capital letters.", "return text.upper()", "f('ab') == 'AB'"), ("backwards", "text", "Return the text reversed.",
     "return text[::-1]", "f('abc') == 'cba'"), ("square", "x", "Return x times x.", "return x * x", "f(5) == 25"), ("first", "items",
     "Return the first item of a list.", "return items[0]", "f([7, 8]) == 7"),
]  # fmt: skip
PROGRAMS = [
    {"prompt": f'def {name}({what}):\n    """{says}"""\n', "entry_point": name, "canonical_solution": f"    {body}\n",
     "test": f"def check(f):\n    assert {test}\n"} for name, what, says, body, test in FUNCTIONS
]  # fmt: skip


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        teacher = str(converted(packaged_teacher()))
        files = [jsonl(home / f"{task}.jsonl", rows) for task, rows in (("sums", SUMS), ("choices", CHOICES), ("programs", PROGRAMS))]
        answered = jsonl(home / "answered.jsonl", [{"prompt": row["prompt"], "completion": f"It is {row['answer']}."} for row in SUMS])
        shrink(teacher, Shape(layers=29), home / "student", answered)
        subjects = asked_for([], str(home / "student"), teacher, baselines=False)
        found = evaluate_transfer(subjects, Asked(answered, rows=8, max_tokens=16), home / "out", TasksAsked(files, max_tokens=96))
    tasks = {name: {**task, "samples": task["samples"][:2]} for name, task in found["tasks"].items()}
    write_json(RESULTS / "tasks.json", {"machine": machine(), "tasks": tasks})


if __name__ == "__main__":
    main()
