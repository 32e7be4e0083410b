"""A folder of things that are wrong: recipes, data, models, functions; each in one way, and named for it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import toys
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

FILES = {
    "empty.yaml": b"",
    "binary.yaml": b"\x89PNG\xff\x00",
    "tabs.yaml": b"student:\n\tmodel: a\n",
    "twice.yaml": b"student: a\nsource: Corpus('train.jsonl')\nstudent: b\n",
    "list.yaml": b"- a\n",
    "open.yaml": b"a: [\n",
    "python.yaml": b"student: !!python/object/apply:os.system [ls]\n",
    "typo.yaml": b"studnet: student\n",
    "deep.yaml": b"student: student\nsource:\n  type: Corpus\n  data:\n  - path: train.jsonl\n    wieght: 2\n",
    "empty.jsonl": b"",
    "broken.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt"\n',
    "number.jsonl": b'{"prompt": "a", "completion": "b"}\n5\n',
    "latin.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xe9", "completion": "b"}\n',
    "broken.parquet": b"PAR1 and then nothing",
    "none.gguf": b"no GGUF",
    "cut.gguf": b"GGUF\x03\x00\x00\x00\x10",
    "notes.txt": b"text\n",
    "syntax.py": b"def f(:\n",
    "raising.py": b"1 / 0\n",
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "train": toys.rows(8),
    "other": [{"question": "?"}],
    "later": [*toys.rows(3), {"question": "?"}],
    "unpaired": [{"prompt": "a"}],
    "answer": [{"completion": "a"}],
    "text": [{"text": "a b c"}],
    "listed": [{"prompt": [1], "completion": "b"}],
    "mapped": [{"prompt": "a", "completion": {"a": 1}}],
    "roleless": [{"messages": [{"content": "a"}]}],
    "wizard": [{"messages": [{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    "wordless": [{"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]}],
    "turnless": [{"messages": []}],
    "spoken": [{"messages": "hello"}],
    "monologue": [{"messages": [{"role": "assistant", "content": "b"}]}],
    "unanswered": [{"messages": [{"role": "user", "content": "b"}]}],
    "narrated": [{"conversations": [{"from": "narrator", "value": "a"}]}],
    "half": [{"prompt_ids": [1, 2]}],
    "negative": [{"prompt_ids": [1, -2], "completion_ids": [3]}],
    "large": [{"prompt_ids": [1, 2], "completion_ids": [3, 258]}],
    "huge": [{"prompt_ids": [1, 10**30], "completion_ids": [3]}],
    "words": [{"prompt_ids": [1, "a"], "completion_ids": [3]}],
    "single": [{"prompt_ids": 5, "completion_ids": [3]}],
    "logp": [{"prompt_ids": [1], "completion_ids": [3, 4], "completion_logp": [-1.0]}],
    "logp_words": [{"prompt_ids": [1], "completion_ids": [3], "completion_logp": ["a"]}],
    "long": [{"prompt": "a" * 400, "completion": "b"}],
    "some_long": [*toys.rows(3), {"prompt": "a" * 400, "completion": "b"}],
    "masked": [{"prompt_ids": [1], "completion_ids": []}],
    "blank": [{"prompt": "", "completion": "a"}],
    "tools": [{"prompt": "a", "completion": "b", "tools": "{"}],
    "nulls": [{"prompt": "a", "completion": None, "messages": None}],
}
MINE = """
number = 5

