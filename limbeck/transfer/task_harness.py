"""Tasks of lm-evaluation-harness, an optional extra: its questions, metrics and examples, our models and intervals.

OUT/tasks/NAME/WHO.jsonl holds what a model answered and every metric of each prompt. A group of tasks is pooled over its prompts.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.data import Data
from limbeck.decoding import Sampling, write
from limbeck.errors import CheckpointError, DataError, LimbeckError, RecipeError, is_out_of_memory
from limbeck.files import read_json, read_jsonl, write_json, write_jsonl
from limbeck.progress import Progress
from limbeck.transfer.continuations import log_likelihoods
from limbeck.transfer.rows import Asked
from limbeck.transfer.stretches import Lines, Work
from limbeck.transfer.subjects import file_name
from limbeck.transfer.task_shapes import HARNESS
from limbeck.transfer.tasks import Exam, Lend, Outcome, TasksAsked

if TYPE_CHECKING:
    from limbeck.models import Model

EXTRA = "pip install 'limbeck[lm-eval]'"
PLAIN = Data("lm_eval", template="plain")


def manager(specs: Sequence[str]) -> Any:
    """What knows the harness's tasks. Raises RecipeError where it is not installed, or knows none of that name."""
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RecipeError(f"{specs[0]} is a task of lm-evaluation-harness, which is not installed; {EXTRA}") from None
    with _quiet():
        found: Any = TaskManager()
    for spec in specs:
        _see_known(spec.removeprefix(HARNESS), found.all_tasks)
    return found


