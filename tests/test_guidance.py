"""Guidance and hints as teachers: against formulas in float64, against transformers, and what they teach."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import toys
import yaml
from transformers import AutoModelForCausalLM, UnbatchedClassifierFreeGuidanceLogitsProcessor

import limbeck as lb
from limbeck.batch import Batch, Span, Text
from limbeck.blend import Blend, Steered
from limbeck.check import check
from limbeck.config import build
from limbeck.data import Data
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.evaluate.likelihood import measured
from limbeck.files import read_json, read_jsonl
from limbeck.head import Head
from limbeck.objective import TokenRows
from limbeck.prompts import Prompts
from limbeck.targets import Dense, Logits
from limbeck.teachers import Silent
from limbeck.vocabulary import Vocabulary

N, V, D = 11, 23, 6
FAKE = TokenRows(torch.zeros(N, dtype=torch.int64), None)
CHAT, PLAIN = Vocabulary(toys.tokenizer()), Vocabulary(toys.tokenizer(None))


def dense(seed: int) -> tuple[Dense, np.ndarray]:
    """A teacher's words in float64, and their logits."""
    random = torch.Generator().manual_seed(seed)
    hidden_ND, weight_VD = (torch.randn(rows, D, generator=random, dtype=torch.float64) for rows in (N, V))
    return Dense(hidden_ND, Head(weight_VD, V), "toy"), (hidden_ND @ weight_VD.T).numpy()


# The guided distribution


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("chunk", [slice(0, N), slice(3, 7), slice(10, 11)])
def test_guidance_is_its_formula(scale: float, chunk: slice) -> None:
    (said, z), (without, u) = dense(1), dense(2)
    found = Steered(said, without, scale, "toy").rows(chunk).log_probs()
    np.testing.assert_allclose(found.numpy(), oracles.guided(z, u, scale)[chunk], atol=1e-12)


