"""What transferred: evaluations measure a student beside its teacher, by the same reduction as training."""

from limbeck.evaluate.accuracy import Accuracy
from limbeck.evaluate.likelihood import Evaluation, Likelihood, evaluate
from limbeck.evaluate.verified import Verified

__all__ = ["Accuracy", "Evaluation", "Likelihood", "Verified", "evaluate"]
