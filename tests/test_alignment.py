"""The same bytes in the tokens of two vocabularies, on awkward text; and the spans that both cut."""

import json
from itertools import pairwise

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from limbeck.alignment import Alignment, joints
from limbeck.batch import Batch, Span, Text
from limbeck.data import Data
from limbeck.errors import DataError, VocabularyError
from limbeck.pieces import Pieces
from limbeck.vocabulary import PROBE_TEXT, Vocabulary

LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[SYS]{{ m['content'] | trim }}[/SYS]{% elif m['role'] == 'user' %}"
    "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
AWKWARD = [
    "", " ", "  two  spaces ", "\n\n\ttabs\r\n", "e\u0301 A\u030a n\u0303 \u1e69\u0323",
    "\U0001f469\U0001f3fd\u200d\U0001f4bb \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u200f \u202eabc\u202c", "\x00\x01\x7f\x85",
    "\u2581 \u0120 <0x0A> </s> <|im_end|> [INST]", "\ufeffbom \ufffd",
    "\u6771\u4eac\u90fd\u306f\u3001 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab", "\U0001d54f\U0010ffff",
    "don't   stop \u00a0 now", PROBE_TEXT,
]  # fmt: skip
"""Combining marks, joiners, both directions, control characters, what tokens are called, blanks in every place."""


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of its own, made of a few words."""
    corpus = ["the cat saw the dog and the sun", "one two three red green blue", "don't stop now, Zoë naïve 東京", *toys.WORDS] * 4
    if kind in ("bpe", "bpe-nfc", "bpe-blank"):
        made = Tokenizer(models.BPE())
        made.normalizer = normalizers.NFC() if kind == "bpe-nfc" else None
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bpe-blank"), decoders.ByteLevel()
        specials, more = ["<s>", "</s>"], {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=specials, show_progress=False, **more)
    elif kind == "pieces":  # as sentencepiece: blanks seen, one put before a text, bytes for what is not known
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer, made.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(corpus, trainer)
    if kind == "pieces":  # the bytes are tokens like others, not special
        plain = json.loads(made.to_str())
        plain["added_tokens"] = [each for each in plain["added_tokens"] if not each["content"].startswith("<0x")]
        made = Tokenizer.from_str(json.dumps(plain))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=LLAMA_LIKE)


def pieces(kind: str) -> Pieces:
    return Pieces(Vocabulary(toys.tokenizer() if kind == "bytes" else trained(kind)), kind)


KINDS = ("bytes", "bpe", "bpe-nfc", "bpe-blank", "pieces")
ALL = {kind: pieces(kind) for kind in KINDS}


def joined(made: Pieces, ids: list[int], begins: bool = True) -> bytes:
    return b"".join(piece or b"" for piece in made.of(ids, begins))


# Tokens and bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("begins", [True, False])
def test_awkward_text_comes_back_byte_for_byte(kind: str, text: str, begins: bool) -> None:
    made = ALL[kind]
    ids = made.ids(text.encode(), begins)
    assert joined(made, ids, begins) == text.encode()
    assert not set(ids) & made.steering, "however text is written, nothing in it steers"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(text=st.text(max_size=40), begins=st.booleans())
def test_any_text_comes_back(kind: str, text: str, begins: bool) -> None:
    assert joined(ALL[kind], ALL[kind].ids(text.encode(), begins), begins) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(wanted=st.lists(st.one_of(st.binary(max_size=4), st.sampled_from(AWKWARD).map(str.encode)), max_size=4).map(b"".join))
def test_any_bytes_come_back(kind: str, wanted: bytes) -> None:
    """Those that are no text too: half a character, bytes that no character has."""
    assert joined(ALL[kind], ALL[kind].ids(wanted, True)) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_cut_as_the_tokenizer_cuts_it(kind: str) -> None:
    for text in ("the cat saw", "don't stop now", "Zoë 東京"):
        assert ALL[kind].ids(text.encode(), begins=True) == ALL[kind].vocabulary.ids(text)


def test_a_tokenizer_that_loses_bytes_is_refused() -> None:
    with pytest.raises(VocabularyError, match=r"WordPiece.*do not give back the bytes.*byte-level"):
        pieces("words")


def test_a_vocabulary_without_a_byte_ends_before_it() -> None:
    made = pieces("bpe")
    del made.of_bytes[b"\xff"]
    assert joined(made, made.ids(b"the \xff cat", begins=True)) == b"the "


# Spans


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=30).flatmap(
        lambda lengths: st.tuples(st.just(lengths), st.sets(st.integers(1, sum(lengths)), max_size=20), st.lists(st.integers(0, 30), max_size=4))
    )
)
def test_spans_partition_both_and_are_minimal(drawn: tuple[list[int], set[int], list[int]]) -> None:
    mine, cuts, empty = drawn
    whole = sum(mine)
    bounds = [0, *sorted(cuts - {whole}), whole]
    theirs = [b - a for a, b in pairwise(bounds)]
    for place in empty:
        theirs.insert(min(place, len(theirs)), 0)
    found = joints(mine, theirs)
    assert [n for each in found for n in range(*each.mine)] == list(range(len(mine)))
    assert [m for each in found for m in range(*each.theirs)] == list(range(len(theirs)))
    for each in found:
        assert sum(mine[slice(*each.mine)]) == sum(theirs[slice(*each.theirs)])
    inner = set(torch.tensor(mine).cumsum(0).tolist()) & set(torch.tensor(theirs).cumsum(0).tolist())
    assert len(found) == len(inner - {0}), "a boundary of both inside a span"


def test_after_one_cut_ends_nothing_is_in_a_span() -> None:
    assert [(each.mine, each.theirs) for each in joints([1, 2, 3, 1], [3, 1])] == [((0, 2), (0, 1))]
    assert joints([4], []) == []


# A pass in the other's tokens


def alignment(mine: str = "bytes", theirs: str = "bpe") -> Alignment:
    return Alignment(ALL[mine], ALL[theirs])


def batch_of(kind: str, messages: list[dict[str, str]]) -> Batch:
    return Batch.of(ALL[kind].vocabulary.texts({"messages": messages}, Data("toy"), 10_000), "corpus")


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": content} for n, content in enumerate(said)]


@pytest.mark.parametrize("mine", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
@settings(deadline=None, max_examples=8)
@given(text=st.one_of(st.sampled_from(AWKWARD), st.text(max_size=30)))
def test_every_row_is_in_a_span_of_the_same_bytes(mine: str, theirs: str, text: str) -> None:
    student, teacher = ALL[mine], ALL[theirs]
    ids = [*student.ids(text.encode(), begins=True), student.vocabulary.tokenizer.eos_token_id]
    prompt = student.vocabulary.prompt({"messages": turns("the cat?")}, Data("toy"))
    batch = Batch.of([Text.answered(prompt, ids, {})], "student")
    found = Alignment(student, teacher).of(batch)
    assert (found.ends_N >= 0).all() and (found.row_M >= 0).all()
    told = found.theirs.tokens_N.tolist()
    assert told[-1] == Alignment(student, teacher)._end_of_turn, "an end for an end"
    mine_pieces, their_pieces = student.of(ids, begins=True), teacher.of(told, begins=True)
    for end in sorted(set(found.ends_N.tolist())):
        inside = b"".join(mine_pieces[n] or b"" for n in range(len(ids)) if found.ends_N[n] == end)
        assert inside == b"".join(their_pieces[m] or b"" for m in range(len(told)) if found.row_M[m] == end)
    for n in (found.pair_N >= 0).nonzero().flatten().tolist():
        assert mine_pieces[n] == their_pieces[int(found.pair_N[n])]


@settings(deadline=None, max_examples=30)
@given(ids=st.lists(st.integers(0, 257), min_size=1, max_size=30), start=st.integers(1, 5))
def test_whatever_tokens_a_student_writes_are_told(ids: list[int], start: int) -> None:
    """Byte tokens in any order, and tokens that steer anywhere: the teacher's stand for the same, or read how they are written."""
    text = Text([64] * start + ids, [Span(start, start + len(ids))])
    found = alignment().of(Batch.of([text], "student"))
    assert (found.ends_N >= 0).all() and len(found.ends_N) == len(ids)
    theirs, written = ALL["bpe"], {256: b"<|im_start|>"}
    told = [theirs.of_token[token] if token not in theirs.steering else b"\0END" for token in found.theirs.tokens_N.tolist()]
    wanted = [b"\0END" if token == 257 else written.get(token) or ALL["bytes"].of_token[token] for token in ids]
    assert b"".join(told) == b"".join(wanted)


