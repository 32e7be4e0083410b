"""Other kinds of models by the axis rule alone: values against transformers and slow formulas, what must change no gradient, whole runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import other_toys
import pytest
import torch
import toys
from other_toys import MASKED, PAIRS, TEXTS
from safetensors.torch import load_file
from test_objective import error, gradients
from test_runs import _failing_at, metrics, same_bits
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import limbeck as lb
from limbeck.batch import Batch, Span, Text
from limbeck.check import check
from limbeck.classify import ModuleClassifier, TextClassifier
from limbeck.errors import DataError, LimbeckError, ModelError, RecipeError, VocabularyError
from limbeck.files import read_json
from limbeck.insides import Layers
from limbeck.kinds import open_kind
from limbeck.machine import Opening
from limbeck.masked import MaskedModel
from limbeck.masking import READ, MaskedVocabulary
from limbeck.models import Model
from limbeck.objective import Objective
from limbeck.pairing import between
from limbeck.run import Run
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
    models = [AutoModelForMaskedLM.from_pretrained(model_of(home, kind, who)).eval() for kind, who in (("distilbert", "student"), ("bert", "teacher"))]
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


# Whole runs


def run_of(home: Path, kind: str, **numbers: Any) -> lb.Recipe:
    data = str(home / f"{kind}.jsonl")
    source = lb.Masked(data, sequences=8) if kind in MASKED else lb.Corpus(data, sequences=8)
    student = lb.Student(model_of(home, kind, "student"), lb.AdamW(3e-3), dtype="float32")
    return lb.Recipe(student, source, lb.Local(model_of(home, kind, "teacher"), dtype="float32"), terms(kind),
                     **{"steps": 4, "save_every": 3, "evaluations": [lb.Likelihood(str(home / f"{kind}-heldout.jsonl"), samples=0)],
                        "accept_license": "unknown licence of other_toys:small", **numbers})  # fmt: skip


@pytest.mark.parametrize("kind", ["bert-classes", "module", "distilbert", "t5"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(kind: str, home: Path, tmp_path: Path) -> None:
    made = run_of(home, kind)
    lb.distill(made, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_step", _failing_at(3, Run.log_step))
        with pytest.raises(KeyboardInterrupt):
            lb.distill(made, tmp_path / "broken")
    lb.distill(made, tmp_path / "broken")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    same_bits(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["bert-classes", "module", "bert", "t5"])
def test_steps_move_the_student_on_heldout_rows(kind: str, home: Path, tmp_path: Path) -> None:
    lb.distill(replace(run_of(home, kind, steps=20, save_every=None), objective=Objective([lb.ForwardKL()])), tmp_path / "run")
    before, after = (read_json(tmp_path / "run" / "evaluations.json")[step]["heldout"] for step in ("0", "20"))
    assert after["kl_nats"] < 0.97 * before["kl_nats"]


@pytest.mark.parametrize("kind, auto", [("bert-classes", AutoModelForSequenceClassification), ("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)])
def test_a_finished_student_is_a_folder_of_its_kind(kind: str, auto: Any, home: Path, tmp_path: Path) -> None:
    lb.distill(run_of(home, kind, steps=1), tmp_path / "run")
    saved = tmp_path / "run" / "student"
    assert type(auto.from_pretrained(saved)).__name__ == read_json(saved / "config.json")["architectures"][0]
    tags = {"bert-classes": "text-classification", "bert": "fill-mask", "t5": None}[kind]
    assert (f"pipeline_tag: {tags}" if tags else "library_name: transformers") in (saved / "README.md").read_text()
    assert ("pipeline_tag" in (saved / "README.md").read_text()) == bool(tags)
    teacher = lb.Local(str(saved), dtype="float32").load(learner(model_of(home, kind, "student")))
    assert teacher.opened.vocabulary.fingerprint == learner(model_of(home, kind, "student")).live.vocabulary.fingerprint


def test_a_finished_module_is_named_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = lb.distill(run_of(home, "module", steps=3), tmp_path / "run")
    saved, batch = tmp_path / "run" / "student", drawn(home, "module", student)
    assert sorted(file.name for file in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(ModelError, match=r"is made by other_toys:small\(.*\), which is no code of the working folder; read it"):
        monkeypatch.chdir(tmp_path)
        open_kind(str(saved), Opening("float32"))
    monkeypatch.chdir(Path(__file__).parent)
    again = open_kind(str(saved), Opening("float32"))
    assert torch.equal(again.forward(batch).hidden_ND, student.live.forward(batch).hidden_ND)
    lb.distill(replace(run_of(home, "module", steps=1), teacher=lb.Local(str(saved), dtype="float32")), tmp_path / "next")
    weights = load_file(saved / "model.safetensors")
    told = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**told, "module": "other_toys:small(width=9)"}))
    with pytest.raises(ModelError, match=r"the weights in .* are not those of other_toys:small\(width=9\)"):
        open_kind(str(saved), Opening("float32"))
    (saved / "config.json").write_text(json.dumps({**told, "module": "os:system(command='true')"}))
    with pytest.raises(ModelError, match="os:system.* no code of the working folder"):
        open_kind(str(saved), Opening("float32"))
    assert weights.keys() == again.module.state_dict().keys()


def test_a_module_may_read_another_column_and_name_its_classes(tmp_path: Path) -> None:
    toys.jsonl(tmp_path / "images.jsonl", [{"image": [[n, 1, 2], [3, 4, 5]], "label": n % 3} for n in range(4)])
    student = learner("other_toys:picture")
    batch = lb.Corpus(str(tmp_path / "images.jsonl"), sequences=4).load(student.live.vocabulary, Share()).draw(0, student)
    assert student.forward(batch).hidden_ND.shape == (4, 3)
    toys.jsonl(tmp_path / "named.jsonl", [{"features": [0.0] * 6, "label": "good"}])
    named = learner("other_toys:named")
    batch = lb.Corpus(str(tmp_path / "named.jsonl"), sequences=1).load(named.live.vocabulary, Share()).draw(0, named)
    assert batch.tokens_N.tolist() == [2] and named.live.vocabulary.text([2, 0]) == "good, bad"


def test_accuracy_is_the_share_of_the_likeliest(home: Path) -> None:
    for kind in ("module", "bert", "t5"):
        student, _, _, _ = pair(home, kind, lb.ForwardKL())
        found = lb.Accuracy(str(home / f"{kind}.jsonl"), tokens_per_pass=60).run(student, lb.Silent())
        texts = [text for row in other_toys.rows(kind, 24) for text in student.live.vocabulary.texts(row, lb.Data("x"), 1024)]
        batch = Batch.of(texts, "corpus")
        outputs = student.forward(batch)
        right_N = outputs.head.prepared(torch.float32).logits(outputs.hidden_ND).argmax(-1) == batch.tokens_N
        assert found["accuracy"] == pytest.approx(float(right_N.double().mean())) and found["tokens"] == len(right_N)
        low, high = found["accuracy_interval"]
        assert low <= found["accuracy"] <= high


@pytest.mark.parametrize("kind", ["bert-classes", "module", "distilbert", "t5"])
def test_a_recipe_is_checked_before_it_costs_anything(kind: str, home: Path, tmp_path: Path) -> None:
    lines = check(run_of(home, kind), tmp_path / "out")
    assert [line for line in lines if line.verdict == "problem"] == []
    assert any(line.what == "self-test" and "to oneself" in line.found for line in lines)


# Refused, in one line each


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
    refused("tells 261 hidden tokens apart and the teacher 261 tokens", wrong, against(model_of(home, "bert", "student"), model_of(home, "t5", "student")))
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
    refused(r"gave \[21\] for 7 rows of 3 classes; a classifier gives logits \[7, 3\]", ModelError, lambda: student.forward(drawn(home, "module", student)))


@pytest.mark.parametrize("kind", ["bert-classes", "module", "bert", "t5"])
def test_what_a_kind_cannot_do_is_refused_when_it_is_loaded(kind: str, home: Path, tmp_path: Path) -> None:
    made = run_of(home, kind)
    prompts = toys.jsonl(tmp_path / "prompts.jsonl", toys.rows(4))
    own = replace(made, source=lb.OnPolicy(prompts), objective=Objective([lb.ReverseKL()]), evaluations=[])
    answered = replace(made, evaluations=[lb.Likelihood(prompts, own_text=True)])
    for recipe in (own, answered):
        refused("and does not write here; draw ready rows with Corpus", RecipeError, lambda r=recipe: lb.distill(r, tmp_path / type(r.source).__name__))
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
        refused("a cache keeps scores of running text; let a live teacher score", RecipeError, learner(model_of(home, kind, "student")).live.see_cacheable)


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
