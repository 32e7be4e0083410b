"""The start-up self-test passes on what is right, and finds planted faults."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM

from limbeck import loss
from limbeck.adapters import LoRA
from limbeck.data import Data
from limbeck.divergence import ForwardKL, ReverseKL
from limbeck.errors import LimbeckError, RecipeError
from limbeck.objective import CrossEntropy, Objective
from limbeck.selftest import self_test
from limbeck.student import Student
from limbeck.teachers import Local, Silent


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("home")
    toys.folder(made / "student", seed=1)
    toys.folder(made / "teacher", seed=2, layers=3)
    return made


@pytest.fixture(scope="module")
def pair(home) -> tuple[Student, Local]:
    student = Student(str(home / "student"), dtype="float32").load(1)
    return student, Local(str(home / "teacher"), dtype="float32").load(student)


BOTH = Objective([ForwardKL(), 0.5 * ReverseKL(), CrossEntropy().on("corpus")])


def test_the_self_test_passes_and_leaves_nothing_behind(pair) -> None:
    chunks = loss.CHUNK_ROWS
    done = self_test(*pair, BOTH)
    assert done.gradient is not None and 0.01 < done.gradient < 1
    assert done.to_itself_nats < 1e-6 and done.chunked_relative < 1e-4
    assert chunks == loss.CHUNK_ROWS and all(weight.grad is None for weight in pair[0].live.module.parameters())
    assert self_test(pair[0], Silent(), Objective([CrossEntropy()])).gradient is None


def test_a_copy_of_the_student_teaches_nothing(home, tmp_path, pair) -> None:
    folder = shutil.copytree(home / "student", tmp_path / "copy")
    for dtype in ("float32", "bfloat16"):
        copy = Local(str(folder), dtype=dtype).load(pair[0])
        with pytest.raises(RecipeError, match=r"says what the student .* says already"):
            self_test(pair[0], copy, Objective([ReverseKL()]))
    self_test(pair[0], Local(str(folder), dtype="float32").load(pair[0]), BOTH)  # beside the text it is an anchor


@pytest.mark.parametrize("near", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("temperature", [4.0, 20.0])
def test_rounding_that_a_temperature_multiplies_is_no_fault(home, tmp_path, pair, near, temperature) -> None:
    folder = shutil.copytree(home / "student", tmp_path / "near")
    made = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1 + near * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    made.save_pretrained(folder)
    teacher = Local(str(folder), dtype="float32").load(pair[0])
    done = self_test(pair[0], teacher, Objective([ForwardKL(temperature=temperature), CrossEntropy()]))
    assert done.gradient is not None and done.gradient > 0


def test_fresh_adapters_say_what_the_student_says_at_first(home) -> None:
    adapted = Student(str(home / "student"), dtype="float32", lora=LoRA(rank=2)).load(1)
    done = self_test(adapted, Local("@student").load(adapted), Objective([ForwardKL()]))
    assert done.gradient is not None and done.gradient < 1e-5


def test_a_term_without_a_gradient_is_found(pair, monkeypatch) -> None:
    rows = ForwardKL.rows

    def flat(self, student, said, tokens):
        nats_C, gradient_CV = rows(self, student, said, tokens)
        return nats_C, gradient_CV.zero_()

    monkeypatch.setattr(ForwardKL, "rows", flat)
    with pytest.raises(RecipeError, match=r"the gradient of ForwardKL is 0 of the text's"):
        self_test(*pair, Objective([ForwardKL()]))


def test_a_gradient_that_is_no_number_is_found(pair, monkeypatch) -> None:
    rows = ForwardKL.rows
    monkeypatch.setattr(ForwardKL, "rows", lambda self, *given: (rows(self, *given)[0], rows(self, *given)[1] * float("nan")))
    with pytest.raises(LimbeckError, match="the gradient of ForwardKL is nan"):
        self_test(*pair, Objective([ForwardKL()]))


def test_a_divergence_that_is_not_zero_to_oneself_is_found(pair, monkeypatch) -> None:
    rows = ReverseKL.rows
    monkeypatch.setattr(ReverseKL, "rows", lambda self, *given: (rows(self, *given)[0] + 1e-3, rows(self, *given)[1]))
    with pytest.raises(LimbeckError, match=r"ReverseKL of the student to itself is 0\.001 nats, and should be 0"):
        self_test(*pair, BOTH)


@pytest.mark.parametrize("what", ["nats", "gradient"])
def test_a_chunk_that_drops_a_row_is_found(what: str, pair, monkeypatch) -> None:
    if what == "gradient":
        add = loss._Gradients.add

        def dropping(self, head, hidden_CD, rows, gradient_CV):
            add(self, head, hidden_CD, rows, gradient_CV)
            self.to_hidden_ND[rows][-1] = 0

        monkeypatch.setattr(loss._Gradients, "add", dropping)
    else:
        slices = loss.slices
        monkeypatch.setattr(loss, "slices", lambda count, size: (slice(s.start, max(s.start + 1, s.stop - 1)) for s in slices(count, size)))
    with pytest.raises(LimbeckError, match="taken in chunks differs from its formula"):
        self_test(*pair, Objective([CrossEntropy()]))


def test_texts_of_the_data_are_among_the_rows(pair) -> None:
    seen = list[torch.Tensor]()
    teacher = SimpleNamespace(score=lambda parts: (seen.append(parts[0].tokens_T), *Silent().score(parts))[1:], opened=None)
    (text,) = pair[0].live.vocabulary.texts({"text": "sun " * 40}, Data("x", template="plain"), 200)[:1]
    self_test(pair[0], teacher, Objective([CrossEntropy()]), [text])  # pyright: ignore[reportArgumentType]
    assert len(seen[0]) == 3 * 24