def test_the_same_tokenizer_is_every_token_alone() -> None:
    batch = batch_of("bpe", turns("the cat", "saw naïve 東京", "and?", "the dog"))
    found = alignment("bpe", "bpe").of(batch)
    count = torch.arange(len(batch.tokens_N))
    assert torch.equal(found.ends_N, count) and torch.equal(found.pair_N, count) and torch.equal(found.row_M, count)
    assert torch.equal(found.theirs.tokens_N, batch.tokens_N)
    mine, theirs = alignment("bpe", "bpe").common
    assert torch.equal(mine, theirs) and len(mine) == ALL["bpe"].vocabulary.size


def test_a_dialogue_is_rendered_by_the_teachers_own_template() -> None:
    messages = [{"role": "system", "content": "Be short."}, *turns("the cat?", "saw it", "and then?", "the dog")]
    found = alignment().of(batch_of("bytes", messages)).theirs
    theirs = ALL["bpe"].vocabulary
    assert found.prompts() == [theirs.ids(theirs.chat(messages[:n], prompt=True)) for n in (2, 4)]
    assert [theirs.tokenizer.decode(each[-1]) for each in found.sequences()] == ["</s>", "</s>"]
    assert theirs.tokenizer.decode(found.tokens_N.tolist()) == "saw it</s>the dog</s>"


