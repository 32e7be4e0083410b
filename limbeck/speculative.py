"""One model proposes, another verifies: speculative decoding, and SKD's interleaved text. One loop, given a rule of acceptance.

Axes: B rows, G proposed tokens, Q = G or G + 1 verified places, V vocabulary, D hidden width. p is the verifier's (target's,
teacher's) distribution, q the proposer's (draft's, student's), both after temperature and narrowing. Token ids throughout.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.config import Part, part
from limbeck.errors import RecipeError, VocabularyError
from limbeck.generate import Decoder, Round, Row, Sampling, pick, weights
from limbeck.lazy import Tensor, torch
from limbeck.targets import Logits
from limbeck.vocabulary import prove_equal

if TYPE_CHECKING:
    from limbeck.models import Model, Writing

PROPOSED, ACCEPTED, INSTEAD = 0, 1, 2
"""Streams of random numbers: which token is proposed at a place, whether it is accepted, which one stands there instead."""


class Rule(Part, ABC):
    """What of a proposal is kept.

    lossless: whether the text is the verifier's own. Then one more token of the verifier's follows a proposal that is kept whole, and
    log-probabilities are the verifier's; else a token's is that of whoever chose it.
    """

    lossless: bool

    @abstractmethod
    def accepts(self, ids_BG: Tensor, logits_BGV: Tensor, p_BGV: Tensor, q_BGV: Tensor, uniform_BG: Tensor) -> Tensor:
        """Which proposed tokens may stand [B, G], each if those before it do. logits: the verifier's, before any transform."""

    @abstractmethod
    def instead(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        """What the token is drawn from that stands where one was not accepted [B, V], in proportion."""


@part
class Exact(Rule):
    """Lossless: the text is the verifier's own, token for token in distribution (Leviathan et al. 2022, arXiv 2211.17192).

    Accept y with probability min(1, p(y) / q(y)); where it is refused draw from norm(max(0, p - q)); after a proposal that is
    kept whole draw one more from p. A token is accepted with probability sum min(p, q) = 1 - TVD(p, q).
    """

    lossless = True

    def accepts(self, ids_BG: Tensor, logits_BGV: Tensor, p_BGV: Tensor, q_BGV: Tensor, uniform_BG: Tensor) -> Tensor:
        """u q(y) < p(y): no division, and nothing of probability 0 is kept."""
        p_BG, q_BG = (each.gather(-1, ids_BG[..., None])[..., 0].double() for each in (p_BGV, q_BGV))
        return uniform_BG * q_BG < p_BG

    def instead(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        """What p has above q. It is empty only where both are equal up to rounding: then p itself is meant."""
        left_BV = (p_BV - q_BV).clamp(min=0)
        return torch.where(left_BV.sum(-1, keepdim=True) > 0, left_BV, p_BV)


@part
class InTopK(Rule):
    """SKD (Xu et al. 2024, arXiv 2410.11325, algorithm 1): a token of the student's stays if it stands among the teacher's `k` likeliest.

    Else the teacher draws one in its place, and what was proposed after it is dropped. k = 0 gives the teacher's text, k of the
    vocabulary's size or more the student's. Departs: 1) rows of a batch go on by themselves, none waits for another.
    """

    k: int = 25
    lossless = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise RecipeError(f"InTopK.k must be at least 0, found {self.k}")

    def accepts(self, ids_BG: Tensor, logits_BGV: Tensor, p_BGV: Tensor, q_BGV: Tensor, uniform_BG: Tensor) -> Tensor:
        """Fewer than k are likelier."""
        return (logits_BGV > logits_BGV.gather(-1, ids_BG[..., None])).sum(-1) < self.k

    def instead(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        """One of the teacher's."""
        return p_BV


@dataclass
class Pair:
    """What both remember. unread_B: how many of a row's last tokens the proposer has not read; the verifier has not read one."""

    verifier: "Writing"
    proposer: "Writing"
    unread_B: list[int]


class Speculative(Decoder):
    """Rounds of a proposal and its verification; each row keeps as much as its own rule allows, and memories are taken back, never made anew.

    gamma: how many tokens are proposed, or what says so anew for each round. scores: keep the verifier's hidden states of each token.
    Raises VocabularyError where the two do not mean the same by a token, RecipeError where a model cannot take back what it read.
    """

    def __init__(self, verifier: "Model", proposer: "Model", sampling: Sampling, rule: Rule, gamma: "int | Pace", scores: bool = False) -> None:
        self.verifier, self.proposer, self.sampling, self.rule, self.scores = verifier, proposer, sampling, rule, scores
        self.pace = Pace(gamma) if isinstance(gamma, int) else gamma
        if verifier.vocabulary is not proposer.vocabulary:
            prove_equal(proposer.vocabulary, verifier.vocabulary)
        self.heads = [model.head.prepared(model.compute) for model in (verifier, proposer)]
        if self.heads[0].vocabulary != self.heads[1].vocabulary:
            raise VocabularyError(f"{proposer.name} and {verifier.name} have {self.heads[1].vocabulary:,} and {self.heads[0].vocabulary:,} tokens")

    def read(self, prompts: Sequence[Sequence[int]]) -> Pair:
        """Both read all but the last token."""
        begun = [model.begin([prompt[:-1] for prompt in prompts]) for model in (self.verifier, self.proposer)]
        for model, text in zip((self.verifier, self.proposer), begun, strict=True):
            if not text.revocable:
                raise RecipeError(f"{model.name} keeps a state from which no token can be taken back; speculation needs models of attention alone")
        return Pair(*begun, [1] * len(prompts))

    def gather(self, parts: Sequence[tuple[Pair, Sequence[int]]]) -> Pair:
        """By both models."""
        texts = [model.gather([(getattr(pair, name), rows) for pair, rows in parts])
                 for model, name in ((self.verifier, "verifier"), (self.proposer, "proposer"))]  # fmt: skip
        return Pair(*texts, [pair.unread_B[row] for pair, rows in parts for row in rows])

    def mixes(self, state: Pair) -> bool:
        """What can be taken back can be mixed."""
        return True

    def write_on(self, state: Pair, rows: Sequence[Row]) -> int:
        """One round."""
        longest = max(len(row.request.prompt) + len(row.written.tokens) for row in rows)
        room = min(self.verifier.context, self.proposer.context) - longest - self.rule.lossless
        if (gamma := min(self.pace.now, room)) <= 0:
            return self._alone(state, rows)
        ids_BG, q_BGV, log_q_BG = self._propose(state, rows, gamma)
        hidden_BQD, logits_BQV = self._verify(state, rows, ids_BG)
        p_BQV = normed(weights(logits_BQV.flatten(0, 1), self.sampling)).unflatten(0, logits_BQV.shape[:2])
        uniform_BG = torch.stack([self._uniform_B(rows, ahead, ACCEPTED) for ahead in range(gamma)], 1).to(ids_BG.device)
        kept_B = self.rule.accepts(ids_BG, logits_BQV[:, :gamma], p_BQV[:, :gamma], q_BGV, uniform_BG).int().cumprod(1).sum(1)
        next_B = self._instead(rows, kept_B, p_BQV, q_BGV)
        log_p_BQV = Logits(logits_BQV).log_probs()
        self._forget(state, kept_B, gamma, logits_BQV.shape[1])
        self.pace.saw(kept_B.tolist(), gamma)
        found = _Round(ids_BG, next_B, kept_B, log_q_BG, log_p_BQV, self.rule.lossless)
        return sum(self._take(row, found, b, hidden_BQD) for b, row in enumerate(rows))

    def _uniform_B(self, rows: Sequence[Row], ahead: int, stream: int) -> Tensor:
        return torch.tensor([row.uniform(ahead, stream) for row in rows], dtype=torch.float64)

    def _propose(self, state: Pair, rows: Sequence[Row], gamma: int) -> tuple[Tensor, Tensor, Tensor]:
        """The proposer's tokens [B, G], what they were drawn from [B, G, V], and their log-probabilities before that [B, G]."""
        text, most, found = state.proposer, max(state.unread_B), list[tuple[Tensor, Tensor, Tensor]]()
        mask = torch.tensor([[0] * (most - unread) + [1] * unread for unread in state.unread_B], device=text.mask_BS.device)
        last_BQ = torch.tensor([row.tail(most) if len(row.request.prompt) + len(row.written.tokens) >= most else [0] * (most - 1) + row.tail(1)
                                for row in rows], device=text.mask_BS.device)  # fmt: skip
        text.feed(last_BQ, mask)
        for ahead in range(gamma):
            if ahead:
                text.feed(found[-1][0][:, None])
            logits_BV = self.heads[1].logits(text.hidden_BQD[:, -1])
            q_BV = normed(weights(logits_BV, self.sampling))
            token_B = pick(q_BV, self._uniform_B(rows, ahead, PROPOSED))
            found.append((token_B, q_BV, Logits(logits_BV).log_probs().gather(1, token_B[:, None])[:, 0]))
        ids, q, log_q = zip(*found, strict=True)
        return torch.stack(ids, 1), torch.stack(q, 1), torch.stack(log_q, 1)

    def _verify(self, state: Pair, rows: Sequence[Row], ids_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B, Q, D] and logits [B, Q, V] of the verifier at each proposed token and, where one more follows, after all."""
        read_BG = ids_BG if self.rule.lossless else ids_BG[:, :-1]
        last_B1 = torch.tensor([row.tail(1) for row in rows], device=ids_BG.device)
        state.verifier.feed(torch.cat([last_B1, read_BG], 1))
        hidden_BQD = state.verifier.hidden_BQD
        return hidden_BQD, self.heads[0].logits(hidden_BQD.flatten(0, 1)).unflatten(0, hidden_BQD.shape[:2])

    def _instead(self, rows: Sequence[Row], kept_B: Tensor, p_BQV: Tensor, q_BGV: Tensor) -> Tensor:
        """The token after those that were kept [B]; of no meaning where a whole proposal was kept and the rule has none to follow."""
        place_B, b = kept_B.clamp(max=p_BQV.shape[1] - 1), torch.arange(len(rows), device=kept_B.device)
        gamma = q_BGV.shape[1]
        refused_B = (kept_B < gamma)[:, None]
        p_BV, q_BV = p_BQV[b, place_B], q_BGV[b, kept_B.clamp(max=gamma - 1)]
        weights_BV = torch.where(refused_B, self.rule.instead(p_BV, q_BV), p_BV)
        ahead = kept_B.tolist()
        return pick(weights_BV, torch.tensor([row.uniform(n, INSTEAD) for row, n in zip(rows, ahead, strict=True)], dtype=torch.float64))

    def _forget(self, state: Pair, kept_B: Tensor, gamma: int, verified: int) -> None:
        """Take back what was not kept; note how much the proposer has yet to read."""
        state.verifier.forget((kept_B + 1).clamp(max=verified), verified)
        read_B = kept_B.clamp(max=gamma - 1)
        if gamma > 1:
            state.proposer.forget(read_B, gamma - 1)
        new_B = kept_B + 1 if self.rule.lossless else (kept_B + 1).clamp(max=gamma)
        state.unread_B = (new_B - read_B).tolist()

    def _take(self, row: Row, found: "_Round", b: int, hidden_BQD: Tensor) -> int:
        """Append what a row keeps of a round."""
        tokens, logp, proposed, kept = found.row(b)
        count = row.take(tokens, logp, self.verifier.vocabulary.end_ids)
        row.written.rounds.append(Round(proposed, kept, count))
        if self.scores:
            row.written.hidden.append(hidden_BQD[b, :count].clone())
        return count

    def _alone(self, state: Pair, rows: Sequence[Row]) -> int:
        """One token of the verifier's, where a proposal does not pay or has no room."""
        state.verifier.feed(torch.tensor([row.tail(1) for row in rows], device=state.verifier.mask_BS.device))
        logits_BV = self.heads[0].logits(state.verifier.hidden_BQD[:, -1])
        token_B = pick(weights(logits_BV, self.sampling), self._uniform_B(rows, 0, INSTEAD))
        logp_B = Logits(logits_BV).log_probs().gather(1, token_B[:, None])[:, 0]
        state.unread_B = [unread + 1 for unread in state.unread_B]
        for b, (row, token, logp) in enumerate(zip(rows, token_B.tolist(), logp_B.tolist(), strict=True)):
            row.take([token], [logp], self.verifier.vocabulary.end_ids)
            row.written.rounds.append(Round([], 0, 1))
            if self.scores:
                row.written.hidden.append(state.verifier.hidden_BQD[b, -1:].clone())
        return len(rows)


@dataclass
class _Round:
    """What a round found of all rows."""

    ids_BG: Tensor
    next_B: Tensor
    kept_B: Tensor
    log_q_BG: Tensor
    log_p_BQV: Tensor
    lossless: bool

    def row(self, b: int) -> tuple[list[int], list[float], list[int], int]:
        """The tokens that a row keeps, the nats of each, what was proposed, and how much of that was kept."""
        kept, gamma = int(self.kept_B[b]), self.ids_BG.shape[1]
        proposed = self.ids_BG[b].tolist()
        tokens = [*proposed[:kept], *([int(self.next_B[b])] if self.lossless or kept < gamma else [])]
        log_p = self.log_p_BQV[b, torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        return tokens, log_p if self.lossless else [*self.log_q_BG[b, :kept].tolist(), *log_p[kept:]], proposed, kept


def normed(weights_BV: Tensor) -> Tensor:
    """Weights of sum 1."""
    return weights_BV / weights_BV.sum(-1, keepdim=True)


# When it pays


def expected_tokens(acceptance: float, gamma: float) -> float:
    """Tokens of a lossless round, if each proposed one is accepted with this probability by itself (arXiv 2211.17192, eq. 1)."""
    return gamma + 1.0 if acceptance >= 1 else (1 - acceptance ** (gamma + 1)) / (1 - acceptance)


def speedup(acceptance: float, gamma: float, cost: float, row_cost: float = 0.0) -> float:
    """Times as fast as the verifier alone (theorem 3.8). cost: of a proposed token, row_cost: of each verified place but one, in its steps."""
    return expected_tokens(acceptance, gamma) / (gamma * cost + 1 + row_cost * gamma)


def best_length(acceptance: float, cost: float, row_cost: float = 0.0, most: int = 16) -> int:
    """How many tokens to propose; 0 where none pays."""
    return max(range(most + 1), key=lambda gamma: (speedup(acceptance, gamma, cost, row_cost), -gamma))


class Pace:
    """How many tokens are proposed: `gamma`, or where the costs are known as many as pay best by the acceptance seen, `gamma` at the most.

    What is seen counts as if BELIEVED tokens at an acceptance of BELIEF had been seen before. Once it is 0 it stays so.
    """

    BELIEF, BELIEVED = 0.7, 8

    def __init__(self, gamma: int, cost: float | None = None, row_cost: float = 0.0) -> None:
        if gamma < 0:
            raise RecipeError(f"gamma, how many tokens are proposed, must be at least 0, found {gamma}")
        self.gamma, self.cost, self.row_cost = gamma, cost, row_cost
        self.accepted, self.offered = 0, 0

    @property
    def acceptance(self) -> float:
        """Of the tokens that were verified, those before a refused one's among them, how many were accepted."""
        return (self.accepted + self.BELIEF * self.BELIEVED) / (self.offered + self.BELIEVED)

    @property
    def now(self) -> int:
        """For the next round."""
        return self.gamma if self.cost is None else best_length(self.acceptance, self.cost, self.row_cost, self.gamma)

    def saw(self, kept: Sequence[int], gamma: int) -> None:
        """What a round kept of each row's proposal; what stands behind a refused token was never judged."""
        self.accepted += sum(kept)
        self.offered += sum(min(each + 1, gamma) for each in kept)
