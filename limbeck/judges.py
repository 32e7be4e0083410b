"""Models that say what a completion is worth: a reward model, or any teacher that is asked for a mark."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

from limbeck.answers import Purse, Question
from limbeck.config import live, part
from limbeck.data import Data
from limbeck.decoding import Sampling
from limbeck.errors import EndpointError, ModelError, RecipeError
from limbeck.lazy import torch
from limbeck.licences import Licence, of_model
from limbeck.machine import Precision, device, precision
from limbeck.teachers import Teacher
from limbeck.verifiers import Verifier

ASKED = """Mark an answer to a question.

Question:
{prompt}

Answer:
{completion}

{criterion} Reply with one whole number from 0 (useless) to {best} (perfect), and nothing else."""


@part
class Judge(Verifier):
    """Any teacher that writes, asked for a mark (arXiv 2306.05685); the reward is mark / best, between 0 and 1.

    criterion: what to look at, in a sentence. tries: how often an answer without a mark is asked for anew; after them it
    raises EndpointError. The first is greedy. Judges favour long answers and their own: compare them with a verifier.
    """

    teacher: Teacher
    criterion: str = "Look at whether it is correct, and whether it answers what was asked."
    best: int = 10
    tries: int = 3
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.best < 1 or self.tries < 1:
            raise RecipeError(f"a judge needs a best mark and tries of at least 1, found {self.best} and {self.tries}")

    def load(self) -> Self:
        """The teacher alive."""
        return type(self)(self.teacher.writing(), self.criterion, self.best, self.tries, self.max_tokens)

    def through(self, wrap: Callable[[Any], Any]) -> "Judge":
        """The same, asking a wrapped teacher."""
        return replace(self, teacher=wrap(self.teacher))

    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """The marks, each completion asked about once, alike ones together. Raises RecipeError where a budget ends before."""
        data = Data(path="a judge's questions", template="auto")
        asked = [Question({"prompt": self.question(completion, row)}, data) for completion, row in zip(completions, rows, strict=True)]
        left, marks = {question.key: question for question in asked}, dict[str, float]()
        last = ""
        for number in range(self.tries):
            sampling = Sampling(self.max_tokens, temperature=0.0 if number == 0 else 1.0)
            again = [question.only((number,)) for question in left.values()]
            unpaid = len(again)
            for given in self.teacher.answers(again, sampling, Purse()):
                unpaid -= 1
                if (mark := self.mark(given.answer.text)) is None:
                    last = given.answer.text
                else:
                    marks[given.question.key] = mark
                    del left[given.question.key]
            if unpaid:
                raise RecipeError(f"the budget was spent before the judge had marked all: {unpaid} of {len(asked)} answers are left; raise it, and "
                                  "give the same command again: what was paid for is kept")  # fmt: skip
        if left:
            raise EndpointError(f"the judge gave {len(left)} of {len(asked)} answers no mark from 0 to {self.best} in {self.tries} tries; it said "
                                f"{last[:80]!r}; take a stronger judge, or a verifier")  # fmt: skip
        return [marks[question.key] for question in asked]

    def question(self, completion: str, row: dict[str, Any]) -> str:
        """What the teacher is asked."""
        filled = {"prompt": row.get("prompt", ""), "completion": completion, "criterion": self.criterion, "best": self.best}
        return re.sub(r"\{(\w+)\}", lambda found: str(filled[found[1]]), ASKED)

    def mark(self, said: str) -> float | None:
        """The mark between 0 and 1 that an answer gives; None where it gives none, or one outside."""
        found = re.search(r"(?<!out of )(?<![\d.,/-])(\d+)(?:\s*/\s*(\d+))?(?!\d|[.,]\d)", said.lower())
        if found is None or int(found[1]) > self.best or (found[2] and int(found[2]) != self.best):
            return None
        return int(found[1]) / self.best


@part
class RewardModel(Verifier):
    """A model of preferences: a sequence classifier with one output, read after the dialogue; the reward is that logit.

    model: hub name or folder. max_tokens: longer dialogues raise ModelError, since a reward of half an answer is none.
    """

    model: str
    dtype: Precision = "auto"
    max_tokens: int = 2048
    rows_per_pass: int = 8

    _module: Any = live()
    _tokenizer: Any = live()

    @property
    def licences(self) -> list[Licence]:
        """The model's own."""
        return of_model(self.model)

    def load(self) -> Self:
        """Open the model. Raises ModelError for one that has not one output."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        made = self.fresh()
        try:
            made._tokenizer = AutoTokenizer.from_pretrained(self.model)
            made._module = AutoModelForSequenceClassification.from_pretrained(self.model, dtype=precision(self.dtype), use_safetensors=True)
        except Exception as error:  # the library raises many kinds
            raise ModelError(f"cannot open the reward model {self.model}: {' '.join(str(error).split())[:200]}; give a folder or a name") from None
        if made._module.config.num_labels != 1:
            raise ModelError(f"{self.model} has {made._module.config.num_labels} outputs, and a reward is one number; give a reward model")
        made._module.to(device()).eval()
        return made

    def judge(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """The logit of each dialogue."""
        ids = [self._ids(completion, row) for completion, row in zip(completions, rows, strict=True)]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        rewards = [0.0] * len(ids)
        for start in range(0, len(order), self.rows_per_pass):
            some = order[start : start + self.rows_per_pass]
            for place, reward in zip(some, self._pass([ids[n] for n in some]), strict=True):
                rewards[place] = reward
        return rewards

    def _ids(self, completion: str, row: dict[str, Any]) -> list[int]:
        dialogue = row.get("dialogue") or row.get("messages") or [{"role": "user", "content": row.get("prompt", "")}]
        asked = list(dialogue)
        while asked and asked[-1]["role"] == "assistant":  # a row may bring an answer of its own, which is not the one to be judged
            asked.pop()
        messages = [*asked, {"role": "assistant", "content": completion}]
        if self._tokenizer.chat_template:
            ids = self._tokenizer(self._tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        else:
            ids = self._tokenizer("\n\n".join(str(message["content"]) for message in messages))["input_ids"]
        if len(ids) > self.max_tokens:
            raise ModelError(f"an answer with its prompt has {len(ids)} tokens, and {self.model} is to read {self.max_tokens}; raise max_tokens")
        return ids

    def _pass(self, ids: list[list[int]]) -> list[float]:
        """One pass, padded on the right; the classifier reads at the last token of a row that is no padding."""
        pad = self._module.config.pad_token_id
        if pad is None:
            return [float(value) for row in ids for value in self._logits(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))]
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in ids], batch_first=True)
        return self._logits(rows, mask)

    def _logits(self, rows: "torch.Tensor", mask: "torch.Tensor") -> list[float]:
        with torch.no_grad():
            return self._module(input_ids=rows.to(device()), attention_mask=mask.to(device())).logits[:, 0].float().tolist()
