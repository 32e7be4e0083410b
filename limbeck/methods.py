"""The named methods: each is a recipe of a few lines, and nothing that cannot be written by hand.

`student` and `teacher` are hub names or folders; `data` and `prompts` are paths, or lists of `Data`. What is not said here
is a setting of `Recipe`, given by name: `gkd("student", "teacher", prompts="prompts.jsonl", steps=200)`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from limbeck.across import ULD, Gold, SpanLikelihood
from limbeck.aligned import Aligned
from limbeck.config import build
from limbeck.divergence import JSD, ForwardKL, ReverseKL, SkewKL, TotalVariation
from limbeck.errors import RecipeError, did_you_mean
from limbeck.features import Attentions, HiddenStates, Map
from limbeck.hidden import Masked
from limbeck.interleaved import Interleaved
from limbeck.objective import CrossEntropy, Objective, PolicyGradient, Term
from limbeck.privacy import expanded
from limbeck.recipe import Recipe
from limbeck.rollouts import OnPolicy
from limbeck.sources import Corpus, Mix
from limbeck.speculative import InTopK
from limbeck.student import Student
from limbeck.teachers import Cached, Local, Teacher
from limbeck.verifiers import Verifier

Named = str | Student
Scorer = str | Teacher


def _student(value: Named) -> Student:
    return build(value, Student)


def scorer(value: Scorer) -> Teacher:
    """A teacher by name: a cache where the folder is one, else a model."""
    if not isinstance(value, str):
        return value
    return Cached(value) if (expanded(value) / "manifest.json").is_file() else Local(value)


def sft(student: Named, data: Any, **numbers: Any) -> Recipe:
    """Fine-tuning: cross-entropy on the text. The baseline of every other method."""
    return Recipe(_student(student), Corpus(data), objective=Objective([CrossEntropy()]), **numbers)


def kd(student: Named, teacher: Scorer, data: Any, temperature: float = 1.0, alpha: float = 0.0, **numbers: Any) -> Recipe:
    """Supervised distillation: `(1 - alpha) T^2 KL(p || q) + alpha CE` on ready text (Hinton et al. 2015, arXiv 1503.02531)."""
    objective = Objective([(1 - alpha) * ForwardKL(temperature=temperature)])
    objective = objective + alpha * CrossEntropy() if alpha else objective
    return Recipe(_student(student), Corpus(data), scorer(teacher), objective, **numbers)


def gkd(
    student: Named, teacher: Scorer, prompts: Any = None, data: Any = None, fraction: float = 0.5, objective: Term | Objective | None = None,
    **numbers: Any,
) -> Recipe:  # fmt: skip
    """Generalised distillation (GKD, arXiv 2306.13649): the student's own answers, or a mix of them with ready text.

    With `prompts` alone every step is on-policy; with `data` too, a step is on-policy with probability `fraction`.
    Departs: 1) means over all tokens of a step, where the paper's eq. 2 means within sequences first.
    """
    if prompts is None:
        raise RecipeError("gkd needs prompts for the student to answer; give prompts=, and data= for ready text beside them")
    own = OnPolicy(prompts)
    source = own if data is None else Mix(fraction, own, Corpus(data))
    return Recipe(_student(student), source, scorer(teacher), build(objective or JSD(0.5), Objective), **numbers)


def on_policy(student: Named, teacher: Scorer, prompts: Any, **numbers: Any) -> Recipe:
    """On-policy distillation: reverse KL on the student's own answers."""
    return Recipe(_student(student), OnPolicy(prompts), scorer(teacher), Objective([ReverseKL()]), **numbers)


def distillm(student: Named, teacher: Scorer, prompts: Any, data: Any, fraction: float = 0.5, **numbers: Any) -> Recipe:
    """Skewed KL on a mix of own and ready text (DistiLLM, arXiv 2402.03898).

    Departs: 1) a fixed fraction of own text in place of the adaptive schedule; 2) no replay buffer.
    """
    return Recipe(_student(student), Mix(fraction, OnPolicy(prompts), Corpus(data)), scorer(teacher), Objective([SkewKL()]), **numbers)


def gkd_rl(
    student: Named, teacher: Scorer, prompts: Any, reward: str | Verifier, alpha: float = 0.5, group: int = 8, **numbers: Any
) -> Recipe:  # fmt: skip
    """GKD with a reward (arXiv 2306.13649, eq. 5): `alpha KL(q || p) + (1 - alpha) policy gradient` on own answers."""
    objective = alpha * ReverseKL() + (1 - alpha) * PolicyGradient()
    return Recipe(_student(student), OnPolicy(prompts, group=group, reward=build(reward, Verifier)), scorer(teacher), objective, **numbers)


def skd(student: Named, teacher: Scorer, prompts: Any, k: int = 25, gamma: int = 5, **numbers: Any) -> Recipe:
    """Speculative knowledge distillation (SKD, arXiv 2410.11325): forward KL on text that the student proposes and the teacher verifies."""
    source = Interleaved(prompts, accept=InTopK(k), gamma=gamma)
    return Recipe(_student(student), source, scorer(teacher), Objective([ForwardKL()]), **numbers)


