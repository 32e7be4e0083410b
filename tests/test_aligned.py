"""A teacher with another vocabulary, alive: what it says, what is learnt of it, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_alignment
import torch
import toys
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from vllm_double import served

import limbeck as lb
from limbeck.batch import Batch, Span, Text
from limbeck.check import check
from limbeck.data import Data
from limbeck.divergence import SampledReverseKL
from limbeck.errors import DataError, RecipeError, VocabularyError
from limbeck.evaluate import Likelihood
from limbeck.objective import Objective
from limbeck.selftest import self_test
from limbeck.sources import Share
from limbeck.spans import Spans
from limbeck.vocabulary import Vocabulary

TERMS = {"SpanLikelihood": lb.SpanLikelihood(), "ULD": lb.ULD(), "Gold": lb.Gold()}


def other(path: Path, seed: int = 1, kind: str = "bpe") -> str:
    """A random teacher of another vocabulary, which is its head's to the last row."""
    cut = test_alignment.trained(kind)
    sizes = {"rows": len(cut), "bos_token_id": cut.bos_token_id, "eos_token_id": cut.eos_token_id, "pad_token_id": cut.eos_token_id}
    toys.network(seed=seed, **sizes).save_pretrained(path)
    cut.save_pretrained(path)
    toys.licensed(path)
    return str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a student of bytes and a teacher of pieces."""
    made = tmp_path_factory.mktemp("aligned")
    return toys.folder(made / "student", seed=2), other(made / "teacher")


@pytest.fixture(scope="module")
def student(pair: tuple[str, str]) -> lb.Student:
    return lb.Student(pair[0], dtype="float32").load(1)


def batch_of(student: lb.Student, *said: str) -> Batch:
    rows = [{"messages": test_alignment.turns("the cat?", each)} for each in said]
    return Batch.of([text for row in rows for text in student.live.vocabulary.texts(row, Data("toy"), 1000)], "corpus")


SAID = ("saw the dog", "Zoë e\u0301 \U0001f469\u200d\U0001f4bb\x00", "don't stop now", "one two three red green blue")


def directly(folder: str, before: str, answer: str) -> list[tuple[int, float]]:
    """By transformers alone: each token of an answer and its end, with the log-probability that stands one position before it."""
    network, cut = AutoModelForCausalLM.from_pretrained(folder).double(), AutoTokenizer.from_pretrained(folder)
    ids = cut(before, add_special_tokens=False)["input_ids"]
    new = [*cut(answer, add_special_tokens=False)["input_ids"], cut.eos_token_id]
    with torch.no_grad():
        logits = network(torch.tensor([[*ids, *new]])).logits[0].log_softmax(-1)
    return [(token, float(logits[len(ids) + n - 1, token])) for n, token in enumerate(new)]


def test_spans_are_what_the_teacher_itself_gives_their_bytes(pair: tuple[str, str], student: lb.Student) -> None:
    teacher = lb.Aligned(lb.Local(pair[1], dtype="float32")).load(student)
    batch = batch_of(student, *SAID)
    (said,) = teacher.score([batch])
    assert isinstance(said, Spans) and said.says == teacher.says == {"spans", "pairs"}
    theirs = Vocabulary(AutoTokenizer.from_pretrained(pair[1]))
    prompt = theirs.chat(test_alignment.turns("the cat?"), prompt=True)
    for b, answer in enumerate(SAID):
        found = directly(pair[1], prompt, answer)
        rows = (batch.sequence_N == b).nonzero().flatten()
        assert float(said.log_p_N[rows].sum()) == pytest.approx(sum(logp for _, logp in found), rel=1e-5)
        assert float(said.log_p_N[rows[-1]]) == pytest.approx(found[-1][1], rel=1e-4), "the end of turn is a span of its own"
        bounds = np.cumsum([len(test_alignment.ALL["bpe"].of_token[token]) for token, _ in found[:-1]])
        mine = said.log_p_N[rows][:-1].cumsum(0).numpy()  # the student's tokens are bytes: its rows are offsets
        for stop, logp in zip(bounds, np.cumsum([logp for _, logp in found[:-1]]), strict=True):
            assert mine[stop - 1] == pytest.approx(logp, rel=1e-4)


def test_pairs_are_the_teachers_distributions_at_the_same_place(pair: tuple[str, str], student: lb.Student) -> None:
    teacher = lb.Aligned(lb.Local(pair[1], dtype="float32")).load(student)
    batch = batch_of(student, *SAID)
    (said,) = teacher.score([batch])
    whole = said.rows(slice(0, len(batch.tokens_N)))
    pairs, tokens = whole.pairs_P, said.tokens_M[said.pair_N[whole.pairs_P]]
    assert 10 < len(pairs) < len(batch.tokens_N)
    own = whole.theirs.log_probs().gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(own.double(), said.log_p_N[pairs], rtol=1e-4, atol=1e-4)
    middle = said.rows(slice(7, 40)).block(slice(3, 20))
    torch.testing.assert_close(middle.theirs.logits_CV, whole.theirs.logits_CV[(pairs >= 10) & (pairs < 27)])


def test_a_server_says_the_same_spans(tmp_path: Path, pair: tuple[str, str], student: lb.Student) -> None:
    batch = batch_of(student, *SAID)
    parts = [batch.select([2, 0]), batch.select([]), batch.select([3, 1])]
    local = list(lb.Aligned(lb.Local(pair[1], dtype="float32")).load(student).score(parts))
    with served(pair[1]) as url:
        remote = lb.Aligned(lb.Endpoint(url, "toy", tokenizer=pair[1])).load(student)
        assert remote.says == {"spans"} and remote.teacher.top == 0
        for mine, theirs in zip(local, remote.score(parts), strict=True):
            torch.testing.assert_close(mine.log_p_N, theirs.log_p_N, rtol=1e-4, atol=1e-5)
            assert theirs.says == {"spans"}


@pytest.mark.parametrize("name", TERMS)
def test_a_teacher_of_the_same_tokenizer_and_weights_teaches_nothing(name: str, pair: tuple[str, str], student: lb.Student) -> None:
    teacher = lb.Aligned(lb.Local(pair[0], dtype="float32")).load(student)
    batch = batch_of(student, *SAID)
    (said,) = teacher.score([batch])
    assert torch.equal(said.pair_N, torch.arange(len(batch.tokens_N))), "equal vocabularies: each token is a span"
    nats = student.learn(batch, said, Objective([TERMS[name]]), 1.0)[TERMS[name].name]
    largest = max(float(w.grad.abs().max()) for w in student.live.module.parameters() if w.grad is not None)
    student.forget()
    assert float(nats.abs().max()) < 1e-5 and largest < 1e-4
    with pytest.raises(RecipeError, match="says what the student"):
        lb.distill(recipe((pair[0], pair[0]), TERMS[name], batch_file(pair), steps=1), Path(pair[0]).parent / f"itself-{name}")


def batch_file(pair: tuple[str, str]) -> str:
    return toys.jsonl(Path(pair[0]).parent / "train.jsonl", toys.rows(24))


def recipe(pair: tuple[str, str], term: lb.Term | Objective, data: str, **more: object) -> lb.Recipe:
    source = lb.Corpus(data, sequences=8)
    optimizer = lb.AdamW(3e-3, warmup=0.0, schedule="constant")
    settings = {"steps": 10, "save_every": None, **more}
    return lb.Recipe(lb.Student(pair[0], optimizer, dtype="float32"), source, lb.Aligned(lb.Local(pair[1], dtype="float32")), term, **settings)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str]) -> tuple[str, str]:
    """A teacher of pieces that knows the toys' answers, and rows it does not know."""
    made = tmp_path_factory.mktemp("learnt")
    cut = test_alignment.trained("bpe")
    torch.manual_seed(0)
    config = toys.config(rows=len(cut), bos_token_id=cut.bos_token_id, eos_token_id=cut.eos_token_id, pad_token_id=cut.eos_token_id, width=48)
    network = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    known = [{"messages": test_alignment.turns(row["prompt"], row["completion"])} for row in toys.rows(64, seed=5)]
    tokens = [torch.tensor(Vocabulary(cut).texts(row, Data("toy"), 200)[0].tokens) for row in known]
    batch = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-100)
    for _ in range(60):
        network(input_ids=batch.clamp(min=0), labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(made / "teacher")
    cut.save_pretrained(made / "teacher")
    toys.licensed(made / "teacher")
    return str(made / "teacher"), toys.jsonl(made / "heldout.jsonl", toys.rows(24, seed=9))


def bits(folder: str, data: str) -> float:
    """Bits a token of a student of bytes: of its own tokens they are bytes."""
    found = Likelihood(data, rows=24, samples=0).run(lb.Student(folder, dtype="float32").load(1), lb.Silent())
    return found["ce_nats"] / math.log(2)


@pytest.mark.parametrize("name", [*TERMS, "with text"])
def test_ten_steps_move_a_student_of_bytes_toward_a_teacher_of_pieces(
    name: str, tmp_path: Path, pair: tuple[str, str], learnt: tuple[str, str]
) -> None:
    """ULD and Gold know of a word's shape alone where one token is cut alike; spans know the text."""
    term = TERMS.get(name) or lb.CrossEntropy() + lb.SpanLikelihood() + 1.5 * lb.ULD() + lb.Gold()
    asked = recipe((pair[0], learnt[0]), term, batch_file(pair))
    before = measured_by(asked, term)
    lb.distill(asked, tmp_path / "run")
    after = measured_by(replace(asked, student=replace(asked.student, model=str(tmp_path / "run" / "student"))), term)
    assert all(after[each] < 0.97 * before[each] for each in before), (before, after)
    if name in ("SpanLikelihood", "with text"):
        assert bits(str(tmp_path / "run" / "student"), learnt[1]) < bits(pair[0], learnt[1]) - 0.2


def measured_by(asked: lb.Recipe, term: lb.Term | Objective) -> dict[str, float]:
    """Nats of each term on the rows that were learnt from."""
    student, teacher = asked.open_pair()
    source = asked.source.load(student.live.vocabulary, Share(0, 0, 1, teacher))
    batch = source.draw(0, student)
    (said,) = teacher.score([batch])
    return {name: float(nats.mean()) for name, nats in student.measure(batch, said, Objective.adopt(term)).items()}  # pyright: ignore


def test_passes_of_another_size_learn_the_same(tmp_path: Path, pair: tuple[str, str]) -> None:
    term = lb.SpanLikelihood() + lb.ULD() + lb.Gold()
    weights = []
    for tokens in (64, 4096):
        lb.distill(recipe(pair, term, batch_file(pair), steps=2, tokens_per_pass=tokens), tmp_path / str(tokens))
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(tokens) / "student").state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=2e-5)


