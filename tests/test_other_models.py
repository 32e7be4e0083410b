"""Other kinds of models by the axis rule alone: values against transformers and slow formulas, what must change no gradient, whole runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import other_toys
import pytest
import torch
import toys
from other_toys import MASKED, PAIRS, TEXTS
from test_objective import error, gradients
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import limbeck as lb
from limbeck.batch import Batch
from limbeck.classify import ModuleClassifier, TextClassifier
from limbeck.insides import Layers
from limbeck.kinds import open_kind
from limbeck.machine import Opening
from limbeck.masked import MaskedModel
from limbeck.masking import READ, MaskedVocabulary
from limbeck.models import Model
from limbeck.objective import Objective
from limbeck.pairing import between
from limbeck.seq2seq import PairModel
from limbeck.sources import Share

MODULES = ("module",)
ALL = (*TEXTS, *MODULES, *MASKED, *PAIRS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher and text of every kind."""
    made = tmp_path_factory.mktemp("others")
    toys.licensed(made)
    for kind in ALL:
        toys.jsonl(made / f"{kind}.jsonl", other_toys.rows(kind, 24))
        toys.jsonl(made / f"{kind}-heldout.jsonl", other_toys.rows(kind, 12, seed=2))
        if kind not in MODULES:
            other_toys.folder(made / f"{kind}-student", kind, 1)
            other_toys.folder(made / f"{kind}-teacher", kind, 2, layers=3)
    toys.folder(made / "llama", seed=1)
    return made


def model_of(home: Path, kind: str, who: str) -> str:
    if kind in MODULES:
        return f"other_toys:small(width={8 if who == 'student' else 32}, seed={1 if who == 'student' else 2})"
    return str(home / f"{kind}-{who}")


def learner(name: str, **more: Any) -> lb.Student:
    return lb.Student(name, dtype="float32", **more).load(10)


def drawn(home: Path, kind: str, student: lb.Student, rows: int = 7) -> Batch:
    source = lb.Corpus(str(home / f"{kind}.jsonl"), sequences=rows)
    return source.load(student.live.vocabulary, Share()).draw(0, student)


def pair(home: Path, kind: str, objective: Any, teacher: str = "teacher") -> tuple[lb.Student, lb.Local, Objective, Batch]:
    student = learner(model_of(home, kind, "student"))
    scorer = lb.Local(model_of(home, kind, teacher), dtype="float32").load(student)
    made = between(objective if isinstance(objective, Objective) else Objective([objective]), student, scorer, 0)
    return student, scorer, made, drawn(home, kind, student)


def test_a_model_is_opened_as_what_its_files_say(home: Path) -> None:
    kinds = dict.fromkeys(TEXTS, TextClassifier) | dict.fromkeys(MODULES, ModuleClassifier) | dict.fromkeys(MASKED, MaskedModel)
    kinds |= dict.fromkeys(PAIRS, PairModel)
    for kind, cls in kinds.items():
        assert type(open_kind(model_of(home, kind, "student"), Opening("float32"))) is cls
    assert type(open_kind(str(home / "llama"), Opening("float32"))) is Model


# Against transformers and the formulas


def ce_N(student: lb.Student, batch: Batch) -> Tensor:
    return student.measure(batch, lb.Silent().about(batch), Objective([lb.CrossEntropy()]))["CrossEntropy"].double()


