"""Writing with a draft as a user does it: from Python, in colour in the terminal, and the figures of a pair."""

import json

import numpy as np
import pytest
import torch
import toys
from test_cli import said

from limbeck.batch import Batch, Text
from limbeck.decoding import Round, Sampling
from limbeck.drafts import generate, shown
from limbeck.errors import RecipeError, VocabularyError
from limbeck.evaluate.acceptance import acceptance, costs, overlap, written_by
from limbeck.models import Model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("pair")
    toys.folder(made / "target", seed=0, layers=3, sharp=2.0)
    toys.folder(made / "draft", seed=0, layers=1, sharp=2.0)
    toys.jsonl(made / "prompts.jsonl", toys.rows(6))
    toys.jsonl(made / "empty.jsonl", [])
    return made


@pytest.fixture(scope="module")
def pair(home) -> tuple[Model, Model]:
    from limbeck.drafts import opened

    return opened(str(home / "target"), "float32"), opened(str(home / "draft"), "float32")


def test_greedy_text_with_a_draft_is_that_without(pair: tuple[Model, Model]) -> None:
    target, draft = pair
    prompts = ["one two", [5, 6, 7], [{"role": "user", "content": "red"}]]
    plain = generate(target, prompts, sampling=Sampling(20, temperature=0))
    for gamma in (1, 4, None):
        found = generate(target, prompts, draft, Sampling(20, temperature=0), gamma)
        assert [each.tokens for each in found] == [each.tokens for each in plain]
        assert [each.text for each in found] == [each.text for each in plain]
    assert generate(target, [], draft) == []


def test_what_is_asked_wrongly(pair: tuple[Model, Model], tmp_path) -> None:
    target, draft = pair
    with pytest.raises(RecipeError, match="prompt 1 has no token"):
        generate(target, [[5], []], draft)
    with pytest.raises(RecipeError, match="gamma"):
        generate(target, [[5]], draft, gamma=-1)
    other = toys.opened(tmp_path, template=None)
    other.vocabulary.tokenizer.add_tokens(["<more>"])
    with pytest.raises(VocabularyError):
        generate(target, [[5]], Model(other.module, type(other.vocabulary)(other.vocabulary.tokenizer), "other", other.compute, other.head_like))


def test_a_larger_draft_is_said(pair: tuple[Model, Model], capsys) -> None:
    generate(pair[1], [[5, 6]], pair[0], Sampling(4, temperature=0), gamma=2)
    assert "it will not pay" in capsys.readouterr().err


def test_colours_add_up_to_the_text(pair: tuple[Model, Model]) -> None:
    target, draft = pair
    for each in generate(target, ["one two", "red"], draft, Sampling(24), gamma=4):
        line = shown(each, target.vocabulary)
        refused = "".join(line.plain[span.start : span.end] for span in line.spans if "red" in str(span.style))
        kept = "".join(line.plain[span.start : span.end] for span in line.spans if "red" not in str(span.style))
        assert kept == each.text or "\ufffd" in kept, "bytes of one letter may stand in two tokens"
        assert bool(refused) == any(one.kept < len(one.proposed) and one.took > one.kept for one in each.rounds)
        assert {one.took for one in each.rounds} <= {*range(1, 6)} and isinstance(each.rounds[0], Round)


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(8, temperature=0), Sampling(8, temperature=0.6, top_p=0.8)], ids=str)
def test_overlap_by_the_definition(pair: tuple[Model, Model], sampling: Sampling) -> None:
    """sum min(p, q), one token at a time, in float64."""
    target, draft = pair
    texts = [Text.answered([5, 6], [7, 8, 9], {}), Text.answered([100], [44, 45], {})]
    found = overlap(target, draft, texts, sampling)
    batch = Batch.of(texts, "corpus")
    wanted = []
    for ids, count in (([5, 6, 7, 8, 9], 3), ([100, 44, 45], 2)):
        logits = [model.module(torch.tensor([ids])).logits[0, :, :258].detach().double().numpy() for model in pair]
        wanted.append(
            [float(np.minimum(*(probs(each[place], sampling) for each in logits)).sum()) for place in range(len(ids) - 1 - count, len(ids) - 1)]
        )
    assert [len(each) for each in found] == [3, 2] and len(batch.places_N) == 5
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def probs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    if sampling.temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    return p / p.sum()


def test_a_pair_of_one_model_accepts_everything(pair: tuple[Model, Model]) -> None:
    texts = written_by(pair[0], [[5, 6], [7]], Sampling(12))
    assert all(value == pytest.approx(1, abs=1e-6) for each in overlap(pair[0], pair[0], texts, Sampling(12)) for value in each)


def test_figures_of_a_pair(pair: tuple[Model, Model]) -> None:
    """What a round keeps agrees with what acceptance foretells, as far as its tokens are independent."""
    target, draft = pair
    found = acceptance(target, draft, [[n, n + 1] for n in range(40)], Sampling(24), rows=(2,), measure="no")
    low, high = found.on_target_text_interval
    assert 0 < low < found.on_target_text < high < 1
    (cost,) = found.costs
    assert cost.cost > 0 and cost.row_cost >= 0 and len(found.speeds[2]) == 8 and 0 <= found.best_gamma[2] <= 8
    json.dumps(found.plain())
    assert costs(target, draft, [[1, 2, 3]], 3).rows == 3


def test_from_the_terminal(home, monkeypatch, capsys) -> None:
    asked = "evaluate --target target --draft draft --data prompts.jsonl --max-tokens 6 --dtype float32"
    code, out, _ = said(f"{asked} --acceptance --rows 3 --out pair.json", home, monkeypatch, capsys)
    assert code == 0 and "acceptance on the target's text" in out and "at a batch of 8" in out
    assert json.loads((home / "pair.json").read_text())["costs"] and "plotly" in (home / "pair.html").read_text()[:20000]
    code, out, _ = said(f"{asked} --show-drafts --gamma 2 --rows 2", home, monkeypatch, capsys)
    assert code == 0 and "refused" in out and "acceptance on" not in out


@pytest.mark.parametrize("arguments, wanted", [
    ("--target target --data prompts.jsonl", "give --target and --draft"),
    ("--target target --draft draft --student draft --data prompts.jsonl", "give --target and --draft"),
    ("--data prompts.jsonl", "run folders or --student say who is measured"),
    ("--target target --draft draft --acceptance --data empty.jsonl", "empty.jsonl"),
    ("--target target --draft draft --acceptance --data prompts.jsonl --max-tokens 400", "lower max_tokens"),
    ("--target target --draft nowhere --acceptance --data prompts.jsonl", "nowhere"),
])  # fmt: skip
def test_typed_wrong(arguments: str, wanted: str, home, monkeypatch, capsys) -> None:
    code, _, err = said(f"evaluate {arguments}", home, monkeypatch, capsys)
    assert code == 2 and wanted in err and err.count("\n") == 1