def length(text, row): return len(text) + len(row["prompt"])
def divides(text, row): return 1 / 0
def nan(text, row): return float("nan")
def word(text, row): return "1.0"
def nothing(*given): return None
def few(text): return 1
def scalar(log_q, log_p): return log_q.sum()
def no_number(log_q, log_p): return log_q.sum(-1) * float("nan")
def listed(log_q, log_p): return [1.0]
def apart(log_q, log_p): return log_q.detach().sum(-1)
def raises(*given): raise RuntimeError("of\\nmy own")
def strings(step, seed): return ["text"]
def none(step, seed): return []
def columns(step, seed): return [{"question": "?"}]
"""
SMALL: dict[str, Any] = {"layers": 1, "width": 16}


class Trap:
    """A pickle that leaves a trace where it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def fill(made: Path) -> None:
    """Write all of it into a folder, beside a student and a teacher that are whole."""
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    for name, rows in ROWS.items():
        toys.jsonl(made / f"{name}.jsonl", rows)
    (made / "mine.py").write_text(MINE)
    (made / "folder.yaml").mkdir()
    (made / "folder").mkdir()
    toys.licensed(made / "folder")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(toys.rows(3))}).save_to_disk(str(made / "saved"))
    toys.licensed(made / "saved")
    toys.folder(made / "student", seed=1, **SMALL)
    toys.folder(made / "teacher", seed=2, **SMALL)
    _other_models(made)
    _broken_folders(made)


def _other_models(home: Path) -> None:
    """Whole models that are no students: other kinds, other vocabularies."""
    plain = toys.tokenizer(None)
    for name in ("plain", "plain_teacher"):
        toys.folder(home / name, template=None, seed=len(name), **SMALL)
    toys.folder(home / "short", rows=200, pad_token_id=0, eos_token_id=0, bos_token_id=0, **SMALL)
    t5 = T5Config(vocab_size=272, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    bert = BertConfig(vocab_size=272, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    for name, model in {"t5": T5ForConditionalGeneration(t5), "bert": BertForMaskedLM(bert)}.items():
        model.save_pretrained(home / name)
        plain.save_pretrained(home / name)


TEMPLATES = {
    "tight": toys.CHATML.replace("<|im_end|>\n", "<|im_end|>"),
    "raising": "{{ raise_exception('no such\nrole') }}",
    "unclosed": "{% for m in messages %}",
    "strict": "{% for m in messages %}{% if m['role'] == 'wizard' %}{{ raise_exception('no wizards') }}{% endif %}{% endfor %}" + toys.CHATML,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "nonsense": {"model_type": "nonsense"},
    "wide": {"hidden_size": 32},
    "deep": {"num_hidden_layers": 2},
    "uneven": {"num_attention_heads": 3},
    "remote": {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
}


def _broken_folders(home: Path) -> None:
    """Copies of the student, each with one thing wrong."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(home / "student", home / name))

    for name, template in TEMPLATES.items():
        (copied(name) / "chat_template.jinja").write_text(template)
    for name, changed in CONFIGS.items():
        path = copied(name) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (home / "remote" / "code.py").write_text("open('ran', 'w')\n")
    for name, text in {"bad_config": "{", "list_config": "[]"}.items():
        (copied(name) / "config.json").write_text(text)
    (copied("no_config") / "config.json").unlink()
    for file in [*copied("no_tokenizer").glob("tokenizer*")]:
        file.unlink()
    (copied("bad_tokenizer") / "tokenizer.json").write_text("{")
    path = copied("swapped") / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    a, b, *_ = ids = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {**ids, a: ids[b], b: ids[a]}
    path.write_text(json.dumps(tokenizer))
    _broken_weights(home / "student" / "model.safetensors", copied)


def _broken_weights(weights: Path, copied: Callable[[str], Path]) -> None:
    for name, content in {"cut": weights.read_bytes()[:-100], "hollow": b"", "noise": b"\xff" * 100}.items():
        (copied(name) / weights.name).write_bytes(content)
    tensors = load_file(weights)
    some = {name: tensor for name, tensor in tensors.items() if "q_proj" not in name}
    for name, kept in {"bare": {}, "some": some, "renamed": {f"x.{name}": tensor for name, tensor in tensors.items()}}.items():
        save_file(kept, copied(name) / weights.name, {"format": "pt"})
    (copied("weightless") / weights.name).unlink()
    pickled = copied("pickled")
    (pickled / weights.name).unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
