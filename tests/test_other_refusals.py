"""What other kinds of models cannot do, and rows and classes that do not fit them: one clear line each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import other_toys
import pytest
import toys
from test_other_models import drawn, home, learner, model_of  # noqa: F401  # home is a fixture
from test_other_runs import run_of

import limbeck as lb
from limbeck.batch import Batch, Span, Text
from limbeck.errors import DataError, LimbeckError, ModelError, RecipeError, VocabularyError
from limbeck.masking import MaskedVocabulary
from limbeck.objective import Objective
from limbeck.sources import Share


def refused(match: str, kind: type[LimbeckError], what: Any) -> None:
    with pytest.raises(kind, match=match) as found:
        what()
    assert "\n" not in str(found.value)


def test_classes_that_differ_are_refused(home: Path, tmp_path: Path) -> None:
    def against(student: str, teacher: str) -> Any:
        return lambda: lb.Local(teacher, dtype="float32").load(learner(student))

    two = other_toys.folder(tmp_path / "two", "bert-classes", labels={0: "no", 1: "yes"})
    other = other_toys.folder(tmp_path / "other", "bert-classes", labels={0: "bad", 1: "good", 2: "fair"})
    mine = model_of(home, "bert-classes", "student")
    wrong = VocabularyError
    refused(r"the student tells 3 classes apart \(bad, fair, good\) and the teacher 2 \(no, yes\); give", wrong, against(mine, two))
    refused(r"name 2 of 3 classes otherwise \(class 1 is 'fair' / 'good', class 2 is 'good' / 'fair'\)", wrong, against(mine, other))
    refused(r"the student tells 4 classes apart \(0, 1, 2, 3\) and the teacher 3", wrong, against("other_toys:small(classes=4)", "other_toys:small"))
    refused("the student reads a column of numbers and the teacher text", wrong, against("other_toys:named", mine))
    refused("tells 3 classes apart and the teacher 258 tokens; give two models of one kind", wrong, against(mine, str(home / "llama")))
    refused("tells 258 tokens apart and the teacher 3 classes", wrong, against(str(home / "llama"), mine))
    refused(
        "tells 261 hidden tokens apart and the teacher 261 tokens", wrong, against(model_of(home, "bert", "student"), model_of(home, "t5", "student"))
    )
    against(mine, model_of(home, "distilbert-classes", "teacher"))()
    against(mine, "other_toys:named")()


def test_rows_that_a_classifier_cannot_use_are_refused(home: Path, tmp_path: Path) -> None:
    def on(name: str, *rows: dict[str, Any]) -> Any:
        student, path = learner(name), toys.jsonl(tmp_path / "rows.jsonl", list(rows))
        return lambda: student.forward(lb.Corpus(path, sequences=len(rows)).load(student.live.vocabulary, Share()).draw(0, student))

    text, numbers, six = model_of(home, "bert-classes", "student"), "other_toys:small", [0.0] * 6
    refused(r"a row has no label, and the model tells 3 classes apart: bad, fair, good; write one", DataError, on(text, {"text": "a"}))
    refused(r"the label 'goood', .*did you mean \"good\"", DataError, on(text, {"text": "a", "label": "goood"}))
    refused("a row has the label 3, and the model tells 3 classes apart: 0, 1, 2", DataError, on(numbers, {"features": six, "label": 3}))
    refused("a classifier of text reads the column text", DataError, on(text, {"features": six, "label": 0}))
    refused("reads the column features or image, found columns label, size", DataError, on(numbers, {"label": 0, "size": 3}))
    refused('differ in their column "features"', DataError, on(numbers, {"features": six, "label": 0}, {"features": [1.0], "label": 0}))
    refused(r"fails on rows of \[2\] numbers \(mat1 and mat2", ModelError, on(numbers, {"features": [0.0, 1.0], "label": 0}))


@pytest.mark.parametrize(
    "name, match",
    [
        ("other_toys:headless", "without a linear layer, which does not say how many classes there are; give it labels"),
        ("other_toys:weightless", "gave Identity, expected a torch module with weights"),
        ("other_toys:failing", "raised KeyError: 'size'; mend the function"),
        ("other_toys:nothing", "has no attribute 'nothing'"),
        ("other_toys:small(8)", "give each by its name"),
        ("other_toys:small(width=print(1))", "give each by its name"),
        ("other_toys:small(width=)", "cannot read the settings"),
        ("other_toys:named(labels=['a','a'])", "must be a list of at least two names, each once"),
        ("other_toys:neighbours", r"normalises over the rows of a pass \(BatchNorm\)"),
    ],
)
def test_modules_that_are_no_students_are_refused(name: str, match: str) -> None:
    refused(match, LimbeckError, lambda: learner(name))


def test_a_module_that_is_no_classifier_is_refused(home: Path) -> None:
    student = learner("other_toys:wrong")
    refused(
        r"gave \[21\] for 7 rows of 3 classes; a classifier gives logits \[7, 3\]",
        ModelError,
        lambda: student.forward(drawn(home, "module", student)),
    )


@pytest.mark.parametrize("kind", ["bert-classes", "module", "bert", "t5"])
def test_what_a_kind_cannot_do_is_refused_when_it_is_loaded(kind: str, home: Path, tmp_path: Path) -> None:
    made = run_of(home, kind)
    prompts = toys.jsonl(tmp_path / "prompts.jsonl", toys.rows(4))
    own = replace(made, source=lb.OnPolicy(prompts), objective=Objective([lb.ReverseKL()]), evaluations=[])
    answered = replace(made, evaluations=[lb.Likelihood(prompts, own_text=True)])
    for recipe in (own, answered):
        refused(
            "and does not write here; draw ready rows with Corpus", RecipeError, lambda r=recipe: lb.distill(r, tmp_path / type(r.source).__name__)
        )
    adapted = replace(made, student=replace(made.student, lora=lb.LoRA(4)))
    refused("adapters are put on causal language models alone; leave out lora", RecipeError, adapted.open_pair)
    if kind in ("bert-classes", "module"):
        inside = replace(made, objective=Objective([lb.HiddenStates()]))
        refused("whose layers are not compared; give an objective without HiddenStates", ModelError, inside.open_all)
        checkpoints = replace(made, student=replace(made.student, gradient_checkpointing=True))
        if kind == "module":
            refused("cannot checkpoint its activations", RecipeError, checkpoints.open_pair)
    else:
        attending = replace(made, objective=Objective([lb.Attentions()]))
        refused("has no attention to compare|attends in a way", ModelError, attending.open_all)
    if kind != "t5":
        refused(
            "a cache keeps scores of running text; let a live teacher score", RecipeError, learner(model_of(home, kind, "student")).live.see_cacheable
        )


def test_text_that_a_kind_does_not_read_is_refused(home: Path, tmp_path: Path) -> None:
    pairs, masked = learner(model_of(home, "t5", "student")), learner(model_of(home, "bert", "student"))
    refused("reads prompt and completion, found columns text", DataError, lambda: pairs.live.vocabulary.texts({"text": "a"}, lb.Data("x"), 99))
    refused("reads the column text, found columns prompt", DataError, lambda: masked.live.vocabulary.texts({"prompt": "a"}, lb.Data("x"), 99))
    several = Batch.of([Text([1, 2, 3, 4, 5], [Span(1, 2), Span(3, 5)])], "corpus")
    refused("writes one completion, at the end", DataError, lambda: pairs.forward(several))
    refused(
        "Masked hides tokens from a masked model, and the student is none; give Corpus",
        RecipeError,
        lambda: lb.Masked(str(home / "bert.jsonl")).load(pairs.live.vocabulary, Share()),
    )
    refused("Masked.share is a share of the tokens", RecipeError, lambda: lb.Masked("x", share=0))
    refused("has no mask token", VocabularyError, lambda: MaskedVocabulary(toys.tokenizer(None)))