DIVERGENCES = {
    "ForwardKL": (lb.ForwardKL, oracles.forward_kl),
    "ReverseKL": (lb.ReverseKL, oracles.reverse_kl),
    "JSD": (lb.JSD, oracles.jsd),
    "Jeffreys": (lb.Jeffreys, oracles.jeffreys),
    "SkewKL": (lb.SkewKL, oracles.skew_kl),
    "SkewReverseKL": (lb.SkewReverseKL, oracles.skew_reverse_kl),
    "TotalVariation": (lb.TotalVariation, oracles.total_variation),
    "AlphaDivergence": (lb.AlphaDivergence, oracles.alpha_divergence),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_every_divergence_takes_guidance_at_every_temperature(name: str, temperature: float) -> None:
    """The temperature is that of the guided distribution: `softmax(log p_guided / T)`."""
    (said, z), (without, u), s = dense(1), dense(2), torch.randn(N, V, dtype=torch.float64)
    term, oracle = DIVERGENCES[name]
    nats_N, gradient_NV = term(temperature=temperature).rows(Logits(s.clone()), Steered(said, without, 1.7, "toy").rows(slice(0, N)), FAKE)
    wanted_N, wanted_NV = oracle(oracles.guided(z, u, 1.7), s.numpy(), temperature)
    np.testing.assert_allclose(nats_N.numpy(), wanted_N, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient_NV.numpy(), wanted_NV, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_says_what_guidance_says_learns_nothing(name: str) -> None:
    (said, z), (without, u) = dense(1), dense(2)
    student = Logits(torch.tensor(oracles.guided(z, u, 2.5)))
    nats_N, gradient_NV = DIVERGENCES[name][0]().rows(student, Steered(said, without, 2.5, "toy").rows(slice(0, N)), FAKE)
    assert float(nats_N.abs().max()) < 1e-12
    assert name == "TotalVariation" or float(gradient_NV.abs().max()) < 1e-12, "whose slope at 0 is the sign of rounding"


def test_fewer_tokens_of_guidance_and_its_mean_with_others() -> None:
    (said, z), (without, u), kept = dense(1), dense(2), torch.tensor([0, 4, 5, 9])
    steered = Steered(said, without, 3.0, "toy")
    torch.testing.assert_close(steered.select(kept).rows(slice(0, 4)).log_probs(), steered.rows(slice(0, N)).log_probs()[kept])
    mean = Blend([steered, said], [0.25, 0.75], "toy").rows(slice(0, N)).log_probs().exp().numpy()
    wanted = 0.25 * np.exp(oracles.guided(z, u, 3.0)) + 0.75 * np.exp(oracles.log_softmax(z))
    np.testing.assert_allclose(mean, wanted, atol=1e-12)


# Prompts made anew


def dialogue(*turns: tuple[str, str]) -> Text:
    messages = [{"role": role, "content": content} for role, content in turns]
    (text,) = CHAT.texts({"messages": messages}, Data("toy"), 10_000)
    return text


def shown(batch: Batch, vocabulary: Vocabulary = CHAT) -> list[str]:
    return [vocabulary.tokenizer.decode(tokens.tolist()) for tokens in batch.sequences()]


def test_other_prompts_leave_every_completion_where_it_was() -> None:
    texts = [Text(list(range(20, 32)), [Span(3, 5), Span(8, 12)]), Text([1, 2, 3], [Span(1, 3)]), Text(list(range(9)), [Span(6, 9)])]
    batch = replace(Batch.of(texts, "student"), credit_B=torch.tensor([1.0, 2.0, 3.0]))
    assert batch.prompts() == [[20, 21, 22], [1], [0, 1, 2, 3, 4, 5]]
    made = batch.with_prompts([[7], [8, 8, 8, 8], [9, 9]])
    assert torch.equal(made.tokens_N, batch.tokens_N) and torch.equal(made.sequence_N, batch.sequence_N)
    assert [tokens.tolist() for tokens in made.sequences()] == [[7, *range(23, 32)], [8, 8, 8, 8, 2, 3], [9, 9, 6, 7, 8]]
    assert made.prompts() == [[7], [8, 8, 8, 8], [9, 9]]
    again = made.with_prompts(batch.prompts())
    assert torch.equal(again.tokens_T, batch.tokens_T) and torch.equal(again.places_N, batch.places_N)
    assert len(Batch.of([], "corpus").with_prompts([])) == 0


def test_a_hint_stands_in_the_last_message_and_nothing_else_changes() -> None:
    turns = [("system", "be brief"), ("user", "red?"), ("assistant", "yes"), ("user", "blue?"), ("assistant", "no")]
    text, prompts = dialogue(*turns), Prompts(CHAT)
    batch = Batch.of([text], "corpus")
    for before, wanted in ((False, "red? HINT"), (True, " HINTred?")):
        made = batch.with_prompts([prompts.hinted(batch.prompts()[0], " HINT", before)])
        assert shown(made) == [shown(batch)[0].replace("red?", wanted)]
        assert torch.equal(made.tokens_N, batch.tokens_N)
    third = CHAT.prompt({"messages": [{"role": role, "content": content} for role, content in turns[:4]]}, Data("toy"))
    assert CHAT.tokenizer.decode(prompts.hinted(third, "!", False)).count("blue?!<|im_end|>") == 1


def test_another_message_keeps_how_the_prompt_leads_to_its_answer() -> None:
    """What a template was told to put before an answer stays, an empty thought say."""
    own = [*CHAT.prompt({"prompt": "red?"}, Data("toy")), *CHAT.ids("<think></think>")]
    found = CHAT.tokenizer.decode(Prompts(CHAT).asking(own, "blue"))
    assert found == "<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n<think></think>"


def test_plain_prompts_are_told_from_rendered_ones() -> None:
    for vocabulary in (CHAT, PLAIN):
        plain = vocabulary.ids("red?")
        assert Prompts(vocabulary).asking(plain, "blue") == vocabulary.ids("blue")
        assert vocabulary.text(Prompts(vocabulary).hinted(plain, "!", False)) == "red?!"
        assert vocabulary.text(Prompts(vocabulary).hinted(plain, "!", True)) == "!red?"


OTHERS = {
    "[INST] ": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    "User: ": "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
}


@pytest.mark.parametrize("opening", OTHERS)
def test_templates_without_special_tokens(opening: str) -> None:
    vocabulary = Vocabulary(toys.tokenizer(OTHERS[opening]))
    prompt = vocabulary.prompt({"prompt": "red?"}, Data("toy"))
    whole = vocabulary.tokenizer.decode(prompt)
    for before, wanted in ((False, "red? HINT"), (True, " HINTred?")):
        assert vocabulary.tokenizer.decode(Prompts(vocabulary).hinted(prompt, " HINT", before)) == whole.replace("red?", wanted)
    assert vocabulary.tokenizer.decode(Prompts(vocabulary).asking(prompt, "blue")) == whole.replace("red?", "blue")


# As teachers


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A student, a teacher and some rows."""
    work = tmp_path_factory.mktemp("guidance")
    toys.folder(work / "student", seed=1)
    toys.folder(work / "teacher", seed=2)
    toys.folder(work / "keen", seed=3, sharp=12.0)  # attends to what it reads
    toys.jsonl(work / "train.jsonl", toys.rows(24))
    toys.jsonl(work / "heldout.jsonl", toys.rows(12, seed=2))
    return work


def local(work: Path, name: str = "teacher") -> lb.Local:
    return lb.Local(str(work / name), dtype="float32")


def recipe_of(work: Path, teacher: lb.Teacher, **more) -> lb.Recipe:
    student = lb.Student(str(work / "student"), dtype="float32", optimizer=lb.AdamW(3e-3))
    source = more.pop("source", None) or lb.Corpus(str(work / "train.jsonl"), sequences=6)
    return lb.Recipe(more.pop("student", student), source, teacher, **{"objective": lb.ForwardKL(), "steps": 3, **more})


def drawn(recipe: lb.Recipe) -> tuple[lb.Student, lb.Teacher, Batch]:
    student, teacher = recipe.open_pair()
    return student, teacher, recipe.source.load(student.live.vocabulary, lb.sources.Share(0)).draw(0, student)


@pytest.mark.parametrize("negative", [None, "say something else"])
def test_guidance_says_what_transformers_says(negative: str | None, work: Path) -> None:
    """Token by token along each completion, as its logits processor is called while it writes."""
    student, teacher, batch = drawn(recipe_of(work, lb.Guided(local(work), 1.6, negative)))
    found_NV = teacher.about(batch).rows(slice(0, len(batch.places_N))).log_probs()
    model, row = AutoModelForCausalLM.from_pretrained(work / "teacher"), 0
    vocabulary = student.live.vocabulary
    for tokens, before in zip(batch.sequences(), batch.before_B.tolist(), strict=True):
        given = None if negative is None else torch.tensor([vocabulary.prompt({"prompt": negative}, Data("toy"))])
        guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.6, model, unconditional_ids=given)
        for place in range(before, len(tokens)):
            with torch.no_grad():
                scores = guide(tokens[None, :place], model(tokens[None, :place]).logits[:, -1])
            wanted_V = scores[0, : vocabulary.size].log_softmax(-1)  # it norms over a head's padding too: a constant, gone again
            assert (wanted_V - found_NV[row]).abs().max() < 2e-4
            row += 1
    assert row == len(found_NV)


def lines(recipe: lb.Recipe, out: Path) -> list[dict]:
    lb.distill(recipe, out)
    return read_jsonl(out / "metrics.jsonl")


def test_no_guidance_is_the_teacher_itself(work: Path, tmp_path: Path) -> None:
    alone, guided = (lines(recipe_of(work, each), tmp_path / str(n)) for n, each in enumerate([local(work), lb.Guided(local(work), 1)]))
    assert [line["loss_nats"] for line in guided] == pytest.approx([line["loss_nats"] for line in alone], abs=2e-5)


@pytest.mark.parametrize("teacher", ["guided", "hinted"])
def test_passes_of_another_size_change_no_step(teacher: str, work: Path, tmp_path: Path) -> None:
    """*Cut*."""
    made = {"guided": lb.Guided(local(work), 2, "no"), "hinted": lb.Privileged(local(work), " ({category})")}[teacher]
    one, other = (lines(recipe_of(work, made, tokens_per_pass=size), tmp_path / str(size)) for size in (40, 4096))
    assert [line["loss_nats"] for line in one] == pytest.approx([line["loss_nats"] for line in other], rel=1e-5)


def test_adapters_learn_from_their_base_guided(work: Path, tmp_path: Path) -> None:
    student = lb.Student(str(work / "keen"), lora=lb.LoRA(16), dtype="float32", optimizer=lb.AdamW(3e-2))
    found = lines(recipe_of(work, lb.Guided(lb.Local("@student"), 2), student=student, steps=24), tmp_path / "run")
    first, last = (sum(line["loss_nats"] for line in some) for some in (found[:4], found[-4:]))
    assert first > 0.4 and last < 0.9 * first


def test_guidance_in_a_mixture_and_a_mixture_guided(work: Path) -> None:
    one, two = local(work), local(work, "student")
    student, teacher, batch = drawn(recipe_of(work, lb.Mixture({"a": lb.Guided(one, 2), "b": two})))
    mean = teacher.about(batch).rows(slice(0, 5)).log_probs().exp()
    apart = [each.load(student).about(batch).rows(slice(0, 5)).block(slice(None)).log_probs().exp() for each in (lb.Guided(one, 2), two)]
    torch.testing.assert_close(mean, (apart[0] + apart[1]) / 2)
    assert lb.Guided(lb.Mixture({"a": one, "b": two}), 2).load(student).about(batch).rows(slice(0, 5)).log_probs().shape == (5, 258)


# Hints


def questions(count: int, seed: int) -> list[dict]:
    """Rows with an answer that the prompt does not give away."""
    return [{"prompt": row["prompt"], "completion": row["completion"], "answer": row["category"]} for row in toys.rows(count, seed)]


def test_a_teacher_with_a_hint_says_what_it_says_of_the_hinted_text(work: Path) -> None:
    train = toys.jsonl(work / "asked.jsonl", questions(24, 0))
    recipe = recipe_of(work, lb.Privileged(local(work), " It is {answer}."), source=lb.Corpus(train, sequences=6))
    _, teacher, batch = drawn(recipe)
    for b, columns in enumerate(batch.columns_B):
        part = batch.select([b])
        text = shown(part)[0].replace("<|im_end|>", f" It is {columns['answer']}.<|im_end|>", 1)
        with torch.no_grad():
            logits_SV = teacher.opened.module(torch.tensor([CHAT.ids(text)])).logits[0, :, :258]
        wanted = logits_SV[-1 - len(part.places_N) : -1].log_softmax(-1)
        found = teacher.about(part).rows(slice(0, len(part.places_N))).block(slice(None)).log_probs()
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("own_text", [False, True])
def test_what_is_said_with_a_hint_is_learnt_without_it(own_text: bool, work: Path, tmp_path: Path) -> None:
    """Context distillation of the student as it was, on ready text and on its own: nearer on held-out prompts."""
    train, held = (toys.jsonl(work / f"{name}.jsonl", questions(count, seed)) for name, count, seed in (("h-train", 48, 0), ("h-held", 24, 7)))
    source = lb.OnPolicy(train, sequences=12, sampling=lb.Sampling(max_tokens=8)) if own_text else lb.Corpus(train, sequences=12)
    watched = lb.Likelihood(held, own_text=own_text, sampling=lb.Sampling(max_tokens=8))
    student = lb.Student(str(work / "keen"), dtype="float32", optimizer=lb.AdamW(3e-3))
    hinted = lb.Privileged(local(work, "keen"), " Answer in blue.")
    made = recipe_of(work, hinted, student=student, source=source, steps=25, evaluations=[watched])
    lb.distill(made, tmp_path / "run")
    before, after = (read_json(tmp_path / "run" / "evaluations.json")[step]["heldout"]["kl_nats"] for step in ("0", "25"))
    assert before > 0.2 and after < 0.7 * before


def test_the_student_as_it_is_now_teaches_itself(work: Path, tmp_path: Path) -> None:
    """Its words with the hint are those of its weights at that step, and move with them."""
    train = toys.jsonl(work / "now.jsonl", questions(24, 0))
    hinted = lb.Privileged("@student", " It is {answer}.")
    student, teacher, batch = drawn(recipe_of(work, hinted, source=lb.Corpus(train, sequences=6)))
    fixed = lb.Privileged(local(work, "student"), " It is {answer}.").load(student)
    said = [each.about(batch).rows(slice(0, 9)).block(slice(None)).log_probs() for each in (teacher, fixed)]
    torch.testing.assert_close(said[0], said[1])
    with torch.no_grad():
        student.live.module.get_output_embeddings().weight.mul_(1.1)
    assert not torch.allclose(teacher.about(batch).rows(slice(0, 9)).block(slice(None)).log_probs(), said[0], atol=1e-2)
    source = lb.OnPolicy(train, sequences=6, sampling=lb.Sampling(max_tokens=6))
    found = lines(recipe_of(work, hinted, source=source, objective=lb.ReverseKL(), steps=12), tmp_path / "run")
    assert 0 < found[-1]["loss_nats"] < found[0]["loss_nats"]


def test_a_longer_prompt_that_leaves_no_room_is_said(work: Path) -> None:
    _, teacher, batch = drawn(recipe_of(work, lb.Privileged(local(work), "long " * 60)))
    with pytest.raises(DataError, match=r"with the prompt that Privileged gives it a row has \d+ tokens, and the context of .* is 256; give shorter"):
        teacher.about(batch)


def drawn_about(recipe: lb.Recipe):
    _, teacher, batch = drawn(recipe)
    return teacher.about(batch)


def test_what_cannot_be_guided_or_hinted_is_refused(work: Path, tmp_path: Path) -> None:
    own, scores = lb.Student(str(work / "student")), tmp_path / "scores"
    scores.mkdir()
    cases = {
        "finite, found nan": lambda: lb.Guided(local(work), float("nan")),
        "Cached knows only text that it was shown before; give Local": lambda: lb.Guided(lb.Cached(str(scores)), 2),
        "Guided needs a teacher that says distribution, and Silent says nothing": lambda: lb.Guided(Silent(), 2),
        "Guided needs a teacher that says distribution, and Endpoint says tokens or top k": lambda: lb.Guided(lb.Endpoint("http://x/v1", "m"), 2),
        "Privileged needs a teacher that says something, and Silent": lambda: lb.Privileged(Silent(), "a hint"),
        "says nothing; give a text": lambda: lb.Privileged("m", " \n"),
        "cannot fill the hint": lambda: lb.Privileged("m", "a {hint"),
        "{answer.x} of the hint names no column": lambda: lb.Privileged("m", "{answer.x}"),
        "{} of the hint names no column": lambda: lb.Privileged("m", "it is {}"),
        "the student as it is now and says the same": lambda: lb.Recipe(own, lb.Corpus("d"), lb.Itself(), lb.ForwardKL()),
        "a scale other than 1": lambda: lb.Recipe(own, lb.Corpus("d"), lb.Guided("@student", 1), lb.ForwardKL()),
        "is the student itself and says the same": lambda: recipe_of(work, lb.Guided(local(work, "student"), 1)),
        "asks for the column 'topic', and a row has category": lambda: drawn_about(recipe_of(work, lb.Privileged("@student", "{topic}"))),
    }  # fmt: skip
    for message, make in cases.items():
        with pytest.raises(LimbeckError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)


def test_a_hint_lets_the_student_teach_itself_and_a_text_of_no_effect_is_found(work: Path, tmp_path: Path) -> None:
    """A column that is empty in every row leaves the prompt as it was: the self-test sees that nothing is taught."""
    rows = [{**row, "answer": ""} for row in questions(12, 0)]
    made = recipe_of(work, lb.Privileged(local(work, "student"), "{answer}"), source=lb.Corpus(toys.jsonl(work / "none.jsonl", rows), sequences=4))
    with pytest.raises(RecipeError, match=r"says what the student .* says already"):
        lb.distill(made, tmp_path / "run")


@pytest.mark.parametrize("made", [
    lb.Guided(lb.Local("x"), 1.5, "no"),
    lb.Guided("@student", -0.5),
    lb.Privileged("@student", "it is {answer}", "before"),
    lb.Privileged(lb.Mixture({"a": lb.Local("x"), "b": lb.Itself()}), "psst"),
])  # fmt: skip
def test_they_go_through_yaml(made: lb.Teacher) -> None:
    recipe = lb.Recipe(lb.Student("s"), lb.Corpus("d"), made, lb.ForwardKL())
    assert lb.Recipe.of(yaml.safe_load(recipe.yaml)) == recipe
    assert json.dumps(yaml.safe_load(recipe.yaml))


def test_a_name_is_a_model(work: Path) -> None:
    assert build("Guided('org/model', 2)", lb.Teacher) == lb.Guided(lb.Local("org/model"), 2)
    assert build({"type": "Privileged", "model": "@student", "hint": "x"}, lb.Teacher) == lb.Privileged(lb.Itself(), "x")


def test_evaluations_on_own_text_know_the_columns_of_its_rows(work: Path) -> None:
    held = toys.jsonl(work / "columns.jsonl", questions(6, 3))
    student, teacher, _ = drawn(recipe_of(work, lb.Privileged(local(work), " It is {answer}.")))
    found = lb.Likelihood(held, own_text=True, sampling=lb.Sampling(max_tokens=4)).run(student, teacher)
    assert found["kl_nats"] > 0 and measured([dialogue(("user", "x"), ("assistant", "y"))], student, local(work).load(student), 64)["kl_nats"] > 0


@pytest.mark.parametrize("own_text", [False, True])
def test_check_looks_at_the_teacher_inside_and_tests_with_a_row_of_the_data(own_text: bool, work: Path, tmp_path: Path) -> None:
    train = toys.jsonl(work / "checked.jsonl", questions(8, 0))
    source = lb.OnPolicy(train, sequences=4) if own_text else lb.Corpus(train, sequences=4)
    for teacher in (lb.Privileged(local(work), " It is {answer}."), lb.Guided(local(work), 2)):
        found = check(recipe_of(work, teacher, source=source), tmp_path / "run")
        assert [line for line in found if line.verdict == "problem"] == []
        assert {"teacher", "vocabularies", "self-test"} <= {line.what for line in found}
