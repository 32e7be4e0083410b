"""A recipe is the four parts with the numbers, as plain data: YAML in, YAML out. Nonsense is refused when it is made."""

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator

from limbeck import across, aligned, average, curriculum, endpoint, features, guidance, hidden, interleaved, judges, mixture, teacher_samples  # noqa: F401  # a part is known by name once its file is read
from limbeck.config import Part, build, build_file, part, plain, to_yaml
from limbeck.decoding import Sampling
from limbeck.divergence import Divergence, ForwardKL, SampledReverseKL
from limbeck.errors import RecipeError
from limbeck.evaluate import Evaluation
from limbeck.insides import INSIDE
from limbeck.licences import Licence, of_model
from limbeck.objective import CrossEntropy, FeatureTerm, Objective, PolicyGradient, Term
from limbeck.pairing import between
from limbeck.prefetch import Prefetch
from limbeck.rollouts import OnPolicy
from limbeck.run import Run
from limbeck.sources import Share, Source
from limbeck.student import Student
from limbeck.teachers import Silent, Teacher

Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One name or several."""


@part
class Recipe(Part):
    """Who learns, who scores, who writes, how far, and for how long.

    tokens_per_pass: padded tokens that are in memory at once; it changes no gradient. evaluate_every, save_every: in
    steps; evaluations also run before and after all. keep: which weights become `out/student`. early_stop: after so many
    evaluations in a row without a better one. trackers: "tensorboard", "wandb", "trackio", "mlflow", through accelerate.
    accept_license: by name, licences and terms of teacher, data and provider that forbid learning from them or that nobody
    knows, and from which you may learn all the same.
    """

    student: Student
    source: Source
    teacher: Teacher = field(default_factory=Silent)
    objective: Objective = field(default_factory=lambda: Objective([CrossEntropy()]))
    steps: int = 100
    tokens_per_pass: int = 2048
    seed: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    evaluate_every: int | None = None
    save_every: int | None = 50
    keep: Literal["last", "best"] = "last"
    keep_last: int = 1
    early_stop: int | None = None
    time_limit_minutes: float | None = None
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = field(default_factory=list)
    accept_license: Names = field(default_factory=list[str])

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_pass", "keep_last", "evaluate_every", "save_every", "early_stop"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise RecipeError(f"{name} must be at least 1, found {count}")
        if self.time_limit_minutes is not None and not 0 < self.time_limit_minutes < float("inf"):
            raise RecipeError(f"time_limit_minutes must be above 0 and finite, or null, found {self.time_limit_minutes}")
        if not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed must lie between 0 and 2^63, found {self.seed}")
        if (self.keep == "best" or self.early_stop) and not (self.evaluations and self.evaluate_every):
            raise RecipeError("keeping the best and stopping early need evaluations and evaluate_every; give both")
        names = [evaluation.name for evaluation in self.evaluations]
        if len(set(names)) < len(names):
            raise RecipeError(f"two evaluations have one name ({', '.join(names)}); name each")
        for refuse in REFUSALS:
            for term in self.objective.terms:
                if reason := refuse(term, self):
                    raise RecipeError(reason)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The recipe of a YAML file. Raises LimbeckError for whatever is wrong with it, and names the line."""
        return build_file(Path(path), cls)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """The recipe of nested plain data."""
        return build(settings, cls)

    def __plain__(self) -> dict[str, Any]:
        """Its settings, without the type that every recipe has."""
        return {name: plain(value) for name, value in vars(self).items() if not name.startswith("_")}

    @property
    def yaml(self) -> str:
        """The whole recipe, every setting resolved, as YAML."""
        return to_yaml(self)

    @property
    def licences(self) -> dict[str, list[Licence]]:
        """Of the student's base, on which it stands, and of teacher and source, from which it learns; looked up anew."""
        return {"student": of_model(self.student.model), "teacher": self.teacher.licences, "source": self.source.licences}

    def open_pair(self) -> tuple[Student, Teacher]:
        """Student and teacher alive, proven to mean the same by a token."""
        student = self.student.load(self.steps)
        return student, self.teacher.load(student)

    def open_all(self) -> tuple[Student, Teacher, Objective]:
        """The two, and the objective between them: its layers found, its projections learning with the student."""
        student, teacher = self.open_pair()
        return student, teacher, between(self.objective, student, teacher, self.seed)

    def load(self, run: Run) -> tuple[Student, Teacher, Source, Objective]:
        """The four parts alive, where the run's newest checkpoint left them."""
        student, teacher, objective = self.open_all()
        if "student" in self.source.writers or any(evaluation.writes for evaluation in self.evaluations):
            _ = student.live.writer  # raises where it does not write
        source = self.source.load(student.live.vocabulary, Share(self.seed, run.rank, run.ranks, teacher))
        run.attach(student, source)
        run.provenance(student.live.described, teacher.described)
        return student, teacher, source, objective


