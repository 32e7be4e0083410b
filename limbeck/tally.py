"""What the passes of a step came to."""

from limbeck import distributed
from limbeck.batch import Batch
from limbeck.lazy import Tensor
from limbeck.objective import Objective, counted


class Tally:
    """Sums of nats and counts of rows, by term: summed first, divided once."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums = {term.name: 0.0 for term in objective.terms}
        self.rows = {term.name: 0.0 for term in objective.terms}
        self.tokens = 0.0

    def add(self, nats: dict[str, Tensor], batch: Batch) -> None:
        """Count one pass: nats [N] by term."""
        self.tokens += len(batch.places_N)
        for term in self.objective.terms:
            rows_N = counted(term, batch).double()
            self.sums[term.name] += float(nats[term.name].double() @ rows_N)
            self.rows[term.name] += float(rows_N.sum())

    def figures(self) -> dict[str, float]:
        """Mean nats by term, the objective's value and the count of tokens, over all ranks."""
        names = list(self.sums)
        totals = distributed.sum_over_ranks([self.tokens, *(self.sums[n] for n in names), *(self.rows[n] for n in names)])
        tokens, sums, rows = totals[0], totals[1 : 1 + len(names)], totals[1 + len(names) :]
        loss = sum(term.weight * total for term, total in zip(self.objective.terms, sums, strict=True)) / max(1.0, tokens)
        found = zip(self.objective.terms, sums, rows, strict=True)
        means = {f"{term.unit}/{term.name}": total / count for term, total, count in found if count}
        return {"loss_nats": loss, **means, "tokens": int(tokens)}