def test_a_plain_prompt_is_told_as_it_stands() -> None:
    student = Pieces(Vocabulary(toys.tokenizer(None)), "plain")
    batch = Batch.of(student.vocabulary.texts({"prompt": "the cat e\u0301", "completion": "saw"}, Data("toy"), 100), "corpus")
    found = Alignment(student, ALL["bpe"]).of(batch).theirs
    assert joined(ALL["bpe"], found.prompts()[0]) == "the cat e\u0301".encode()
    assert found.tokens_N.tolist() == [*ALL["bpe"].vocabulary.ids("saw"), ALL["bpe"].vocabulary.tokenizer.eos_token_id]


def test_nothing_is_said_of_what_nothing_predicts() -> None:
    """A student's text begins with its first token alone, which the teacher's tokenizer has no like of."""
    begun = alignment("pieces", "bytes")
    bos = ALL["pieces"].vocabulary.tokenizer.bos_token_id
    ids = ALL["pieces"].ids(b"the cat 99 zz", begins=True)
    found = begun.of(Batch.of([Text([bos, *ids], [Span(1, 1 + len(ids))])], "corpus"))
    first = int((found.ends_N >= 0).nonzero()[0])
    assert first > 0 and (found.ends_N[:first] == -1).all() and (found.ends_N[first:] >= 0).all()
    assert len(found.theirs.tokens_N) == len(b"the cat 99 zz") - 1
    assert (found.row_M[: sum(len(piece or b"") for piece in ALL["pieces"].of(ids, True)[:first]) - 1] == -1).all()


def test_after_a_byte_that_the_teacher_lacks_nothing_is_said() -> None:
    teacher = pieces("bpe")
    del teacher.of_bytes[b"\xff"]
    student = ALL["bytes"]
    answer = [*student.ids(b"the cat"), student.of_bytes[b"\xff"], *student.ids(b" dog")]
    found = Alignment(student, teacher).of(Batch.of([Text([64, *answer], [Span(1, 1 + len(answer))])], "student"))
    assert (found.ends_N[:7] >= 0).all() and (found.ends_N[7:] == -1).all() and (found.pair_N[7:] == -1).all()
    with pytest.raises(DataError, match="no tokens for a byte of a prompt"):
        Alignment(student, teacher).of(Batch.of([Text([*answer, 64], [Span(len(answer), len(answer) + 1)])], "student"))


def test_a_prompt_that_cannot_be_read_back_is_refused() -> None:
    student = ALL["bytes"].vocabulary
    for rendered in (
        student.chat([{"role": "tool", "content": "4"}, *turns("so?")], prompt=True),  # begins with neither
        student.chat(turns("so?"), prompt=True) + "<think>",  # set otherwise
    ):
        ids = student.ids(rendered)
        with pytest.raises(DataError, match="cannot read back the dialogue"):
            alignment().of(Batch.of([Text([*ids, 64], [Span(len(ids), len(ids) + 1)])], "student"))


def test_an_empty_pass_is_one() -> None:
    found = alignment().of(Batch.of([], "student"))
    assert len(found.theirs) == 0 and len(found.ends_N) == 0


def test_common_tokens_stand_for_the_same_bytes() -> None:
    for mine, theirs in (("bytes", "bpe"), ("pieces", "bpe"), ("bpe-blank", "pieces")):
        for a, b in zip(*(each.tolist() for each in alignment(mine, theirs).common), strict=True):
            ends = (a == ALL[mine].vocabulary.tokenizer.eos_token_id, b == ALL[theirs].vocabulary.tokenizer.eos_token_id)
            same = a in ALL[mine].steering or ALL[mine].of_token[a] == ALL[theirs].of_token[b]
            assert ends[0] == ends[1] and same