Refusal = Callable[[Term, Recipe], str | None]


def _another_vocabulary(term: Term, recipe: Recipe) -> str | None:
    """Terms across vocabularies and teachers over one, or the other way round."""
    says, who = recipe.teacher.says, type(recipe.teacher).__name__
    if not term.needs or term.needs & says or not (term.needs | says) & aligned.SAYS:
        return None
    if term.needs & aligned.SAYS:
        said = ", ".join(sorted(says)) or "nothing"
        return f"{term.name} needs a teacher that says {' or '.join(sorted(term.needs))}; {who} says {said}; give Aligned(Local(model))"
    if term.needs & INSIDE:
        return (f"{term.name} compares layers token by token, and {who}, whose teacher reads other tokens, says nothing of them; give a Local "
                f"teacher of the student's vocabulary, or leave {term.name} out")  # fmt: skip
    able = " or ".join(name for name, each in {"SpanLikelihood()": across.SpanLikelihood, "Gold()": across.Gold}.items() if each.needs & says)
    return f"{term.name} compares outcomes of one vocabulary, and {who} teaches across two; give {able}, or a teacher of the student's vocabulary"


def _nothing_said(term: Term, recipe: Recipe) -> str | None:
    if not term.needs or term.needs & recipe.teacher.says:
        return None
    said = ", ".join(sorted(recipe.teacher.says)) or "nothing"
    kinds = {"ForwardKL()": ForwardKL.needs, "SampledReverseKL() of the student's own tokens": frozenset({"tokens"})}
    able = " or ".join(name for name, needs in kinds.items() if needs & recipe.teacher.says)
    can = f"{able}, or another teacher: Local(model)" if able else "Local(model)"
    return f"{term.name} needs a teacher that says {' or '.join(sorted(term.needs))}; {type(recipe.teacher).__name__} says {said}; give {can}"


def _other_temperature(term: Term, recipe: Recipe) -> str | None:
    taken = recipe.teacher.temperature_kept
    if not isinstance(term, Divergence) or taken is None or term.temperature == taken:
        return None
    return (
        f"{term.name}(temperature={term.temperature:g}) of scores that were kept at temperature {taken:g}: they cannot be re-tempered; "
        f"annotate at {term.temperature:g}, or set the objective's temperature to {taken:g}"
    )


def _unheard(term: Term, recipe: Recipe) -> str | None:
    own = "student" in recipe.source.writers or any(getattr(evaluation, "own_text", False) for evaluation in recipe.evaluations)
    if term.needs and own and not recipe.teacher.hears:
        return (
            f"{type(recipe.teacher).__name__} cannot have seen text that the student has yet to write (OnPolicy, own_text); "
            "let a live teacher score it: Local(model)"
        )
    return None


def _not_its_own_words(term: Term, recipe: Recipe) -> str | None:
    if term.on_policy and recipe.source.writers != {"student"} and term.writer != "student":
        return f'{term.name} is only right on the student\'s own tokens; draw them with OnPolicy(...), or count only them: .on("student")'
    return None


def _not_drawn_of_itself(term: Term, recipe: Recipe) -> str | None:
    if not isinstance(term, SampledReverseKL):
        return None
    for source in _own_text(recipe.source):
        plain_draw = Sampling(source.sampling.max_tokens)
        if source.sampling != plain_draw or source.keep_above is not None:
            found = f"keep_above={source.keep_above}" if source.sampling == plain_draw else f"{source.sampling}"
            return (
                f"{term.name} is only right on tokens drawn from the student's whole distribution at temperature 1, none chosen afterwards; "
                f"OnPolicy has {found}; leave that out, or give ReverseKL() with Local(model)"
            )
    return None


