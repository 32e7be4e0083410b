"""Limbeck distills language models: someone writes tokens, someone scores them, the student moves toward the score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.across import ULD as ULD
    from limbeck.across import Gold as Gold
    from limbeck.across import SpanLikelihood as SpanLikelihood
    from limbeck.adapters import LoRA as LoRA
    from limbeck.aligned import Aligned as Aligned
    from limbeck.average import Average as Average
    from limbeck.batch import Batch as Batch
    from limbeck.condensing import Condense as Condense
    from limbeck.condensing import condense as condense
    from limbeck.config import part as part
    from limbeck.curriculum import Curriculum as Curriculum
    from limbeck.data import Data as Data
    from limbeck.decoding import Sampling as Sampling
    from limbeck.divergence import JSD as JSD
    from limbeck.divergence import AlphaDivergence as AlphaDivergence
    from limbeck.divergence import Divergence as Divergence
    from limbeck.divergence import ForwardKL as ForwardKL
    from limbeck.divergence import Jeffreys as Jeffreys
    from limbeck.divergence import ReverseKL as ReverseKL
    from limbeck.divergence import SkewKL as SkewKL
    from limbeck.divergence import SkewReverseKL as SkewReverseKL
    from limbeck.divergence import TotalVariation as TotalVariation
    from limbeck.drafts import generate as generate
    from limbeck.endpoint import Endpoint as Endpoint
    from limbeck.engines import VLLM as VLLM
    from limbeck.errors import LimbeckError as LimbeckError
    from limbeck.evaluate import Accuracy as Accuracy
    from limbeck.evaluate import Likelihood as Likelihood
    from limbeck.evaluate import Verified as Verified
    from limbeck.examples import read_examples as read_examples
    from limbeck.examples import write_examples as write_examples
    from limbeck.experts import Experts as Experts
    from limbeck.exporting import export as export
    from limbeck.features import Attentions as Attentions
    from limbeck.features import HiddenStates as HiddenStates
    from limbeck.guidance import Guided as Guided
    from limbeck.guidance import Itself as Itself
    from limbeck.guidance import Privileged as Privileged
    from limbeck.herding import Herding as Herding
    from limbeck.hidden import Masked as Masked
    from limbeck.interleaved import Interleaved as Interleaved
    from limbeck.matching import DistributionMatching as DistributionMatching
    from limbeck.matching import GradientMatching as GradientMatching
    from limbeck.matching import TrajectoryMatching as TrajectoryMatching
    from limbeck.methods import alm as alm
    from limbeck.methods import distilbert as distilbert
    from limbeck.methods import distillm as distillm
    from limbeck.methods import distillspec as distillspec
    from limbeck.methods import fitnets as fitnets
    from limbeck.methods import gkd as gkd
    from limbeck.methods import gkd_rl as gkd_rl
    from limbeck.methods import gold as gold
    from limbeck.methods import kd as kd
    from limbeck.methods import on_policy as on_policy
    from limbeck.methods import sft as sft
    from limbeck.methods import skd as skd
    from limbeck.methods import tinybert as tinybert
    from limbeck.methods import uld as uld
    from limbeck.mixture import Mixture as Mixture
    from limbeck.networks import MLP as MLP
    from limbeck.networks import ConvNet as ConvNet
    from limbeck.networks import CustomNetwork as CustomNetwork
    from limbeck.objective import CrossEntropy as CrossEntropy
    from limbeck.objective import CustomTerm as CustomTerm
    from limbeck.objective import Objective as Objective
    from limbeck.objective import PolicyGradient as PolicyGradient
    from limbeck.objective import RowTerm as RowTerm
    from limbeck.objective import Term as Term
    from limbeck.optimizer import AdamW as AdamW
    from limbeck.pipeline import Generations as Generations
    from limbeck.pipeline import Pipeline as Pipeline
    from limbeck.prefetch import Prefetch as Prefetch
    from limbeck.recipe import Recipe as Recipe
    from limbeck.rollouts import OnPolicy as OnPolicy
    from limbeck.siamese import Siamese as Siamese
    from limbeck.soft_prompts import SoftPrompts as SoftPrompts
    from limbeck.sources import Corpus as Corpus
    from limbeck.sources import CustomSource as CustomSource
    from limbeck.sources import Mix as Mix
    from limbeck.sources import Source as Source
    from limbeck.speculative import InTopK as InTopK
    from limbeck.stages import distill_stages as distill_stages
    from limbeck.student import Student as Student
    from limbeck.targets import Targets as Targets
    from limbeck.teacher_samples import TeacherSamples as TeacherSamples
    from limbeck.teachers import Cached as Cached
    from limbeck.teachers import Local as Local
    from limbeck.teachers import Silent as Silent
    from limbeck.teachers import Teacher as Teacher
    from limbeck.train import distill as distill
    from limbeck.verifiers import Exact as Exact
    from limbeck.verifiers import JsonSchema as JsonSchema
    from limbeck.verifiers import MultipleChoice as MultipleChoice
    from limbeck.verifiers import Number as Number
    from limbeck.verifiers import Regex as Regex
    from limbeck.verifiers import UnitTests as UnitTests

_WHERE = {
    "across": "Gold SpanLikelihood ULD",
    "adapters": "LoRA",
    "aligned": "Aligned",
    "average": "Average",
    "batch": "Batch",
    "condensing": "Condense condense",
    "config": "part",
    "curriculum": "Curriculum",
    "data": "Data",
    "decoding": "Sampling",
    "divergence": "AlphaDivergence Divergence ForwardKL JSD Jeffreys ReverseKL SkewKL SkewReverseKL TotalVariation",
    "drafts": "generate",
    "endpoint": "Endpoint",
    "engines": "VLLM",
    "errors": "LimbeckError",
    "evaluate": "Accuracy Likelihood Verified",
    "examples": "read_examples write_examples",
    "experts": "Experts",
    "exporting": "export",
    "features": "Attentions HiddenStates",
    "guidance": "Guided Itself Privileged",
    "herding": "Herding",
    "hidden": "Masked",
    "interleaved": "Interleaved",
    "matching": "DistributionMatching GradientMatching TrajectoryMatching",
    "methods": "alm distilbert distillm distillspec fitnets gkd gkd_rl gold kd on_policy sft skd tinybert uld",
    "networks": "ConvNet CustomNetwork MLP",
    "objective": "CrossEntropy CustomTerm Objective PolicyGradient RowTerm Term",
    "optimizer": "AdamW",
    "pipeline": "Generations Pipeline",
    "prefetch": "Prefetch",
    "recipe": "Recipe",
    "rollouts": "OnPolicy",
    "siamese": "Siamese",
    "soft_prompts": "SoftPrompts",
    "sources": "Corpus CustomSource Mix Source",
    "speculative": "InTopK",
    "stages": "distill_stages",
    "student": "Student",
    "targets": "Targets",
    "teacher_samples": "TeacherSamples",
    "mixture": "Mixture",
    "teachers": "Cached Local Silent Teacher",
    "train": "distill",
    "verifiers": "Exact JsonSchema MultipleChoice Number Regex UnitTests",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first asked for: `import limbeck` alone needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"limbeck has no {name}")
    return getattr(import_module(f"limbeck.{_HOME[name]}"), name)