def test_on_policy_text_is_told_too(tmp_path: Path, pair: tuple[str, str]) -> None:
    """An untaught student writes bytes that are no text, and the teacher reads them."""
    prompts = toys.jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in toys.rows(8)])
    made = lb.gold(lb.Student(pair[0], dtype="float32"), lb.Local(pair[1], dtype="float32"), prompts, steps=2)
    made = replace(
        made, source=lb.OnPolicy(prompts, sequences=4, sampling=lb.Sampling(max_tokens=12)), objective=made.objective + lb.SpanLikelihood()
    )
    lb.distill(made, tmp_path / "run")
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()


def test_a_run_is_checked_beforehand(tmp_path: Path, pair: tuple[str, str]) -> None:
    found = {line.what: line for line in check(recipe(pair, lb.SpanLikelihood(), batch_file(pair)), tmp_path / "run")}
    assert [line.found for line in found.values() if line.verdict == "problem"] == []
    assert found["vocabularies"].found.startswith("258 tokens beside the teacher's 318, 257 of the same bytes")
    assert "chunks differ from the formula" in found["self-test"].found


def test_the_self_test_says_nothing_of_text_without_a_pair(pair: tuple[str, str], student: lb.Student) -> None:
    """Where no token here is cut alike by both there is no gradient, which is no sign of a copy; text with a pair has one."""
    teacher = lb.Aligned(lb.Local(pair[1], dtype="float32")).load(student)

    def drawn(text: str) -> Batch:
        ids = student.live.vocabulary.ids(text)
        return Batch.of([Text(ids, [Span(3, len(ids))])], "corpus")

    for term in (lb.ULD(), lb.Gold()):
        (said,) = teacher.score([drawn("one the")])
        assert isinstance(said, Spans) and not (said.pair_N >= 0).any()
        done = self_test(student, teacher, Objective([term]), drawn=drawn("one the"))
        assert done.gradient is None and "teacher" not in str(done)
        paired = self_test(student, teacher, Objective([term]), drawn=drawn("one the xy"))
        assert paired.gradient is not None and paired.gradient > 0
    both = self_test(student, teacher, Objective([lb.SpanLikelihood(), lb.ULD()]), drawn=drawn("one the"))
    assert both.gradient is not None and both.gradient > 0, "a span needs no pair"


