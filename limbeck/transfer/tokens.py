"""One table of tokens: what a student, and its teacher beside it, said at each completion token. Every figure is a question asked of it.

Axes: B sequences, N completion tokens, V vocabulary, G temperatures. Nats. Logits exist a block at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from limbeck.batch import Batch, Text
from limbeck.errors import DataError
from limbeck.evaluate.statistics import Array
from limbeck.files import new_folder
from limbeck.lazy import Tensor, torch
from limbeck.student import Student
from limbeck.targets import Dense, Logits, Nothing, Targets
from limbeck.teachers import Teacher
from limbeck.transfer.stretches import Told, unheard
from limbeck.vocabulary import Vocabulary

TEMPERATURES = tuple(float(each) for each in np.geomspace(0.25, 4.0, 25))
"""At which a model's certainty is looked at; 1 is among them."""
BLOCK = 2**21
"""Numbers of a block of logits: rows times vocabulary."""


@dataclass(frozen=True)
class Said:
    """What one model said of each token.

    nats_N: -log of what it gave the token. entropy_N: of its distribution, nats. top_N: what it held likeliest. confidence_N: how likely
    that was. missed_N: by how much the token's logit is below the greatest. log_sum_NG: log of the sum of exp((logit - greatest) / T).
    """

    nats_N: Array
    entropy_N: Array
    top_N: Array
    confidence_N: Array
    missed_N: Array
    log_sum_NG: Array

    def tempered(self, g: int) -> tuple[Array, Array]:
        """Nats of the tokens, and confidence, at the temperature of this place."""
        return self.log_sum_NG[:, g] + self.missed_N / TEMPERATURES[g], np.exp(-self.log_sum_NG[:, g])


@dataclass(frozen=True)
class Apart:
    """How far apart the two are at each token: KL(teacher || student), KL(student || teacher), and sum min(p, q), the chance that a draft
    of the student's is accepted by the teacher at temperature 1."""

    kl_N: Array
    reverse_kl_N: Array
    accepted_N: Array


@dataclass(frozen=True)
class Tokens:
    """The table. sequence_N, position_N: where each token stands, the first of a completion at 0. bytes_B: of each completion's text,
    UTF-8, 0 where it is no text. teacher, apart: None where no teacher says whole distributions."""

    sequence_N: Array
    position_N: Array
    token_N: Array
    bytes_B: Array
    student: Said
    teacher: Said | None = None
    apart: Apart | None = None

    def __len__(self) -> int:
        return len(self.token_N)

    @property
    def counts_B(self) -> Array:
        """Tokens of each sequence."""
        return self.sums(np.ones(len(self)))

    def sums(self, values_N: Array) -> Array:
        """Of each sequence."""
        return np.bincount(self.sequence_N, weights=values_N, minlength=len(self.bytes_B))

    def of(self, side: str) -> Said:
        """What the student said, or the teacher."""
        found = self.student if side == "student" else self.teacher
        assert found is not None, "no teacher said anything"
        return found

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        from safetensors.numpy import save_file

        with new_folder(folder) as made:
            save_file({name: np.ascontiguousarray(value) for name, value in _flat(self)}, made / "tokens.safetensors")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `save` wrote. Raises DataError where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(folder / "tokens.safetensors")
            own = {name: found[name] for name in ("sequence_N", "position_N", "token_N", "bytes_B")}
            sides = _sides(found)
            return cls(**own, **sides)
        except (OSError, KeyError, SafetensorError, ValueError) as error:
            raise DataError(f"{folder} is damaged ({error}); remove it, and evaluate again") from None


def _flat(tokens: Tokens) -> Iterator[tuple[str, Array]]:
    for name, value in vars(tokens).items():
        if isinstance(value, np.ndarray):
            yield name, value
        elif value is not None:
            yield from ((f"{name}.{inner}", array) for inner, array in vars(value).items())


def _sides(found: Mapping[str, Array]) -> dict[str, Any]:
    """What was said by whom, as far as it is there."""
    kinds: dict[str, type[Any]] = {"student": Said, "teacher": Said, "apart": Apart}
    return {name: _part(found, name, kind) for name, kind in kinds.items() if f"{name}.{fields(kind)[0].name}" in found}


def _part(found: Mapping[str, Array], prefix: str, kind: type[Any]) -> Any:
    return kind(**{each.name: found[f"{prefix}.{each.name}"] for each in fields(kind)})


def heard(texts: Sequence[Text], teacher: Teacher, tokens_per_pass: int, passes: slice = slice(None), told: Told = unheard) -> list[Targets]:
    """What a teacher says of some passes over these texts, kept for all students that are measured on them: hidden states, no logits."""
    whole, found = Batch.of(list(texts), "corpus"), list[Targets]()
    parts = [whole.select(cut) for cut in whole.cuts(tokens_per_pass)[passes]]
    for part, said in zip(parts, teacher.score(parts), strict=True):
        found.append(said)
        told(1, len(part.tokens_T))
    return found


def columns(texts: Sequence[Text], student: Student, said: Iterable[Targets], tokens_per_pass: int, temperatures: Sequence[float] = TEMPERATURES,
            passes: slice = slice(None), told: Told = unheard) -> dict[str, Array]:  # fmt: skip
    """The columns of the table that some passes over the texts make. said: what a teacher says of each of these, in turn. temperatures: none
    for no calibration."""
    whole = Batch.of(list(texts), "corpus")
    found = list[dict[str, Tensor]]()
    for cut, theirs in zip(whole.cuts(tokens_per_pass)[passes], said, strict=True):
        part = whole.select(cut)
        found.append({**_where(part, cut), **passed(part, student, theirs, temperatures)})
        told(1, len(part.tokens_T))
    return {key: torch.cat([each[key] for each in found]).numpy() for key in found[0]}


