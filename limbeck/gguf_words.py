"""What a GGUF file says of a tokenizer: tokens, their kinds, merges, how text is cut before them, the chat template.

The format's specification is at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp knows by name how text is cut
before merges; the names that are written here are of cuts whose rule is the tokenizer's own, to the letter.
"""

import json
from typing import Any, cast

from limbeck.errors import ModelError
from limbeck.vocabulary import Vocabulary

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as llama.cpp numbers them."""
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
CUTS = {_START + r"\p{N}" + _REST: "qwen2", _START + r"\p{N}{1,3}" + _REST: "llama-bpe"}
"""llama.cpp's names of cuts, by their rule; with the second a text that is a token is never cut further."""
CONVERT = "convert the hf folder with llama.cpp's own convert_hf_to_gguf.py, or serve it with --format vllm"


def write_words(file: Any, vocabulary: Vocabulary, name: str) -> None:
    """Write a tokenizer into the metadata of an open `gguf.GGUFWriter`. Raises ModelError for one that llama.cpp would read otherwise."""
    spec = _spec(vocabulary, name)
    model = cast(dict[str, Any], spec["model"])
    if not model.get("merges"):
        raise ModelError(f"the tokenizer of {name} has no merges, without which llama.cpp reads none; export it as hf or vllm")
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(_cut(spec, name))
    tokens, kinds = _tokens(vocabulary, spec, name)
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    file.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for role, token in _roles(vocabulary).items():
        getattr(file, f"add_{role}_token_id")(token)
    begins, ends = _put_around(vocabulary, name)
    file.add_add_bos_token(begins)
    file.add_add_eos_token(ends)
    file.add_add_space_prefix(False)
    if isinstance(vocabulary.template, str):
        file.add_chat_template(vocabulary.template)


def _spec(vocabulary: Vocabulary, name: str) -> dict[str, Any]:
    """The tokenizer as its library writes it down, where it is one of bytes and merges."""
    backend = getattr(vocabulary.tokenizer, "backend_tokenizer", None)
    spec = cast(dict[str, Any], json.loads(backend.to_str())) if backend is not None else {}
    kind = (spec.get("model") or {}).get("type")
    if kind != "BPE" or spec["model"].get("byte_fallback"):
        found = "SentencePiece with bytes as a last resort" if kind == "BPE" else kind or type(vocabulary.tokenizer).__name__
        raise ModelError(f"the tokenizer of {name} is {found}, and GGUF is written here of byte-level BPE alone; {CONVERT}")
    return spec


def _cut(spec: dict[str, Any], name: str) -> str:
    """llama.cpp's name of how text is cut before merges. Raises ModelError where it has none that is known here to be the same."""
    before = spec["pre_tokenizer"] or {}
    steps = [_step(step) for step in (before["pretokenizers"] if before.get("type") == "Sequence" else [before])]
    match steps:
        case ["words"]:
            found = "gpt-2"
        case ["digits", "words"]:
            found = "smollm"
        case [rule, "bytes"] if rule in CUTS:
            found = CUTS[rule]
        case _:
            raise ModelError(f"the tokenizer of {name} cuts text in a way that has no name here ({', '.join(steps)[:120]}); {CONVERT}")
    if bool(spec["model"].get("ignore_merges")) != (found == "llama-bpe"):
        raise ModelError(f"the tokenizer of {name} {'ignores' if found != 'llama-bpe' else 'heeds'} merges within a token, and {found} does not; "
                         f"{CONVERT}")  # fmt: skip
    if (normal := spec.get("normalizer")) and normal.get("type") != "NFC":
        raise ModelError(f"the tokenizer of {name} changes text before it cuts it ({normal.get('type')}), as llama.cpp does not; {CONVERT}")
    return found


def _step(step: dict[str, Any]) -> str:
    """One step of a cut in a word, or the rule that it splits by."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "words" if regex else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}:
            return cast(str, rule)
        case _:
            return str(step.get("type", "nothing"))


def _tokens(vocabulary: Vocabulary, spec: dict[str, Any], name: str) -> tuple[list[str], list[int]]:
    """Every token by its number, and its kind; a number that no token has is filled."""
    tokens, kinds = [f"[PAD{n}]" for n in range(vocabulary.size)], [UNUSED] * vocabulary.size
    for token, number in vocabulary.map.items():
        tokens[number], kinds[number] = token, NORMAL
    for added in spec["added_tokens"] or []:
        if any(added[trait] for trait in ("lstrip", "rstrip", "single_word")):
            raise ModelError(f"the token {added['content']!r} of {name} takes the space around it with it, as llama.cpp does not; {CONVERT}")
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def _roles(vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens that llama.cpp knows by what they are for; `eot` ends a turn where that is another than what ends a text."""
    named = {role: getattr(vocabulary.tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    roles = {role: token for role, token in named.items() if isinstance(token, int)}
    others = sorted(vocabulary.end_ids - {roles.get("eos")})
    if others and "eos" not in roles:
        roles["eos"], *others = others
    return roles | ({"eot": others[0]} if others else {})


def _put_around(vocabulary: Vocabulary, name: str) -> tuple[bool, bool]:
    """Whether a plain text gets a token before it, and one behind it."""
    plain, whole = vocabulary.ids("x"), cast(list[int], vocabulary.tokenizer("x")["input_ids"])
    for begins, ends in ((False, False), (True, False), (False, True), (True, True)):
        before, after = ([vocabulary.tokenizer.bos_token_id] * begins, [vocabulary.tokenizer.eos_token_id] * ends)
        if whole == [*before, *plain, *after]:
            return begins, ends
    raise ModelError(f"the tokenizer of {name} puts {vocabulary.tokenizer.decode(whole)!r} around a text, as llama.cpp cannot; {CONVERT}")
