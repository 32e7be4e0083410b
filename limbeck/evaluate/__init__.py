"""What transferred: evaluations measure a student beside its teacher, by the same reduction as training."""

from limbeck.evaluate.likelihood import Evaluation, Likelihood, evaluate

__all__ = ["Evaluation", "Likelihood", "evaluate"]