@pytest.mark.parametrize("kind", TEXTS)
def test_a_classifiers_cross_entropy_is_that_of_transformers(kind: str, home: Path) -> None:
    student = learner(model_of(home, kind, "student"))
    batch, whole = drawn(home, kind, student), AutoModelForSequenceClassification.from_pretrained(model_of(home, kind, "student")).eval()
    assert len({len(ids) for ids in batch.prompts()}) > 2 and len(batch.places_N) == 7
    for found, ids, label in zip(ce_N(student, batch), batch.prompts(), batch.tokens_N, strict=True):
        with torch.no_grad():
            wanted = whole(input_ids=torch.tensor([ids]), labels=label[None]).loss  # alone, without padding
        assert float(found) == pytest.approx(float(wanted), rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_models_cross_entropy_is_that_of_transformers(kind: str, home: Path) -> None:
    student = learner(model_of(home, kind, "student"))
    source = lb.Masked(str(home / f"{kind}.jsonl"), 0.4, sequences=7).load(student.live.vocabulary, Share(3))
    batch, whole = source.draw(1, student), AutoModelForMaskedLM.from_pretrained(model_of(home, kind, "student")).eval()
    found_N, row = ce_N(student, batch), 0
    for b, tokens in enumerate(batch.sequences()):
        at = [n for n, which in enumerate(batch.sequence_N.tolist()) if which == b]
        places = (batch.places_N[at] - batch.starts_B[b]).tolist()
        ids, labels = tokens.clone(), torch.full_like(tokens, -100)
        ids[places], labels[places] = torch.tensor(batch.columns_B[b][READ]), tokens[places]
        with torch.no_grad():
            wanted = whole(input_ids=ids[None], labels=labels[None]).loss
            logits_NV = whole(input_ids=ids[None]).logits[0, places, : student.live.vocabulary.size]  # less the padded rows of the head
        mine = torch.nn.functional.cross_entropy(logits_NV.double(), tokens[places])
        assert float(found_N[at].mean()) == pytest.approx(float(mine), rel=2e-5) and float(mine) <= float(wanted) + 1e-5
        row += len(at)
    assert row == len(found_N)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_models_cross_entropy_is_that_of_transformers(kind: str, home: Path) -> None:
    student = learner(model_of(home, kind, "student"))
    batch, whole = drawn(home, kind, student), AutoModelForSeq2SeqLM.from_pretrained(model_of(home, kind, "student")).eval()
    found_N = ce_N(student, batch)
    sep = student.live.vocabulary.map["<sep>"]
    assert all(ids[-1] == sep for ids in batch.prompts()) and len({len(ids) for ids in batch.prompts()}) > 2
    for b, (tokens, prompt) in enumerate(zip(batch.sequences(), batch.prompts(), strict=True)):
        answer = tokens[len(prompt) :]
        with torch.no_grad():
            logits_NV = whole(input_ids=torch.tensor([prompt]), labels=answer[None]).logits[0, :, : student.live.vocabulary.size]
        wanted_N = torch.nn.functional.cross_entropy(logits_NV.double(), answer, reduction="none")
        torch.testing.assert_close(found_N[batch.sequence_N == b], wanted_N, rtol=2e-5, atol=2e-5)


def hinton(student_V: Any, teacher_V: Any, label: int, temperature: float, alpha: float) -> tuple[float, Any]:
    """`alpha CE + (1 - alpha) T^2 KL(softmax(z/T) || softmax(s/T))` of one row and its gradient on s, in float64."""
    soft = lambda v: np.exp(v - v.max()) / np.exp(v - v.max()).sum()  # noqa: E731
    q, p, q1 = soft(student_V / temperature), soft(teacher_V / temperature), soft(student_V)
    value = -alpha * np.log(q1[label]) + (1 - alpha) * temperature**2 * float((p * np.log(p / q)).sum())
    return value, alpha * (q1 - np.eye(len(q))[label]) + (1 - alpha) * temperature * (q - p)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_a_module_learns_by_hintons_formula(temperature: float, home: Path) -> None:
    objective = 0.9 * lb.ForwardKL(temperature=temperature) + 0.1 * lb.CrossEntropy()
    student, scorer, made, batch = pair(home, "module", objective)
    x = torch.tensor([columns["features"] for columns in batch.columns_B])
    said = scorer.about(batch)
    nats = student.learn(batch, said, made, 1 / 7)
    found = gradients(student)
    logits_NV = student.live.module(x)
    with torch.no_grad():
        theirs_NV = scorer.opened.module(x).double().numpy()
    wanted = [hinton(s, t, int(y), temperature, 0.1)
              for s, t, y in zip(logits_NV.detach().double().numpy(), theirs_NV, batch.tokens_N, strict=True)]  # fmt: skip
    value_N = 0.9 * nats["ForwardKL"].double() + 0.1 * nats["CrossEntropy"].double()
    torch.testing.assert_close(value_N, torch.tensor([value for value, _ in wanted]), rtol=1e-5, atol=1e-6 * temperature**2)
    logits_NV.backward(torch.tensor(np.array([slope for _, slope in wanted]) / 7, dtype=torch.float32))
    for name, gradient in gradients(student).items():
        assert error(found[name], gradient) < 1e-5, name


def test_an_ensemble_is_the_mean_of_probabilities_and_specialists_teach_their_own_rows(home: Path) -> None:
    student = learner(model_of(home, "module", "student"))
    batch = drawn(home, "module", student)
    x = torch.tensor([columns["features"] for columns in batch.columns_B])
    names = {"t0": "other_toys:small(seed=5)", "t1": "other_toys:small(width=16, seed=6)"}
    teachers = {name: lb.Local(each, dtype="float32") for name, each in names.items()}
    objective = Objective([lb.ForwardKL()])
    with torch.no_grad():
        p_NV = {name: open_kind(each, Opening("float32")).module(x).double().softmax(-1) for name, each in names.items()}
        log_q_NV = student.live.module(x).double().log_softmax(-1)
    mean_NV = (p_NV["t0"] + p_NV["t1"]) / 2
    own_NV = torch.stack([p_NV[columns["by"]][n] for n, columns in enumerate(batch.columns_B)])
    for mixture, wanted_NV in ((lb.Mixture(teachers), mean_NV), (lb.Mixture(teachers, by="by"), own_NV)):
        found_N = student.measure(batch, mixture.load(student).about(batch), objective)["ForwardKL"].double()
        torch.testing.assert_close(found_N, (wanted_NV * (wanted_NV.log() - log_q_NV)).sum(-1), rtol=1e-5, atol=1e-6)


def test_distilberts_three_losses_are_its_formulas(home: Path) -> None:
    recipe = lb.distilbert(model_of(home, "distilbert", "student"), model_of(home, "bert", "teacher"), str(home / "bert.jsonl"), steps=2)
    recipe = replace(recipe, student=replace(recipe.student, dtype="float32"), teacher=lb.Local(model_of(home, "bert", "teacher"), "float32"))
    assert str([term.weight for term in recipe.objective.terms]) == "[5.0, 2.0, 1.0]"
    student, scorer, objective = recipe.open_all()
    batch = recipe.source.load(student.live.vocabulary, Share()).draw(0, student)
    nats = student.measure(batch, scorer.about(batch), objective)
    row = 0
    models = [
        AutoModelForMaskedLM.from_pretrained(model_of(home, kind, who)).eval() for kind, who in (("distilbert", "student"), ("bert", "teacher"))
    ]
    for b, tokens in enumerate(batch.sequences()):
        places = (batch.places_N[batch.sequence_N == b] - batch.starts_B[b]).tolist()
        ids = tokens.clone()
        ids[places] = torch.tensor(batch.columns_B[b][READ])
        with torch.no_grad():
            mine, theirs = (each(input_ids=ids[None], output_hidden_states=True) for each in models)
        s_NV, t_NV = (each.logits[0, places, : student.live.vocabulary.size].double() for each in (mine, theirs))
        kd_N = 4 * torch.nn.functional.kl_div((s_NV / 2).log_softmax(-1), (t_NV / 2).softmax(-1), reduction="none").sum(-1)
        cosine_N = 1 - torch.cosine_similarity(mine.hidden_states[-1][0, places].double(), theirs.hidden_states[-1][0, places].double(), dim=-1)
        mlm_N = torch.nn.functional.cross_entropy(s_NV, tokens[places], reduction="none")
        some = slice(row, row + len(places))
        for name, wanted_N in (("ForwardKL", kd_N), ("HiddenStates", cosine_N), ("CrossEntropy", mlm_N)):
            torch.testing.assert_close(nats[name][some].double(), wanted_N, rtol=1e-4, atol=1e-5)
        row += len(places)


# What must change nothing


def learnt(student: lb.Student, teacher: lb.Teacher, parts: list[Batch], objective: Objective) -> dict[str, Tensor]:
    total = sum(len(part.tokens_N) for part in parts)
    for part, said in zip(parts, teacher.score(parts), strict=True):
        student.learn(part, said, objective, scale=1 / total)
    return gradients(student)


def terms(kind: str) -> Objective:
    """Those that a kind can be asked for."""
    plain = 0.5 * lb.ForwardKL(temperature=2) + 0.5 * lb.CrossEntropy()
    return plain + lb.HiddenStates("last", "cosine") if kind in (*MASKED, *PAIRS) else plain


@pytest.mark.parametrize("kind", ALL)
def test_cuts_and_orders_change_no_gradient(kind: str, home: Path) -> None:
    student, scorer, objective, batch = pair(home, kind, terms(kind))
    whole = learnt(student, scorer, [batch], objective)
    size = max(float(gradient.norm()) for gradient in whole.values())
    for parts in [*(batch.split(tokens) for tokens in (1, 60)), [batch.select([4, 0, 6]), Batch.of([], "corpus"), batch.select([2, 5, 1, 3])]]:
        for name, gradient in learnt(student, scorer, parts, objective).items():
            assert float((gradient - whole[name]).norm()) < 1e-4 * (float(whole[name].norm()) + 1e-2 * size), name


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_pass_touches_every_weight_and_teaches_nothing(kind: str, home: Path) -> None:
    student, scorer, objective, batch = pair(home, kind, terms(kind))
    moved = learnt(student, scorer, [batch], objective)
    empty = Batch.of([], "corpus")
    nats = student.learn(empty, scorer.about(empty), objective, 1.0)
    found = gradients(student)
    assert all(len(each) == 0 for each in nats.values())
    assert found.keys() >= moved.keys() and not any(bool(gradient.any()) for gradient in found.values())


@pytest.mark.parametrize("kind", ALL)
def test_a_teacher_that_is_the_student_teaches_nothing(kind: str, home: Path) -> None:
    objective = Objective([lb.ForwardKL(), lb.ReverseKL(), *[term for term in terms(kind).terms if isinstance(term, lb.HiddenStates)]])
    sizes = dict[str, float]()
    for teacher in ("student", "teacher"):
        student, scorer, made, batch = pair(home, kind, objective, teacher)
        apart = student.measure(batch, scorer.about(batch), made)
        sizes[teacher] = float(sum(gradient.norm() for gradient in learnt(student, scorer, [batch], made).values()))
        assert all(float(each.abs().max()) < 1e-5 if teacher == "student" else float(each.abs().max()) > 1e-2 for each in apart.values()), apart
    assert sizes["student"] < 1e-4 * sizes["teacher"]


@pytest.mark.parametrize("kind", [*MASKED, *PAIRS])
def test_the_heads_logits_of_a_whole_pass_never_exist(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = learner(model_of(home, kind, "student"))
    layer, seen = student.live.causal.get_output_embeddings(), list[int]()
    layer.register_forward_hook(lambda layer, given, output: seen.append(output.numel()))
    student.forward(drawn(home, kind, student))
    assert seen == [0]


# Hiding


def test_what_is_hidden_is_a_function_of_seed_step_and_row(home: Path) -> None:
    student = learner(model_of(home, "bert", "student"))

    def draw(step: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> Batch:
        source = lb.Masked(str(home / "bert.jsonl"), sequences=6)
        return source.load(student.live.vocabulary, Share(seed, rank, ranks)).draw(step, student)

    whole, parts = draw(5), [draw(5, rank=rank, ranks=2) for rank in range(2)]
    for b, columns in enumerate(whole.columns_B):
        mine = parts[b % 2].select([b // 2])
        assert torch.equal(mine.tokens_T, whole.select([b]).tokens_T) and torch.equal(mine.places_N, whole.select([b]).places_N)
        assert mine.columns_B[0] == columns
    one_epoch_on = draw(5 + 4)
    assert sorted(map(tuple, (t.tolist() for t in whole.sequences()))) != [] and draw(5, seed=1).columns_B != whole.columns_B
    assert [c[READ] for c in one_epoch_on.columns_B] != [c[READ] for c in whole.columns_B]


def test_tokens_are_hidden_as_bert_hid_them() -> None:
    """4,000 sequences of 20 tokens, 3 of each hidden: shares of 12,000, each within 4 standard deviations (0.011 at most)."""
    vocabulary, tokens = MaskedVocabulary(other_toys.tokenizer()), [259, *range(65, 85), 260]
    special, hits, masks, kept = set(vocabulary.tokenizer.all_special_ids), np.zeros(22), 0, 0
    for key in range(4000):
        (text,) = vocabulary.hidden(tokens, 0.15, [7, key], {})
        assert len(text.spans) == 3 and all(tokens[place] not in special for place in text.places)
        hits[text.places] += 1
        masks += sum(read == vocabulary.mask_id for read in text.columns[READ])
        kept += sum(read == tokens[place] for place, read in zip(text.places, text.columns[READ], strict=True))
    assert abs(masks / 12000 - 0.8 - 0.1 / 261) < 4 * (0.8 * 0.2 / 12000) ** 0.5
    assert abs(kept / 12000 - 0.1 - 0.1 / 261) < 4 * (0.1 * 0.9 / 12000) ** 0.5
    assert np.abs(hits[1:-1] / 4000 - 0.15).max() < 4.5 * (0.15 * 0.85 / 4000) ** 0.5 and hits[0] == hits[-1] == 0


def test_the_same_row_is_hidden_alike_for_evaluation_and_long_text_is_cut() -> None:
    vocabulary, data = MaskedVocabulary(other_toys.tokenizer()), lb.Data("x.jsonl")
    row = {"text": "a cat and a dog " * 3, "kind": "pets"}
    one, two = vocabulary.texts(row, data, 20), vocabulary.texts(row, data, 20)
    assert one == two and len(one) == 3 and all(len(text.tokens) <= 20 and text.columns["kind"] == "pets" for text in one)
    assert [token for text in one for token in text.tokens[1:-1]] == vocabulary.ids(row["text"])
    assert vocabulary.texts({"text": ""}, data, 20) == []


def test_layers_of_a_masked_model_are_those_of_transformers(home: Path) -> None:
    student = learner(model_of(home, "bert", "teacher"))
    batch = drawn(home, "bert", student, 2)
    features = student.forward(batch, Layers(frozenset({0, 2}))).features
    whole = AutoModelForMaskedLM.from_pretrained(model_of(home, "bert", "teacher")).eval()
    ids = batch.sequences()[0].clone()
    places = (batch.places_N[batch.sequence_N == 0]).tolist()
    ids[places] = torch.tensor(batch.columns_B[0][READ])
    with torch.no_grad():
        wanted = whole(input_ids=ids[None], output_hidden_states=True).hidden_states
    assert features is not None
    for layer, states_ND in features.states.items():
        torch.testing.assert_close(states_ND[: len(places)], wanted[layer + 1][0, places], rtol=1e-4, atol=1e-4)