def distillspec(student: Named, teacher: Scorer, prompts: Any, objective: Term | Objective | None = None, **numbers: Any) -> Recipe:
    """A draft for speculative decoding (DistillSpec, arXiv 2310.08461): it writes, its target scores; by default total variation.

    One less the total variation is what is accepted of the draft's tokens, so that the objective is acceptance itself.
    """
    return Recipe(_student(student), OnPolicy(prompts), scorer(teacher), build(objective or TotalVariation(), Objective), **numbers)


def fitnets(student: Named, teacher: Scorer, data: Any, layers: Map = "middle", weight: float = 1.0, **numbers: Any) -> Recipe:
    """A hint from inside the teacher beside its distributions: `KL(p || q) + weight * HiddenStates(layers)` (FitNets, arXiv 1412.6550).

    Departs: 1) one stage, where there the hint trains the student's lower half first and the distributions all of it then; 2) the
    regressor is linear, and there is one only where widths differ; 3) no cross-entropy with the text.
    """
    return Recipe(_student(student), Corpus(data), scorer(teacher), ForwardKL() + weight * HiddenStates(layers), **numbers)


def tinybert(
    student: Named, teacher: Scorer, data: Any, layers: Map = "even", states: float = 1.0, attentions: float = 1.0, **numbers: Any
) -> Recipe:  # fmt: skip
    """States and attention of all layers beside the teacher's distributions (TinyBERT, arXiv 1909.10351).

    `KL(p || q) + states * HiddenStates(layers) + attentions * Attentions(layers, distance="mse")`. Departs: 1) one stage, where
    there the layers learn first and the distributions then; 2) means over layers, where there are sums; 3) attention after the
    softmax, not before; 4) no term of the embeddings; 5) a language model on its text, in place of a classifier on augmented sentences.
    """
    objective = ForwardKL() + states * HiddenStates(layers) + attentions * Attentions(layers, distance="mse")
    return Recipe(_student(student), Corpus(data), scorer(teacher), objective, **numbers)


def uld(student: Named, teacher: Scorer, data: Any, weight: float = 1.5, **numbers: Any) -> Recipe:
    """Across vocabularies: `CE + weight ULD` on ready text (arXiv 2402.12030, 1.5 as there); the teacher reads it in its own tokens."""
    return Recipe(_student(student), Corpus(data), _across(teacher), CrossEntropy() + weight * ULD(), **numbers)


def alm(student: Named, teacher: Scorer, data: Any, weight: float = 1.0, **numbers: Any) -> Recipe:
    """Across vocabularies: `CE + weight SpanLikelihood` on ready text (ALM, arXiv 2503.20083). Departs: 1) no hidden states are matched."""
    return Recipe(_student(student), Corpus(data), _across(teacher), CrossEntropy() + weight * SpanLikelihood(), **numbers)


def gold(student: Named, teacher: Scorer, prompts: Any, data: Any = None, fraction: float = 0.5, **numbers: Any) -> Recipe:
    """Across vocabularies, on-policy: a divergence on common tokens and ULD on the others (GOLD, 2025), on own answers or a mix.

    With `data` a step is on-policy with probability `fraction`, as in `gkd`.
    """
    own = OnPolicy(prompts)
    source = own if data is None else Mix(fraction, own, Corpus(data))
    return Recipe(_student(student), source, _across(teacher), Objective([Gold()]), **numbers)


def _across(value: Scorer) -> Teacher:
    """A teacher by name, in its own tokens."""
    return value if isinstance(value, Aligned) else Aligned(Local(value) if isinstance(value, str) else value)


def distilbert(
    student: Named, teacher: Scorer, data: Any, temperature: float = 2.0, kl: float = 5.0, mlm: float = 2.0, cosine: float = 1.0, **numbers: Any
) -> Recipe:  # fmt: skip
    """The three losses of DistilBERT on hidden tokens: the teacher's distributions, the text, and the direction of the last states.

    `kl T^2 KL(p || q) + mlm CE + cosine HiddenStates("last", "cosine")` (arXiv 1910.01108; the weights are those of its published
    training). Departs: 1) all three are of hidden tokens alone, where there the first and the last are of every token; 2) a student is not
    cut from its teacher here: give one that is.
    """
    objective = kl * ForwardKL(temperature=temperature) + mlm * CrossEntropy() + cosine * HiddenStates("last", distance="cosine")
    return Recipe(_student(student), Masked(data), scorer(teacher), objective, **numbers)


_ALL = (sft, kd, gkd, on_policy, distillm, gkd_rl, skd, distillspec, fitnets, tinybert, uld, alm, gold, distilbert)
METHODS: dict[str, Callable[..., Recipe]] = {method.__name__: method for method in _ALL}
"""By name, for the command line."""


def named(method: str, **given: Any) -> Recipe:
    """The recipe of a named method. Raises RecipeError for what the method needs and was not given, or does not take."""
    if method not in METHODS:
        raise RecipeError(f'there is no method "{method}"{did_you_mean(method, METHODS)}')
    takes = inspect.signature(METHODS[method]).parameters
    needed = [name for name, taken in takes.items() if taken.default is taken.empty and taken.kind is not taken.VAR_KEYWORD]
    missing = [name for name in needed if name not in given]
    if missing:
        raise RecipeError(f"{method} needs {', '.join(f'--{name}' for name in missing)}")
    if unknown := [name for name in given if name not in takes]:
        raise RecipeError(f"{method} takes no --{unknown[0]}; it takes {', '.join(f'--{name}' for name in takes if name != 'numbers')}")
    return METHODS[method](**given)