def _see_known(task: str, known: Sequence[str]) -> None:
    if task.endswith((".yaml", ".yml")):
        if not Path(task).is_file():
            raise RecipeError(f"there is no file {task}; give the YAML of a task, or a name that lm-evaluation-harness knows")
    elif task not in known:
        near = get_close_matches(task, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "give one of those that `lm_eval ls tasks` lists, or a YAML file"
        raise RecipeError(f'lm-evaluation-harness has no task "{task}"; {hint}')


@contextmanager
def _quiet() -> Any:
    """Without what the harness says of every task it looks at."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Whole(Lines):
    """Prompts with their metrics, and in a file beside them the metrics of the whole."""

    def join(self, found: Sequence[list[dict[str, Any]]]) -> None:
        """Of the one stretch."""
        ((one,),) = found
        write_json(self.place.parent / "whole" / f"{self.place.stem}.json", one["whole"])
        write_jsonl(self.place, one["rows"])


class HarnessExam(Exam):
    """One task or group of the harness. The metric that it names first is `right`, where it is 0 or 1 for each prompt."""

    shape = "lm_eval"

    def __init__(self, spec: str, asked: TasksAsked, of: Asked, folder: Path) -> None:
        self.task, self.name, self.asked, self.of, self.folder = spec.removeprefix(HARNESS), asked.named[spec], asked, of, folder
        self.missing, self.verifier = [], ""

    def works(self, who: str, lend: Lend) -> Iterator[Work]:
        """By the harness, all of it at once."""
        asked = self.asked
        settings = {"task": self.task, "rows": asked.rows, "max_tokens": asked.max_tokens, "seed": self.of.seed, "template": self.of.template}
        file = self.folder / "settings.json"
        if not file.exists():
            write_json(file, settings)
        elif changed := [name for name, value in read_json(file).items() if settings.get(name) != value]:
            raise CheckpointError(f"{self.folder} holds answers with other {changed[0]}; give another --out, or remove the folder")
        yield _Whole(self.folder / f"{file_name(who)}.jsonl", "", "tasks", 1, lambda some, told: lend(lambda model: self._answers(who, model)))

    def _answers(self, who: str, model: "Model") -> list[dict[str, Any]]:
        """What `_Whole` takes apart."""
        found = self._evaluated(who, model)
        rows, whole = by_prompt(found["samples"], found["results"])
        if not rows:
            raise DataError(f"lm_eval:{self.task} has no prompts; give another task")
        return [{"rows": rows, "whole": whole}]

    def _evaluated(self, who: str, model: "Model") -> dict[str, Any]:
        simple_evaluate: Any = import_module("lm_eval").simple_evaluate  # an extra, and half typed
        chat = model.vocabulary.is_chat(self.of.template)
        wrapped = harness_model(model, chat, self.of, self.asked.max_tokens, f"{who} answers {self.name}")
        try:
            with _quiet():
                return simple_evaluate(
                    wrapped, tasks=[self.task], task_manager=self.asked.harness, limit=self.asked.rows, bootstrap_iters=0, apply_chat_template=chat,
                    random_seed=None, numpy_random_seed=None, torch_random_seed=None,
                )  # fmt: skip
        except LimbeckError:
            raise
        except Exception as error:  # the harness, and what it fetches from the hub, raise many kinds
            if is_out_of_memory(error):
                raise
            raise DataError(f"lm_eval:{self.task} cannot be run: {type(error).__name__}: {str(error)[:300]}") from error

    def outcome(self, who: str) -> Outcome | None:
        """From the kept metrics."""
        rows = read_jsonl(self.folder / f"{file_name(who)}.jsonl")
        if not rows:
            return None
        keys = [key for key in rows[0]["metrics"] if all(key in row["metrics"] for row in rows)]
        sums = {key: (np.array([row["metrics"][key] for row in rows], float), np.ones(len(rows))) for key in keys}
        if keys:
            self.verifier, self.main = keys[0], (keys[0],)
            if set(sums[keys[0]][0]) <= {0.0, 1.0}:
                sums, self.main = {"right" if key == keys[0] else key: value for key, value in sums.items()}, ("right",)
        whole = {key: {"value": value, "interval": None} for key, value in read_json(self.folder / "whole" / f"{file_name(who)}.json").items()}
        texts = [{"completion": row["completion"], **({"right": bool(row["metrics"][keys[0]])} if "right" in sums else {})} for row in rows]
        return Outcome(sums, whole, texts)

    def prompts(self) -> list[dict[str, Any]]:
        """Those of whoever answered first."""
        file = next((file for file in sorted(self.folder.glob("*.jsonl"))), None)
        rows = read_jsonl(file) if file else []
        return [{"row": row["place"], "prompt": row["prompt"], "wanted": row["wanted"]} for row in rows]


def by_prompt(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], results: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each prompt with its metrics; and those metrics of single tasks that are no means over prompts, as the harness has them."""
    rows, whole = dict[str, dict[str, Any]](), dict[str, Any]()
    for task, found in samples.items():
        for sample in found:
            place = f"{task}:{sample['doc_id']}"
            row = rows.setdefault(place, {"place": place, **_texts(sample), "metrics": {}})
            values = {_key(name, sample["filter"]): sample[name] for name in sample["metrics"]}
            row["metrics"] |= {key: float(value) for key, value in values.items() if isinstance(value, bool | int | float | np.number)}
        mine = [row for place, row in rows.items() if place.startswith(f"{task}:")]
        for name, value in results.get(task, {}).items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            key = _key(metric, chosen)
            if not all(key in row["metrics"] for row in mine) or abs(np.mean([row["metrics"][key] for row in mine]) - value) > 1e-9:
                whole |= {key: float(value)} if len(samples) == 1 else {}
                for row in mine:
                    row["metrics"].pop(key, None)
    return list(rows.values()), whole


def _key(metric: str, chosen: str) -> str:
    return metric if chosen == "none" else f"{metric},{chosen}"


def _texts(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked and answered, for people to read: a text that was written, or the likeliest of the options."""
    arguments, answers = sample["arguments"], [each[0] if isinstance(each, list | tuple) and each else each for each in sample["resps"]]
    if answers and isinstance(answers[0], str):
        said = answers[0]
    elif answers and isinstance(answers[0], list | tuple):
        said = arguments[max(range(len(answers)), key=lambda n: answers[n][0])][1]
    else:
        said = ""
    return {"prompt": str(arguments[0][0]), "completion": str(said), "wanted": str(sample["target"])}


def harness_model(model: "Model", chat: bool, of: Asked, max_tokens: int, what: str) -> Any:
    """A model as the harness asks it. chat: whether it was asked to render prompts by the chat template."""
    TemplateLM: Any = import_module("lm_eval.api.model").TemplateLM
    utils: Any = import_module("lm_eval.utils")
    get_rolling_token_windows, make_disjoint_window = utils.get_rolling_token_windows, utils.make_disjoint_window
    vocabulary = model.vocabulary

    class Model_(TemplateLM):
        tokenizer_name = vocabulary.fingerprint

        @property
        def eot_token_id(self) -> int:
            return min(vocabulary.end_ids)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return vocabulary.ids(string) if chat or add_special_tokens is False else vocabulary.prompt({"prompt": string}, PLAIN)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            going_on = {} if add_generation_prompt else {"continue_final_message": True}
            return vocabulary.chat(chat_history, prompt=add_generation_prompt, **going_on)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            with Progress(what, len(requests)).showing() as progress:
                pairs = [(context, going_on) for _, context, going_on in requests]
                found = log_likelihoods(model, pairs, of.tokens_per_pass, lambda tokens: progress.advance(0, tokens))
                progress.advance(len(requests))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            windows = [[make_disjoint_window(each) for each in get_rolling_token_windows(
                vocabulary.ids(request.args[0]), self.prefix_token_id, model.context - 1, 1)] for request in requests]  # fmt: skip
            found = iter(log_likelihoods(model, [pair for some in windows for pair in some], of.tokens_per_pass))
            return [sum(next(found)[0] for _ in some) for some in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return _generated(model, [(self.tok_encode(each.args[0]), each.args[1]) for each in requests], of.seed, max_tokens, what)

    return Model_()


def _generated(model: "Model", asked: Sequence[tuple[list[int], dict[str, Any]]], seed: int, max_tokens: int, what: str) -> list[str]:
    """Texts, each up to the first of its stops; prompts that are too long lose their beginning, as the harness does it."""
    found = [""] * len(asked)
    groups = dict[tuple[float, int], list[int]]()
    for n, (_, settings) in enumerate(asked):
        temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
        groups.setdefault((temperature, int(settings.get("max_gen_toks", max_tokens))), []).append(n)
    with Progress(what, len(asked)).showing() as progress:
        for (temperature, most), places in groups.items():
            prompts = [asked[n][0][-max(1, model.context - most) :] for n in places]
            sampling = Sampling(max_tokens=most, temperature=temperature)
            written = write(model, prompts, sampling, seed, 0, places, told=lambda tokens: progress.advance(0, tokens))
            for n, new in zip(places, written, strict=True):
                found[n] = stopped(model.vocabulary.text(new.tokens), asked[n][1].get("until"))
            progress.advance(len(places))
    return found


def stopped(text: str, stops: str | Sequence[str] | None) -> str:
    """A text up to the first of its stops."""
    places = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops or []) if stop and stop in text]
    return text[: min(places)] if places else text