# Refusals


def refused(words: str, **parts: object) -> None:
    given = {"student": lb.Student("s"), "source": lb.Corpus("a.jsonl"), "teacher": lb.Aligned("t"), "objective": lb.SpanLikelihood(), **parts}
    with pytest.raises(RecipeError, match=words):
        lb.Recipe(**given)  # pyright: ignore


def test_what_does_not_fit_together_is_refused_in_one_line() -> None:
    refused(r"ForwardKL compares outcomes of one vocabulary.*SpanLikelihood\(\) or Gold\(\)", objective=lb.ForwardKL())
    refused(r"SampledReverseKL compares.*SpanLikelihood\(\)", objective=SampledReverseKL(), teacher=lb.Aligned(lb.Endpoint("http://h/v1", "m")))
    refused(r"SpanLikelihood needs a teacher that says spans; Local says.*Aligned\(Local\(model\)\)", teacher=lb.Local("t"))
    refused(r"ULD needs a teacher that says pairs; Aligned says spans", objective=lb.ULD(), teacher=lb.Aligned(lb.Endpoint("http://h/v1", "m")))
    for layers in (lb.HiddenStates(), lb.Attentions("last")):
        refused(rf"{layers.name} compares layers.*give a Local teacher of the student's vocabulary, or leave {layers.name} out", objective=layers)
    refused(r"Gold needs a teacher that says pairs; Silent says nothing", objective=lb.Gold(), teacher=lb.Silent())
    for inside in ("Guided('t', 2)", "Silent()", "Local('@student')", "'@student'", "Mixture({'a': Local('t')})"):
        with pytest.raises(RecipeError, match="has none of its own"):
            lb.config.build(f"Aligned({inside})", lb.Teacher)


