"""The last linear map of a language model, from hidden states to logits, with its few published variations.

Axes: C rows of a chunk, D hidden width, V true vocabulary (padded rows are cut away before any softmax).
"""

from dataclasses import dataclass, replace

from limbeck.lazy import Tensor, torch


@dataclass(frozen=True)
class Head:
    """`logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap)`; without a cap, `scale * (...)`.

    `scale` is Cohere's `logit_scale` or one over Granite's `logits_scaling`; `cap` is Gemma 2's `final_logit_softcapping`.
    `weight_VD` may hold more rows than the vocabulary: only the first `vocabulary` rows count.
    """

    weight_VD: Tensor
    vocabulary: int
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def apart(self) -> "Head":
        """The same with weights of its own, for when the model's may go away."""
        return replace(self, weight_VD=self.weight_VD.clone(), bias_V=None if self.bias_V is None else self.bias_V.clone())

    def prepared(self, dtype: "torch.dtype") -> "Head":
        """The same head, detached, cut to the true vocabulary and in the dtype of the hidden states, ready for many chunks."""
        bias = None if self.bias_V is None else self.bias_V.detach()[: self.vocabulary].to(dtype)
        weight = self.weight_VD.detach()[: self.vocabulary].to(dtype)
        return Head(weight, self.vocabulary, bias, self.scale, self.cap)

    def product(self, hidden_CD: Tensor, out_CV: Tensor | None = None) -> Tensor:
        """The matrix product alone [C, V], in the dtype of the (prepared) weight; in a room of its own where none is given."""
        hidden_CD = hidden_CD.to(self.weight_VD.dtype)
        if self.bias_V is None:
            return torch.mm(hidden_CD, self.weight_VD.T, out=out_CV)
        return torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=out_CV)

    def finished(self, raw_CV: Tensor) -> Tensor:
        """Logits [C, V] of a product, in float32 (float64 stays): scaled and capped. May be the product itself."""
        logits_CV = raw_CV if raw_CV.dtype == torch.float64 else raw_CV.float()
        if self.cap is not None:
            return (logits_CV * (self.scale / self.cap)).tanh_().mul_(self.cap)
        return logits_CV if self.scale == 1.0 else logits_CV * self.scale

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits [C, V] in float32 (float64 stays)."""
        return self.finished(self.product(hidden_CD))

    def pull_back(self, gradient_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """Turn a gradient on the logits into one on the plain linear map, in place."""
        if self.cap is not None:
            gradient_CV.mul_(1 - (logits_CV / self.cap).square_())
        return gradient_CV.mul_(self.scale) if self.scale != 1.0 else gradient_CV