def _own_text(source: Source) -> list[OnPolicy]:
    """The parts of a source in which the student writes."""
    inner = [own for value in vars(source).values() if isinstance(value, Source) for own in _own_text(value)]
    return [source, *inner] if isinstance(source, OnPolicy) else inner


def _stale(term: Term, recipe: Recipe) -> str | None:
    found = _prefetching(recipe.source)
    if found and found != [recipe.source]:
        around = type(recipe.source).__name__
        return f"{around} around Prefetch would not learn from every step that is drawn ahead; put it inside: Prefetch({around}(...))"
    if found and isinstance(term, PolicyGradient | SampledReverseKL) and term.ratio is None:
        return (
            f"{term.name} is biased on tokens that older weights wrote, as with Prefetch(ahead={found[0].ahead}); weigh each by how much "
            "likelier it is now, truncated: ratio=2"
        )
    return None


def _prefetching(source: Source) -> list[Prefetch]:
    """The parts of a source that draw ahead."""
    inner = [ahead for value in vars(source).values() if isinstance(value, Source) for ahead in _prefetching(value)]
    return [source, *inner] if isinstance(source, Prefetch) else inner


def _no_credit(term: Term, recipe: Recipe) -> str | None:
    if isinstance(term, PolicyGradient) and not recipe.source.rewarded:
        return "PolicyGradient needs credit; give the source a reward: OnPolicy(reward=module:function, group=8)"
    return None


def _unchosen_words(term: Term, recipe: Recipe) -> str | None:
    own = isinstance(recipe.source, OnPolicy) or "student" in recipe.source.writers
    if isinstance(term, CrossEntropy) and own and not recipe.source.chosen and term.writer not in ("corpus", "teacher"):
        return (
            "CrossEntropy on the student's own unchosen words teaches nothing; let a teacher score them with ReverseKL(), "
            'or a verifier choose them: OnPolicy(reward=module:function, keep_above=0), or count only others: .on("corpus")'
        )
    return None


def _nobody_writes(term: Term, recipe: Recipe) -> str | None:
    if term.writer is not None and term.writer not in recipe.source.writers:
        drawn = f"{type(recipe.source).__name__} draws those of {', '.join(sorted(recipe.source.writers))}"
        return f'{term.name} counts the tokens of "{term.writer}", and {drawn}'
    return None


def _itself(term: Term, recipe: Recipe) -> str | None:
    teacher, student = recipe.teacher, recipe.student
    if term.needs and teacher.echoes == guidance.ITSELF:
        return (
            f"the teacher is the student as it is now and says the same, so {term.name} has no gradient; "
            'let it say more than the student: Privileged("@student", hint), or Guided("@student", scale) with a scale other than 1'
        )
    if not all(isinstance(each, Divergence | FeatureTerm) for each in recipe.objective.terms):
        return None  # beside a reward or the text, a divergence to oneself as one was is an anchor
    if teacher.echoes == average.AVERAGE:
        return (
            f"a moving average begins as the student and says the same, so {term.name} alone has no gradient and neither ever moves; "
            "add what does move the student, such as CrossEntropy(), or give the average a hint: Privileged(Average(), hint)"
        )
    if teacher.echoes == student.model and student.lora is None:
        return (
            f"the teacher {teacher.echoes} is the student itself and says the same, so {term.name} has no gradient; "
            "name an older generation or another model, or give it a hint: Privileged(model, hint)"
        )
    return None


REFUSALS: tuple[Refusal, ...] = (
    _another_vocabulary,
    _nothing_said,
    _other_temperature,
    _unheard,
    _not_its_own_words,
    _not_drawn_of_itself,
    _stale,
    _no_credit,
    _unchosen_words,
    _nobody_writes,
    _itself,
)
"""Each gives the reason why a term cannot stand with this teacher, source and student, ending with what can; or None."""