def test_teachers_of_two_vocabularies_have_no_mean() -> None:
    with pytest.raises(RecipeError, match="nothing in common that can be joined"):
        lb.Mixture({"a": lb.Aligned("t"), "b": lb.Aligned("u")})


def test_a_hint_is_told_across_too(pair: tuple[str, str], student: lb.Student) -> None:
    """What is read with a hint is read in the teacher's own tokens, the hint in its own template."""
    batch = batch_of(student, "saw it")
    (said,) = lb.Privileged(lb.Aligned(lb.Local(pair[1], dtype="float32")), " Say it short.").load(student).score([batch])
    theirs = Vocabulary(AutoTokenizer.from_pretrained(pair[1]))
    prompt = theirs.chat(test_alignment.turns("the cat? Say it short."), prompt=True)
    assert float(said.log_p_N.sum()) == pytest.approx(sum(logp for _, logp in directly(pair[1], prompt, "saw it")), rel=1e-5)


def test_a_template_is_not_taken_across_vocabularies(pair: tuple[str, str]) -> None:
    with pytest.raises(RecipeError, match='set it to "own"'):
        lb.Aligned(lb.Local(pair[1])).load(lb.Student(pair[0], chat_template="teacher").load(1))


def test_text_beyond_the_teachers_context_is_refused(pair: tuple[str, str], student: lb.Student) -> None:
    teacher = lb.Aligned(lb.Local(pair[1], dtype="float32")).load(student)
    text = Text([64, *([230] * 300)], [Span(1, 301)])
    with pytest.raises(DataError, match=r"in the tokens of .* a row has 3.* its context is 256"):
        list(teacher.score([Batch.of([text], "corpus")]))


def test_a_teacher_that_loses_bytes_is_refused(tmp_path: Path, student: lb.Student) -> None:
    with pytest.raises(VocabularyError, match="do not give back the bytes"):
        lb.Aligned(lb.Local(other(tmp_path / "words", kind="words"))).load(student)