def joined(texts: Sequence[Text], found: Sequence[Mapping[str, Array]], vocabulary: Vocabulary) -> Tokens:
    """The table of the columns of all passes."""
    columns = {key: np.concatenate([each[key] for each in found]) for key in found[0]}
    order = np.lexsort((columns["position_N"], columns["sequence_N"]))
    columns = {key: value[order] for key, value in columns.items()}
    own = {key: columns[key] for key in ("sequence_N", "position_N", "token_N")}
    return Tokens(**own, bytes_B=_bytes(texts, vocabulary), **_sides(columns))


def _bytes(texts: Sequence[Text], vocabulary: Vocabulary) -> Array:
    """Of each sequence's completions as text; none of what is no text, such as classes."""
    spoken = [[token for span in text.spans for token in text.tokens[span.start : span.stop]] for text in texts]
    return np.array([len(vocabulary.text(tokens).encode()) if vocabulary.outcomes == "tokens" else 0 for tokens in spoken])


def _where(part: Batch, cut: Sequence[int]) -> dict[str, Tensor]:
    sequence_N = part.sequence_N
    first_B = torch.searchsorted(sequence_N, torch.arange(len(part)))
    position_N = torch.arange(len(sequence_N)) - first_B[sequence_N]
    return {"sequence_N": torch.tensor(cut)[sequence_N], "position_N": position_N, "token_N": part.tokens_N}


def passed(part: Batch, student: Student, said: Targets, temperatures: Sequence[float]) -> dict[str, Tensor]:
    """The columns of one pass, each as `name.column` of Said and Apart."""
    outputs = student.forward(part)
    mine, token_N = Dense(outputs.hidden_ND, outputs.head, "student"), part.tokens_N.to(outputs.hidden_ND.device)
    blocks = list[dict[str, Tensor]]()
    with torch.no_grad():
        for start in range(0, len(token_N), size := max(1, BLOCK // mine.head.vocabulary)):
            chunk = slice(start, start + size)
            blocks.append(_block(logits_of(mine, chunk), logits_of(said, chunk), token_N[chunk], temperatures))
    return {key: torch.cat([each[key] for each in blocks]).cpu() for key in blocks[0]}


def logits_of(said: Targets, chunk: slice) -> Tensor | None:
    """Whole distributions' logits in float32, of those that say them."""
    rows = None if isinstance(said, Nothing) else said.rows(chunk)
    return rows.block(slice(None)).logits_CV.float() if isinstance(rows, Logits) else None


def _block(student_CV: Tensor | None, teacher_CV: Tensor | None, token_C: Tensor, temperatures: Sequence[float]) -> dict[str, Tensor]:
    assert student_CV is not None
    log_q_CV, q_CV, found = side("student", student_CV, token_C, temperatures)
    if teacher_CV is None:
        return found
    log_p_CV, p_CV, theirs = side("teacher", teacher_CV, token_C, temperatures)
    apart_CV = log_p_CV.sub_(log_q_CV)
    return found | theirs | {
        "apart.kl_N": _expected(p_CV, apart_CV),
        "apart.reverse_kl_N": -_expected(q_CV, apart_CV),
        "apart.accepted_N": torch.minimum(p_CV, q_CV).sum(-1),
    }  # fmt: skip


def side(name: str, logits_CV: Tensor, token_C: Tensor, temperatures: Sequence[float] = TEMPERATURES) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities and probabilities [C, V] of one model at some tokens, and its columns there, each as `name.column`."""
    greatest_C1, top_C1 = logits_CV.max(-1, keepdim=True)
    shifted_CV = logits_CV - greatest_C1
    missed_C = -shifted_CV.gather(1, token_C[:, None]).squeeze(1)
    log_sums = [(shifted_CV / temperature).exp_().sum(-1).log() for temperature in temperatures]
    log_sum_CG = torch.stack(log_sums, 1) if log_sums else shifted_CV.new_empty(len(token_C), 0)
    p_CV = shifted_CV.exp()
    sum_C1 = p_CV.sum(-1, keepdim=True)
    p_CV, log_CV, log_sum_C = p_CV.div_(sum_C1), shifted_CV.sub_(sum_C1.log()), sum_C1.squeeze(1).log()
    columns = {"nats_N": log_sum_C + missed_C, "entropy_N": -_expected(p_CV, log_CV), "top_N": top_C1.squeeze(1),
               "confidence_N": (-log_sum_C).exp(), "missed_N": missed_C, "log_sum_NG": log_sum_CG}  # fmt: skip
    return log_CV, p_CV, {f"{name}.{key}": value for key, value in columns.items()}


def _expected(p_CV: Tensor, value_CV: Tensor) -> Tensor:
    """Sum of p times a value, where outcomes without mass count nothing, whatever their value."""
    found_C = (p_CV * value_CV).sum(-1)
    if bool(torch.isfinite(found_C).all()):
        return found_C
    return torch.where(p_CV > 0, p_CV * value_CV, 0.0).sum(-1)
