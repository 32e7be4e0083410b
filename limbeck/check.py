"""Everything about a recipe that can be refused or foreseen before it costs anything.

In three rounds, each only when the one before found no problem: what needs neither torch nor transformers (files, the
heads of weight files, sizes, licences, memory, disk); what needs tokenizers (vocabularies, lengths); the self-test, for
which the models are opened. All of a round is looked at, whatever fails in it.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from limbeck.aligned import Aligned, beside
from limbeck.anatomy import Anatomy, anatomy, anatomy_on_hub
from limbeck.batch import Batch, Text
from limbeck.check_lengths import ROWS, Lengths
from limbeck.check_lines import Line, below, data_key, fits
from limbeck.config import import_object
from limbeck.data import Data, Row, check_columns, parquet_rows
from limbeck.engines import Engine
from limbeck.environment import Replies
from limbeck.errors import DataError, LimbeckError, ModelError, RecipeError
from limbeck.estimate import Load, disk_bytes, memory_bytes, memory_here_bytes, size_gap, widths
from limbeck.objective import CustomTerm
from limbeck.places import MODULE, is_call, locate
from limbeck.privacy import expanded
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.run import licences_of, named_teacher, see_recipe
from limbeck.sources import CustomSource, Share
from limbeck.student import Student
from limbeck.teachers import Cached, Local
from limbeck.verifiers import Function

if TYPE_CHECKING:
    from limbeck.vocabulary import Vocabulary


def check(recipe: Recipe, out: Path, quick: bool = False) -> list[Line]:
    """Look at everything; `quick` leaves out what needs torch. Opens models, and trains and writes nothing."""
    looking = _Looking(recipe, out)
    looking.files()
    if quick:
        looking.look("memory", looking.memory(torch=False))
    for what, look_on in (
        ("vocabularies, lengths, memory", looking.tokens),
        ("self-test", lambda: looking.look("self-test", looking.models_alive())),
    ):
        if quick or looking.problems:
            looking.lines.append(Line(what, "left out by --quick" if quick else "looked at once the problems above are mended", "note"))
        else:
            look_on()
    return looking.lines


@dataclass
class _Looking:
    """A look at a recipe: what was found so far, to be told and to be built upon."""

    recipe: Recipe
    out: Path
    lines: list[Line] = field(default_factory=list[Line])
    models: dict[str, Anatomy] = field(default_factory=dict[str, Anatomy])
    rows: dict[Any, Sequence[Row]] = field(default_factory=dict[Any, Sequence[Row]])
    vocabulary: "Vocabulary | None" = None
    texts: list[Text] = field(default_factory=list[Text])
    load: Load = field(default_factory=Load)

    @property
    def problems(self) -> list[Line]:
        """What stands in the way so far."""
        return [line for line in self.lines if line.verdict == "problem"]

    @property
    def sets(self) -> list[Data]:
        """Every data set of the recipe, those of its evaluations too."""
        return list({data_key(data): data for data in below(self.recipe) if isinstance(data, Data)}.values())

    @property
    def named(self) -> dict[str, Student | Local]:
        """The parts that name a model of their own."""
        teacher = next((each for each in (self.recipe.teacher, *below(self.recipe.teacher)) if isinstance(each, Local)), None)
        found = {"student": self.recipe.student} | ({"teacher": teacher} if teacher and teacher.model != "@student" else {})
        return {what: part for what, part in found.items() if not is_call(part.model)}  # a function's model is known once it is open

    def look(self, what: str, found: Iterable[Line]) -> None:
        """Take what is found; what is raised on the way is a problem of its own."""
        try:
            for line in found:
                self.lines.append(line)
        except LimbeckError as error:
            if str(error) not in [line.found for line in self.problems]:  # a model that is not there has no licence either
                self.lines.append(Line(what, str(error), "problem"))
        except OSError as error:
            self.lines.append(Line(what, f"cannot read {error.filename or what}: {error.strerror or error}; see that it can be read", "problem"))

    # The first round: no torch

    def files(self) -> None:
        """Look at what lies in files."""
        of, terms = self.recipe, " + ".join(term.name for term in self.recipe.objective.terms)
        self.lines.append(Line("recipe", f"{type(of.source).__name__}, {type(of.teacher).__name__}, {terms}, {of.steps:,} steps"))
        for data in self.sets:
            self.look(f"data {data.path}", self.data(data))
        for what, part in self.named.items():
            self.look(what, self.model(what, part))
        if "teacher" not in self.named:
            said = named_teacher(of.teacher.described) if isinstance(of.teacher, Cached) else type(of.teacher).__name__
            said = of.teacher.model if isinstance(of.teacher, Local) and of.teacher.model != "@student" else said
            self.lines.append(Line("teacher", "the student without its adapters" if said == "Local" else said))
        for path in _functions(self.recipe):
            self.look(f"function {path}", _function(path))
        if self.models.keys() >= {"student", "teacher"}:
            found, stands_out = size_gap(self.models["student"], self.models["teacher"])
            self.lines.append(Line("size gap", found, "note" if stands_out else "ok"))
        self.look("licences", self.licences())
        self.look("run folder", self.run_folder())

    def data(self, data: Data) -> Iterator[Line]:
        """Rows and columns of a data set, as far as they can be read without `datasets`."""
        what, path = f"data {data.path}", expanded(data.path)
        if path.suffix == ".parquet" and path.is_file():
            yield Line(what, f"{parquet_rows(path):,} rows")
        elif path.suffix in (".jsonl", ".json", ".parquet"):
            yield self.counted(data)
        elif path.is_dir():
            yield Line(what, "a folder, opened by datasets")
        elif path.exists() or path.is_absolute() or data.path.startswith((".", "~")):
            found = "no JSONL or Parquet file" if path.exists() else "not there"
            raise DataError(f"{data.path} is {found}; give a JSONL or Parquet file, or a name on the hub")
        else:
            yield Line(what, "no file of that name here: taken for a name on the hub", "note")

    def counted(self, data: Data) -> Line:
        """Read a data set: whole, or the first rows of a streamed one."""
        self.rows[data_key(data)] = found = _first_rows(data) if data.streaming else data.rows()
        return Line(f"data {data.path}", f"streamed: {len(found):,} rows read" if data.streaming else f"{len(found):,} rows")

    def model(self, what: str, part: Student | Local) -> Iterator[Line]:
        """A model by its files."""
        place = locate(part.model)
        if place is None:
            yield Line(what, f"no folder {part.model} here: taken for a name on the hub, and fetched when it is opened", "note")
            return
        found = self.models[what] = anatomy(part.model, place)
        if found.own_code and not part.trust_remote_code:
            raise ModelError(f"{part.model} runs code of its own; read it, then set {what}.trust_remote_code: true")
        yield Line(what, str(found))

    def licences(self) -> Iterator[Line]:
        """Under what terms teacher and text may be learnt from, and what the student's base is under."""
        found = licences_of(self.out, self.recipe)
        said = {role: ", ".join(dict.fromkeys(each.name for each in several)) for role, several in found.items() if several}
        open_ends = any(each.permits != "yes" for several in found.values() for each in several)
        yield Line("licences", "; ".join(f"{role}: {names}" for role, names in said.items()), "note" if open_ends else "ok")

    def run_folder(self) -> Iterator[Line]:
        """Whether the run may be written there, and fits."""
        known, home = self.out / "recipe.yaml", self.out.absolute()
        while not home.exists():
            home = home.parent
        see_recipe(self.out, self.recipe)
        if not home.is_dir() or not os.access(home, os.W_OK):
            raise RecipeError(f"cannot write to {home}; give another --out")
        yield Line("run folder", f"{self.out}, {'to go on from' if known.exists() else 'new'}")
        if "student" in self.models:
            there = sum(file.stat().st_size for file in self.out.rglob("*") if file.is_file())
            taken = disk_bytes(self.recipe, self.models["student"])
            yield fits("disk", taken, shutil.disk_usage(home).free + there, "lower keep_last, or give an --out on another disk", spare=1.0)

    def memory(self, torch: bool) -> Iterator[Line]:
        """What the run takes; without torch, as on a CPU in float32."""
        if "student" not in self.models or self.named.keys() > self.models.keys():
            return
        taken = memory_bytes(self.recipe, self.models["student"], self.models.get("teacher"), self.load, widths(torch))
        advice = "lower tokens_per_pass, or set student.gradient_checkpointing, student.optimizer.eight_bit, student.lora or teacher.quantization"
        yield fits("memory", taken, memory_here_bytes(torch), advice, spare=0.8)

    # The second round: tokenizers

    def tokens(self) -> None:
        """Look at what must be made tokens of, and at what only the libraries can read."""
        for what, part in self.named.items():
            if what not in self.models:
                self.look(what, self.model_on_hub(what, part))
        for data in self.sets:
            if data_key(data) not in self.rows:
                self.look(f"data {data.path}", (self.counted(data) for _ in [0]))
        if "student" in self.models and not any(MODULE in each.config for each in self.models.values()) and self.named.keys() <= self.models.keys():
            self.look("vocabularies", self.vocabularies())
        if self.vocabulary is not None:
            lengths = Lengths(self.recipe, self.models, self.rows, self.vocabulary)
            for data, lines in lengths.all():
                self.look(f"lengths of {data.path}", lines)
            self.texts, self.load = lengths.texts, lengths.load
            for source in below(self.recipe):
                if isinstance(source, OnPolicy) and source.engine:
                    self.look("engine", self.engine(source.engine, self.vocabulary))
        self.look("memory", self.memory(torch=True))

    def engine(self, engine: Engine, vocabulary: "Vocabulary") -> Iterator[Line]:
        """Whoever writes in the student's place, found and asked for a token's meaning."""
        yield Line("engine", engine.load(vocabulary).described)

    def model_on_hub(self, what: str, part: Student | Local) -> Iterator[Line]:
        """A model that is not here, by its configuration."""
        self.models[what] = anatomy_on_hub(part.model, part.trust_remote_code)
        yield Line(what, str(self.models[what]))

    def vocabularies(self) -> Iterator[Line]:
        """Tokenizers against heads and against each other."""
        from limbeck.machine import Opening
        from limbeck.models import open_vocabulary
        from limbeck.vocabulary import Vocabulary

        found = dict[str, Vocabulary]()
        for what, part in self.named.items():
            bare = open_vocabulary(part.model, Opening(trust_remote_code=part.trust_remote_code))
            found[what] = Vocabulary(bare.tokenizer, self.models[what].end_ids)
        self.vocabulary = found["student"]
        for what, vocabulary in found.items():
            yield from self.padding(what, vocabulary)
        if "teacher" in found and isinstance(self.recipe.teacher, Aligned):
            yield Line("vocabularies", beside(found["student"], found["teacher"]))
        elif "teacher" in found:
            yield from self.agreement(found["student"], found["teacher"])

    def padding(self, what: str, vocabulary: "Vocabulary") -> Iterator[Line]:
        """The rows of a head against the tokens there are."""
        rows, size = self.models[what].head_rows or vocabulary.size, vocabulary.size
        if rows < size:
            yield Line(f"{what}'s head", f"{self.models[what].name} scores {rows:,} tokens and its tokenizer knows {size:,}; "
                       "resize its embeddings", "problem")  # fmt: skip
        elif rows > size:
            yield Line(f"{what}'s head", f"{rows:,} rows for {size:,} tokens: the rest is padding and cut", "note")

    def agreement(self, mine: "Vocabulary", theirs: "Vocabulary") -> Iterator[Line]:
        """The proof that both mean the same by a token, as the run makes it: by parts that hold a vocabulary and no weights."""
        own = mine.tokenizer.chat_template
        student = self.recipe.student.fresh()
        setattr(student, "_open", SimpleNamespace(vocabulary=mine))  # noqa: B010
        student.share_vocabulary(theirs)
        self.vocabulary = shared = student.live.vocabulary
        yield Line("vocabularies", f"the same {shared.size:,} tokens")
        if shared is not mine:
            another = "; its own is another" if own and own != theirs.tokenizer.chat_template else ""
            yield Line("chat template", f"the student takes the teacher's{another}")
        elif own != theirs.tokenizer.chat_template:
            yield Line("chat template", "they differ as text, and render a plain dialogue alike", "note")
        if shared.end_ids != theirs.end_ids:
            ends = [", ".join(map(str, each.tokenizer.convert_ids_to_tokens(sorted(each.end_ids)))) for each in (shared, theirs)]
            yield Line("end tokens", f"the student ends at {ends[0]}, the teacher at {ends[1]}; answers end where the student's do", "note")

    # The third round: the models themselves

    def models_alive(self) -> Iterator[Line]:
        """Open them, and see that their numbers are right."""
        from limbeck.selftest import self_test

        student, teacher, objective = self.recipe.open_all()
        drawn = Batch.of(self.texts, "corpus") if teacher.needs_rows and self.texts else None
        if student.live.needs_rows:
            drawn = self.recipe.source.load(student.live.vocabulary, Share(self.recipe.seed, teacher=teacher)).draw(0, student)
        yield Line("self-test", str(self_test(student, teacher, objective, self.texts, drawn)))


def _first_rows(data: Data) -> list[Row]:
    """The beginning of a streamed set."""
    found = list(islice(data.stream(), ROWS))
    if not found:
        raise DataError(f"{data.path} holds no rows; give it at least one")
    check_columns(found[0], data.path)
    return found


def _functions(recipe: Recipe) -> list[str]:
    """The user's own functions that the recipe names."""
    named = [part.function for part in below(recipe) if isinstance(part, CustomTerm | CustomSource | Function | Replies)]
    return list(dict.fromkeys(named))


def _function(path: str) -> Iterator[Line]:
    try:
        found = import_object(path)
    except LimbeckError:
        raise
    except Exception as error:  # a user's module may raise anything when it is imported
        raise RecipeError(f'cannot import "{path}": {type(error).__name__}: {error}; mend the module') from None
    if not callable(found):
        raise RecipeError(f'"{path}" is no function; name one that can be called')
    yield Line(f"function {path}", "found")
