"""A suffix that parts a student from its teacher, found by a small search, and measured on other prompts against random ones.

Greedy coordinate gradient (GCG; Zou et al. 2023, arXiv 2307.15043, algorithm 2, universal over prompts): one token of the suffix is exchanged at a
time, for one that the gradient of the aim with respect to a one-hot of the token recommends. Departs: 1) the aim is KL(teacher || student)
over the answers to a few prompts, raised, not a wished answer's loss, lowered; without a teacher who says whole distributions it is the
student's nats of the answers; 2) the gradient is the student's alone: the teacher's distributions stand still for it, and count in full when a
candidate is measured; 3) a suffix gives way to a better one only; 4) CANDIDATES at a time and the TOP of each place, where the paper has 512 and 256;
5) no prompts are added on the way; 6) only tokens of printable ASCII, and suffixes that the tokenizer cuts into the same tokens again.
A model whose embeddings cannot be laid open (not causal) has its candidates drawn at random.

Axes: S suffixes, A answers, L tokens of a suffix, V vocabulary, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.batch import Batch, Text
from limbeck.errors import VocabularyError
from limbeck.evaluate.statistics import Array, mean, paired
from limbeck.files import read_json, write_json
from limbeck.lazy import Tensor, torch
from limbeck.models import Model
from limbeck.progress import Progress
from limbeck.prompts import Prompts
from limbeck.student import Student
from limbeck.teachers import Teacher
from limbeck.transfer.figures import told
from limbeck.transfer.measure import Transfer
from limbeck.transfer.stretches import Told, Work, unheard
from limbeck.transfer.subjects import file_name
from limbeck.transfer.tokens import logits_of, passed
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.transfer.robustness import Answer

LENGTH = 8
"""Tokens of a suffix."""
CANDIDATES, TOP = 8, 64
SEARCHED, MEASURED = 4, 16
"""Prompts at most that it is searched on, and others that it is measured on."""
READ = 32
"""Tokens of each answer that are read in the search; the measurement reads all."""
CONTROLS = 8
"""Random suffixes of the same length."""
TRIES = 10_000


@dataclass
class Search:
    """A search for one student's suffix. Its aim is KL(teacher || student), or without a teacher's distributions the student's nats."""

    student: Student
    teacher: Teacher
    answers: "Sequence[Answer]"
    tokens_per_pass: int
    seed: int

    @property
    def vocabulary(self) -> Vocabulary:
        """Of both."""
        return self.student.live.vocabulary

    @cached_property
    def split(self) -> int:
        """How many answers, from the first, are searched on."""
        return min(SEARCHED, len(self.answers) // 2)

    @cached_property
    def ends(self) -> list[int]:
        """Where in each prompt the suffix is put: at the end of the user's turn."""
        prompts = Prompts(self.vocabulary)
        return [prompts.end(answer.prompt) for answer in self.answers]

    @cached_property
    def alphabet(self) -> list[int]:
        """Tokens of printable ASCII that the tokenizer gives back."""
        tokenizer = self.vocabulary.tokenizer
        plain = [token for token in sorted(self.vocabulary.map.values()) if token not in tokenizer.added_tokens_decoder]
        texts = tokenizer.batch_decode([[token] for token in plain])
        seen = [(token, text) for token, text in zip(plain, texts, strict=True) if text.isascii() and text.isprintable() and text.strip()]
        again = tokenizer([text for _, text in seen], add_special_tokens=False)["input_ids"] if seen else []
        return [token for (token, _), ids in zip(seen, again, strict=True) if ids == [token]]

    def is_typed(self, suffix: list[int]) -> bool:
        """Whether its text is cut into the same tokens again."""
        return self.vocabulary.ids(self.vocabulary.text(suffix)) == suffix

    def drawn(self, random: np.random.Generator) -> list[int]:
        """A random suffix. Raises VocabularyError where none of many is cut into the same tokens again."""
        for _ in range(TRIES):
            suffix = [self.alphabet[int(n)] for n in random.integers(len(self.alphabet), size=LENGTH)]
            if self.is_typed(suffix):
                return suffix
        raise VocabularyError(f"none of {TRIES:,} random suffixes of {LENGTH} tokens is cut into the same tokens again; leave the search out")

    def text(self, a: int, suffix: Sequence[int], read: int | None = None) -> Text:
        """An answer after its prompt with a suffix."""
        answer, end = self.answers[a], self.ends[a]
        return Text.answered([*answer.prompt[:end], *suffix, *answer.prompt[end:]], answer.completion[:read], {})

    def columns(self, texts: Sequence[Text]) -> dict[str, Array]:
        """What both say of these texts, summed over each: the aim, and the nats of either [texts]."""
        whole = Batch.of(list(texts), "corpus")
        cuts = whole.cuts(self.tokens_per_pass)
        parts, sums = [whole.select(cut) for cut in cuts], dict[str, Array]()
        for cut, part, said in zip(cuts, parts, self.teacher.score(parts), strict=True):
            for name, column in passed(part, self.student, said, ()).items():
                if name in ("apart.kl_N", "student.nats_N", "teacher.nats_N"):
                    of = sums.setdefault(name, np.zeros(len(texts)))
                    of[cut] = np.bincount(part.sequence_N.numpy(), weights=column.double().numpy(), minlength=len(cut))
        return {**sums, "aim": sums.get("apart.kl_N", sums["student.nats_N"])}

    def aims(self, suffixes: Sequence[Sequence[int]]) -> Array:
        """The aim of each suffix over the answers that are searched on, a token [S]."""
        texts = [self.text(a, suffix, READ) for suffix in suffixes for a in range(self.split)]
        tokens = sum(len(self.answers[a].completion[:READ]) for a in range(self.split))
        return self.columns(texts)["aim"].reshape(len(suffixes), self.split).sum(1) / tokens

    def candidates(self, suffix: list[int], random: np.random.Generator) -> list[list[int]]:
        """Others that differ from it in one token each, by the gradient where there is one."""
        scores_LV, found = self.gradient(suffix), list[list[int]]()
        top_LK = None if scores_LV is None else scores_LV.topk(min(TOP, len(self.alphabet)), -1).indices.tolist()
        for _ in range(20 * CANDIDATES):  # some are cut otherwise by the tokenizer
            place = int(random.integers(LENGTH))
            near = range(len(self.alphabet)) if top_LK is None else top_LK[place]
            token = self.alphabet[near[int(random.integers(len(near)))]]
            made = [*suffix[:place], token, *suffix[place + 1 :]]
            if token != suffix[place] and made not in found and self.is_typed(made):
                found.append(made)
            if len(found) == CANDIDATES:
                break
        return found

    def gradient(self, suffix: Sequence[int]) -> Tensor | None:
        """By how much the aim would rise, to first order, with each token of the alphabet in each place [L, V]; None where it cannot be told."""
        model = self.student.live
        if not isinstance(model, Model):
            return None
        layer: Any = model.causal.get_input_embeddings()
        total_LD: Any = 0.0
        batch = Batch.of([self.text(a, suffix, READ) for a in range(self.split)], "corpus")
        for cut in batch.cuts(self.tokens_per_pass):
            part = batch.select(cut)
            gradient_BSD = self._of_embeddings(model, layer, part)
            for b, a in enumerate(cut):
                total_LD = total_LD + gradient_BSD[b, self.ends[a] : self.ends[a] + LENGTH]
        return (total_LD @ layer.weight.detach().float().T)[:, self.alphabet]

    def _of_embeddings(self, model: Model, layer: Any, part: Batch) -> Tensor:
        """The gradient of the aim with respect to what the embedding gives [B, S, D]."""
        kept = list[Tensor]()

        def keep(module: Any, given: Any, made: Tensor) -> Tensor:
            kept.append(made.detach().requires_grad_())
            return kept[-1]

        hook = layer.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                outputs = model.forward(part)
                aim = self._aim(outputs.hidden_ND, outputs.head, part)
                return torch.autograd.grad(aim, kept[0])[0].float()
        finally:
            hook.remove()

    def _aim(self, hidden_ND: Tensor, head: Any, part: Batch) -> Tensor:
        """The aim of a pass as the student moves it: the teacher's own entropy is left out."""
        log_q_NV = head.prepared(hidden_ND.dtype).logits(hidden_ND).log_softmax(-1)
        theirs = logits_of(self.teacher.about(part), slice(None))
        if theirs is None:
            return -log_q_NV.gather(1, part.tokens_N.to(log_q_NV.device)[:, None]).sum()
        return -(theirs.softmax(-1) * log_q_NV).sum()

    def step(self, state: dict[str, Any]) -> dict[str, Any]:
        """One exchange, if one of the candidates is better. The random numbers are a function of seed and step alone."""
        tried = self.candidates(state["suffix"], np.random.default_rng([self.seed, 1 + state["steps"]]))
        aims = self.aims(tried) if tried else np.array([-np.inf])
        best = int(aims.argmax())
        better = {"suffix": tried[best], "aim": float(aims[best])} if aims[best] > state["aim"] else {}
        return {**state, **better, "steps": state["steps"] + 1, "sequences_read": state["sequences_read"] + len(tried) * self.split}

    def begun(self) -> dict[str, Any]:
        """A random suffix to begin from."""
        suffix = self.drawn(np.random.default_rng([self.seed, 0]))
        return {"suffix": suffix, "aim": float(self.aims([suffix])[0]), "steps": 0, "sequences_read": self.split}

    def measured(self, suffix: list[int]) -> dict[str, Any]:
        """The suffix on answers that it was not searched on, beside random ones and none."""
        others = range(self.split, min(len(self.answers), self.split + MEASURED))
        tokens = np.array([len(self.answers[a].completion) for a in others], float)
        random = np.random.default_rng([self.seed, 0, 1])
        asked = [[], suffix, *(self.drawn(random) for _ in range(CONTROLS))]
        found = self.columns([self.text(a, each) for each in asked for a in others])
        clean, mine, *controls = found["aim"].reshape(len(asked), len(others))
        sides = {name.partition(".")[0]: found[name].reshape(len(asked), -1) for name in ("student.nats_N", "teacher.nats_N") if name in found}
        return {
            "clean": mean(clean, tokens), "found": mean(mine, tokens), "random": mean(np.mean(controls, 0), tokens),
            "above_random": paired(mine, np.mean(controls, 0), tokens), "random_each": [float(each.sum() / tokens.sum()) for each in controls],
            "lost": {side: paired(each[1], each[0], tokens) for side, each in sides.items()},
            "searched_rows": [answer.row for answer in self.answers[: self.split]], "measured_rows": [self.answers[a].row for a in others],
            "aim": "kl_nats" if "apart.kl_N" in found else "ce_nats", "text": self.vocabulary.text(suffix),
        }  # fmt: skip


class Suffix(Work):
    """A student's suffix, searched on and measured. What was found is kept after every step. missed: told in words why there is none."""

    unit = "suffixes"

    def __init__(self, transfer: Transfer, name: str, answers: "Sequence[Answer]", steps: int, missed: Callable[[str], None]) -> None:
        self.transfer, self.name, self.answers, self.steps, self.missed = transfer, name, answers, steps, missed
        self.place = _file(transfer, name)

    def todo(self, most: int | None = None) -> list[range]:
        """One search, unless so many steps were taken and what came of them was measured."""
        known = read_json(self.place) if self.place.exists() else {}
        return [] if "measured" in known and known["search"]["steps"] >= self.steps else [range(1)]

    def do(self, some: range, told: Told) -> None:
        """The rest of the steps."""
        if why := self._searched():
            self.missed(why)

    def make(self) -> None:
        """The same."""
        for some in self.todo():
            self.do(some, unheard)

    def _searched(self) -> str | None:
        transfer, name = self.transfer, self.name
        student = transfer.student(name)
        longest = min(transfer.asked.context, student.live.context)
        fit = [answer for answer in self.answers if len(answer.prompt) + LENGTH + len(answer.completion) <= longest]
        search = Search(student, transfer.teacher, fit, transfer.asked.tokens_per_pass, transfer.asked.seed)
        if len(fit) < 2:
            said = f"a suffix is searched on some prompts and measured on others; {len(fit)} of {len(self.answers)} leave room for one"
            return f"{said}, and 2 are needed"
        if len(search.alphabet) < 2:
            return f"no suffix was searched for: {name} has {len(search.alphabet)} tokens of printable ASCII, and 2 are needed"
        try:
            _searched(search, self.place, name, self.steps)
        except VocabularyError as error:
            return f"no suffix was searched for: {error}"
        return None


def _searched(search: Search, file: Path, name: str, steps: int) -> None:
    known = read_json(file) if file.exists() else {}
    state = known["search"] if known else search.begun()
    with Progress(f"{name}: a suffix is searched", max(steps, state["steps"]), state["steps"]).showing() as progress:
        while state["steps"] < steps:
            state = search.step(state)
            write_json(file, {"search": state})
            progress.advance(1)
    if known.get("search") != state or "measured" not in known:
        write_json(file, {"search": state, "measured": search.measured(state["suffix"])})


def _file(transfer: Transfer, name: str) -> Path:
    return transfer.out / "robustness" / "suffixes" / f"{file_name(name)}.json"


def results(transfer: Transfer) -> dict[str, Any]:
    """What was found for each student, and how many sequences were read for it (by student and teacher each)."""
    files = {name: _file(transfer, name) for name in transfer.subjects.students}
    return {name: {**(kept := read_json(file))["search"], **kept["measured"]} for name, file in files.items() if file.exists()}


def suffixes(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """A table for a terminal, where anything was searched."""
    rows = [[name, *(told(each[key]) for key in ("clean", "random", "found", "above_random")), each["text"]] for name, each in found.items()]
    return [(["suffix, nats on other prompts", "none", "random", "found", "found less random", "text"], rows)] if rows else []
