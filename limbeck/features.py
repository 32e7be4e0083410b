"""Terms of what stands inside the models: hidden states and attention of a student's layers, beside those of its teacher's.

Axes: N completion tokens of a pass, n a few of them from one sequence, D hidden width, H heads, K keys, L layers, counted from 0: the first
is the one after the embedding. Row n is about completion token n: the position before it, which predicts it.
"""

import hashlib
import math
from typing import Any, ClassVar, Literal, Self, cast

from limbeck.config import live, part, settings_of
from limbeck.errors import RecipeError
from limbeck.insides import Attention, Block, Build, Features, Layers, wide
from limbeck.lazy import Tensor, torch
from limbeck.objective import FeatureTerm, Term

Map = Literal["even", "last", "middle"] | dict[int, int]
"""Which of the teacher's layers each of the student's is compared with."""


def pairs(asked: Map, student: int, teacher: int) -> dict[int, int]:
    """The teacher's layer of each of the student's that is compared, for models of so many layers.

    even: student layer m of M, counted from 1, has ceil(m L / M) of the teacher's L: the uniform map of TinyBERT (arXiv 1909.10351, where M
    divides L), whose last is the teacher's last. last: that one alone, as in MiniLM (arXiv 2002.10957). middle: the middle one of
    each, as in FitNets (arXiv 1412.6550); of an even number the lower of two.
    """
    match asked:
        case "even":
            return {layer: math.ceil((layer + 1) * teacher / student) - 1 for layer in range(student)}
        case "last":
            return {student - 1: teacher - 1}
        case "middle":
            return {(student - 1) // 2: (teacher - 1) // 2}
        case _:
            return dict(asked)


@part
class LayerTerm(FeatureTerm):
    """Base of both: `map` says which layers are compared."""

    map: Map = "even"

    _pairs: Any = live()

    def __post_init__(self) -> None:
        Term.__post_init__(self)
        if isinstance(self.map, dict) and (not self.map or min(*self.map, *self.map.values()) < 0):
            raise RecipeError(f"{self._what}.map must name layers from 0 on, found {self.map}; write it like {{0: 1, 1: 3}}, student's: teacher's, "
                              'or "even", "last", "middle"')  # fmt: skip

    def __plain__(self) -> dict[str, Any]:
        """Its settings; files have no numbers for keys."""
        given = {name: getattr(self, name) for name in settings_of(type(self))}
        asked = {str(mine): theirs for mine, theirs in self.map.items()} if isinstance(self.map, dict) else self.map
        return {"type": self._what, **given, "map": asked}

    @property
    def _what(self) -> str:
        return type(self).__name__

    @property
    def opens(self) -> tuple[Layers, Layers]:
        """Those of the map."""
        assert self._pairs is not None, f"{self._what} is only its settings; load() it"
        return self._layers(frozenset(self._pairs)), self._layers(frozenset(self._pairs.values()))

    def _layers(self, numbers: frozenset[int]) -> Layers:
        raise NotImplementedError

    def itself(self) -> Self:
        """Each of the student's layers beside itself."""
        made = self.fresh()
        made._pairs = {layer: layer for layer in self._pairs}
        return made

    def load(self, student: Build, teacher: Build, seed: int) -> Self:
        """The term alive, for models that are built so. Raises RecipeError for layers that they do not have."""
        made = self.fresh()
        made._pairs = pairs(self.map, student.layers, teacher.layers)
        for who, build, numbers in (("student", student, made._pairs), ("teacher", teacher, made._pairs.values())):
            if (last := max(numbers)) >= build.layers:
                raise RecipeError(f"{self.name} maps layer {last} of the {who}, and {build.name} has {build.layers}, 0 to {build.layers - 1}; "
                                  'name those, or give map="even"')  # fmt: skip
        return made


@part
class HiddenStates(LayerTerm):
    """How far the states that leave the student's layers are from those that leave the teacher's: hints (FitNets, arXiv 1412.6550).

    map: "even", "last", "middle" or {student's: teacher's}, layers from 0; the mean over its pairs is taken, so that a weight means the same
    for any map. distance: "mse", the mean over the width of the squared difference, or "cosine", one less their cosine. Where
    widths differ, the student's states are first mapped to the teacher's by a matrix of each layer's own, learnt with the student and
    left out of what is saved. Departs from FitNets and TinyBERT (arXiv 1909.10351, eq. 8): 1) only tokens of completions
    count; 2) the projection is linear, without a bias, one for each pair; 3) states before the last norm, none of the embedding.
    """

    distance: Literal["mse", "cosine"] = "mse"

    needs: ClassVar[frozenset[str]] = frozenset({"states"})

    _projections: Any = live()

    @property
    def unit(self) -> str:
        """The distance."""
        return self.distance

    def _layers(self, numbers: frozenset[int]) -> Layers:
        return Layers(states=numbers)

    def load(self, student: Build, teacher: Build, seed: int) -> Self:
        """The term alive; its projections are drawn anew, the same for the same seed."""
        made = super().load(student, teacher, seed)
        made._projections = torch.nn.ModuleDict()
        if student.width_D != teacher.width_D:
            for layer in made._pairs:
                made._projections[str(layer)] = _projection(student.width_D, teacher.width_D, f"{seed} {self.name} {layer}")
        return made

    @property
    def projections(self) -> "torch.nn.ModuleDict":
        """By the student's layer; none where widths are the same."""
        return self._projections

    def distances(self, student: Features, teacher: Features) -> Tensor:
        """The mean over pairs of layers, of each row [N]."""
        return torch.stack([self._apart(student, mine, wide(teacher.states[theirs].detach())) for mine, theirs in self._pairs.items()]).mean(0)

    def _apart(self, student: Features, layer: int, theirs_ND: Tensor) -> Tensor:
        mine_ND = wide(student.states[layer])
        if self._projections:
            mine_ND = self._projections[str(layer)](mine_ND)
        if self.distance == "mse":
            return (mine_ND - theirs_ND).square().mean(-1)
        return 1 - torch.cosine_similarity(mine_ND, theirs_ND, dim=-1)


def _projection(width: int, wanted: int, key: str) -> "torch.nn.Linear":
    """A linear map of hidden states that keeps their size, drawn by a key."""
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    made = torch.nn.Linear(width, wanted, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(wanted, width, generator=draw) / math.sqrt(width))
    return made


@part
class Attentions(LayerTerm):
    """How far the student's attention is from the teacher's, for each token the row with which it looks back (MiniLM, arXiv 2002.10957).

    map: as in HiddenStates. distance: "kl", `KL(teacher || student)` over the keys in nats, or "mse", the mean over the keys, from the
    first token to the row's own, of the squared difference (TinyBERT, arXiv 1909.10351, eq. 7). The mean over heads and pairs of
    layers is taken; where two models differ in their number of heads, the rows are first averaged over them. Models attend as they did
    before (SDPA, flash): the rows of the layers compared are made beside it, a few at a time. Departs: 1) only rows that predict
    completion tokens count; 2) from TinyBERT: rows after the softmax, not before; 3) from MiniLM: values are not compared.
    """

    distance: Literal["kl", "mse"] = "kl"

    needs: ClassVar[frozenset[str]] = frozenset({"attentions"})

    @property
    def unit(self) -> str:
        """Nats for a divergence, else the distance."""
        return "nats" if self.distance == "kl" else self.distance

    def _layers(self, numbers: frozenset[int]) -> Layers:
        return Layers(attentions=numbers)

    def load(self, student: Build, teacher: Build, seed: int) -> Self:
        """The term alive. Raises RecipeError where the teacher sees keys that the student does not, whose divergence is infinite."""
        made = super().load(student, teacher, seed)
        for mine, theirs in cast(dict[int, int], made._pairs).items():
            near, far = student.windows[mine], teacher.windows[theirs]
            if self.distance == "kl" and near is not None and (far is None or far > near):
                raise RecipeError(f"layer {theirs} of the teacher looks back over {far or 'all'} tokens and layer {mine} of the student over {near}, "
                                  f'so that {self.name} would be infinite; map other layers, or give distance="mse"')  # fmt: skip
        return made

    def distances(self, student: Features, teacher: Features) -> Tensor:
        """The mean over heads and pairs of layers, of each row [N]."""
        each = [self._apart(student.attentions[mine], teacher.attentions[theirs]) for mine, theirs in self._pairs.items()]
        return torch.stack(each).mean(0)

    def _apart(self, mine: Attention, theirs: Attention) -> Tensor:
        if not mine.blocks:
            return mine.queries[0].new_zeros(0)
        if not torch.is_grad_enabled():
            return torch.cat([self._block(mine, theirs, block) for block in mine.blocks])
        from torch.utils import checkpoint

        again = cast(Any, checkpoint).checkpoint  # so that [H, N, K] of a whole pass never exists
        return torch.cat([again(self._block, mine, theirs, block, use_reentrant=False, preserve_rng_state=False) for block in mine.blocks])

    def _block(self, mine: Attention, theirs: Attention, block: Block) -> Tensor:
        log_q, seen = mine.rows(block)
        with torch.no_grad():
            log_p, told = theirs.rows(block)
        if len(log_q) != len(log_p):
            (log_q, seen), (log_p, told) = _over_heads(log_q, seen), _over_heads(log_p, told)
        p_HnK = log_p.exp().masked_fill(~told, 0.0)
        if self.distance == "kl":
            return (p_HnK * (log_p - log_q)).sum(-1).mean(0)
        keys_n = mine.position_N[block.rows] + 1
        return ((log_q.exp().masked_fill(~seen, 0.0) - p_HnK).square().sum(-1) / keys_n).mean(0)


def _over_heads(log_HnK: Tensor, seen_HnK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows averaged over heads [1, n, K]; all heads of a layer see the same keys."""
    return log_HnK.logsumexp(0, keepdim=True) - math.log(len(log_HnK)), seen_HnK[:1]
