"""What transferred: evaluations measure a student beside its teacher, by the same reduction as training."""

from limbeck.evaluate.likelihood import Evaluation, Likelihood, evaluate
from limbeck.evaluate.verified import Verified

__all__ = ["Evaluation", "Likelihood", "Verified", "evaluate"]
