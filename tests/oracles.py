"""Every divergence again, slowly: plain float64 numpy, from the formula in its docstring and a gradient derived by hand.

Axes: C rows, V outcomes, K kept ones. Each takes the teacher's logits z [C, V], the student's s [C, V] and a temperature T,
and gives nats [C] and their gradient on s [C, V]. With p = softmax(z / T), q = softmax(s / T), and `value`, `slope` those of
p and q at T = 1, the result is `T^2 value` and `T slope`: d/ds of T^2 D(s / T) is T^2 D' / T. Total variation takes `T` and 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Answer = tuple[Array, Array]
Oracle = Callable[..., Answer]


def log_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """`log softmax(x / T)` in float64, or wider where it is given wider."""
    x = np.asarray(logits, dtype=np.promote_types(np.asarray(logits).dtype, np.float64)) / temperature
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def total(x: Array) -> Array:
    return x.sum(-1, keepdims=True)


def tempered(formula: Callable[..., Answer], order: int = 2) -> Oracle:
    """Soften both sides, and give value and gradient their size back."""

    def oracle(z: Array, s: Array, temperature: float = 1.0, **settings: float) -> Answer:
        value, slope = formula(log_softmax(z, temperature), log_softmax(s, temperature), **settings)
        return temperature**order * value, temperature ** (order - 1) * slope

    oracle.__doc__ = formula.__doc__
    return oracle


def _forward_kl(lp: Array, lq: Array) -> Answer:
    """`sum p log(p / q)`; gradient `q - p`."""
    return (np.exp(lp) * (lp - lq)).sum(-1), np.exp(lq) - np.exp(lp)


def _reverse_kl(lp: Array, lq: Array) -> Answer:
    """`sum q log(q / p)`; gradient `q (log(q / p) - KL)`."""
    kl = total(np.exp(lq) * (lq - lp))
    return kl[..., 0], np.exp(lq) * (lq - lp - kl)


def _jeffreys(lp: Array, lq: Array) -> Answer:
    """`(KL(p || q) + KL(q || p)) / 2`."""
    (forward, down), (reverse, up) = _forward_kl(lp, lq), _reverse_kl(lp, lq)
    return (forward + reverse) / 2, (down + up) / 2


def _jsd(lp: Array, lq: Array, beta: float = 0.5, normalized: bool = False) -> Answer:
    """`b KL(p || m) + (1 - b) KL(q || m)`, `m = b p + (1 - b) q`; gradient `(1 - b) q (log(q / m) - KL(q || m))`."""
    lm = np.logaddexp(lp + np.log(beta), lq + np.log(1 - beta))
    to_m = total(np.exp(lq) * (lq - lm))
    share = 1 / (beta * (1 - beta)) if normalized else 1.0
    value = beta * (np.exp(lp) * (lp - lm)).sum(-1) + (1 - beta) * to_m[..., 0]
    return share * value, share * (1 - beta) * np.exp(lq) * (lq - lm - to_m)


def _skew_kl(lp: Array, lq: Array, skew: float = 0.1) -> Answer:
    """`sum p log(p / m)`, `m = a p + (1 - a) q`; gradient `(1 - a) q (sum q p / m - p / m)`."""
    lm = np.logaddexp(lp + np.log(skew), lq + np.log(1 - skew))
    ratio = np.exp(lp - lm)
    return (np.exp(lp) * (lp - lm)).sum(-1), (1 - skew) * np.exp(lq) * (total(np.exp(lq) * ratio) - ratio)


def _skew_reverse_kl(lp: Array, lq: Array, skew: float = 0.1) -> Answer:
    """`sum q log(q / m)`, `m = (1 - a) p + a q`; gradient `q (h - sum q h)`, `h = log(q / m) - a q / m`."""
    lm = np.logaddexp(lp + np.log(1 - skew), lq + np.log(skew))
    h = lq - lm - skew * np.exp(lq - lm)
    return (np.exp(lq) * (lq - lm)).sum(-1), np.exp(lq) * (h - total(np.exp(lq) * h))


def _total_variation(lp: Array, lq: Array) -> Answer:
    """`sum |p - q| / 2`; gradient `q (sign(q - p) - sum q sign(q - p)) / 2`."""
    p, q = np.exp(lp), np.exp(lq)
    return abs(p - q).sum(-1) / 2, q * (np.sign(q - p) - total(q * np.sign(q - p))) / 2


def _alpha(lp: Array, lq: Array, alpha: float = 0.5) -> Answer:
    """`(1 - sum p^a q^(1 - a)) / (a (1 - a))`; gradient `(q sum p^a q^(1 - a) - p^a q^(1 - a)) / a`."""
    both = np.exp(alpha * lp + (1 - alpha) * lq)
    return (1 - both.sum(-1)) / (alpha * (1 - alpha)), (np.exp(lq) * total(both) - both) / alpha


forward_kl = tempered(_forward_kl)
reverse_kl = tempered(_reverse_kl)
jeffreys = tempered(_jeffreys)
jsd = tempered(_jsd)
skew_kl = tempered(_skew_kl)
skew_reverse_kl = tempered(_skew_reverse_kl)
total_variation = tempered(_total_variation, order=1)
alpha_divergence = tempered(_alpha)


def log_sum_exp(x: Array) -> Array:
    """`log sum exp x` of one row; -inf where nothing is summed."""
    if len(x) == 0:
        return np.array(-np.inf)
    return x.max() + np.log(np.exp(x - x.max()).sum())


def forward_kl_top_k(z: Array, s: Array, temperature: float = 1.0, *, ids: NDArray[np.int64]) -> Answer:
    """`sum_K p log(p / q) + t log(t / u)`, t and u the masses of all others; gradient `q - p` on K, `q - t q / u` off K.

    The others are summed themselves, row by row, so that neither t nor u is ever one less something.
    """
    lp, lq = log_softmax(z, temperature), log_softmax(s, temperature)
    values, slopes = np.zeros(len(lp), dtype=lp.dtype), np.exp(lq) - np.exp(lp)
    for c, kept in enumerate(ids):
        rest = np.delete(np.arange(lp.shape[-1]), kept)
        lt, lu = log_sum_exp(lp[c, rest]), log_sum_exp(lq[c, rest])
        values[c] = (np.exp(lp[c, kept]) * (lp[c, kept] - lq[c, kept])).sum()
        if len(rest):
            values[c] += np.exp(lt) * (lt - lu)
            slopes[c, rest] = np.exp(lq[c, rest]) - np.exp(lt + lq[c, rest] - lu)
    return temperature**2 * values, temperature * slopes


def cross_entropy(tokens: NDArray[np.int64], s: Array) -> Answer:
    """`-log q(token)`; gradient `q - onehot`."""
    lq, rows = log_softmax(s), np.arange(len(tokens))
    slope = np.exp(lq)
    slope[rows, tokens] -= 1
    return -lq[rows, tokens], slope


def sampled_reverse_kl(tokens: NDArray[np.int64], z: Array, s: Array) -> Answer:
    """`log q(y) - log p(y)`; gradient of `c log q(y)`, c that number held: `c (onehot - q)`."""
    lp, lq, rows = log_softmax(z), log_softmax(s), np.arange(len(tokens))
    c = lq[rows, tokens] - lp[rows, tokens]
    slope = -c[:, None] * np.exp(lq)
    slope[rows, tokens] += c
    return c, slope


def guided(z: Array, u: Array, scale: float) -> Array:
    """Log-probabilities of guidance: `log p(y|x,c) + (w - 1) [log p(y|x,c) - log p(y|x)]`, renormalised; z with the prompt, u without."""
    lp, lu = log_softmax(z), log_softmax(u)
    return log_softmax(lp + (scale - 1) * (lp - lu))


def importance(tokens: NDArray[np.int64], s: Array, then: Array, most: float) -> Array:
    """`min(most, q(y) / q_then(y))`, q_then given as log-probabilities of the tokens."""
    return np.minimum(most, np.exp(log_softmax(s)[np.arange(len(tokens)), tokens] - then))


def gradient_distance(real: list[Array], made: list[Array]) -> float:
    """Gradient matching, arXiv 2006.05929, eq. 9: over layers with a matrix, over its outputs i, `1 - cos(A_i, B_i)`.

    1 where one of them is 0, 0 where both are.
    """
    found = 0.0
    for a, b in zip(real, made, strict=True):
        for i in range(len(a)) if a.ndim > 1 else ():
            left, right = np.float64(a[i]).ravel(), np.float64(b[i]).ravel()
            sizes = np.sqrt((left**2).sum()) * np.sqrt((right**2).sum())
            found += 1 - (left @ right) / sizes if sizes else float(left.any() or right.any())
    return found


def softmax_regression(x: Array, y: NDArray[np.int64], w: Array, b: Array) -> tuple[Array, Array]:
    """Gradients on w [C, F] and b [C] of the mean cross-entropy of `w x + b`: `mean (q - onehot) x'` and `mean (q - onehot)`."""
    slope = np.exp(log_softmax(np.float64(x) @ np.float64(w).T + b))
    slope[np.arange(len(y)), y] -= 1
    return slope.T @ np.float64(x) / len(y), slope.mean(0)


def trajectory_distance(start: tuple[Array, Array], goal: tuple[Array, Array], batches: list[tuple[Array, NDArray[np.int64]]], rate: float) -> float:
    """Trajectory matching, arXiv 2203.11932, eq. 2, for softmax regression: steps from `start`, then `|reached - goal|^2 / |start - goal|^2`."""
    w, b = (np.float64(each) for each in start)
    for x, y in batches:
        to_w, to_b = softmax_regression(x, y, w, b)
        w, b = w - rate * to_w, b - rate * to_b
    squared = [((one - other) ** 2).sum() for one, other in zip((w, b, *start), (*goal, *goal), strict=True)]
    return (squared[0] + squared[1]) / (squared[2] + squared[3])


def distribution_distance(real: Array, made: Array) -> float:
    """Distribution matching, arXiv 2110.04181, eq. 4: the squared distance of two means of embeddings."""
    return sum((float(real[:, e].mean()) - float(made[:, e].mean())) ** 2 for e in range(real.shape[1]))


def herded(vectors: Array, tokens: NDArray[np.int64], count: int) -> tuple[list[int], list[float]]:
    """Greedy: the row that, added to those chosen, brings `sum vectors / sum tokens` nearest to that of all; row by row, and how near."""
    mean, chosen, distances = vectors.sum(0) / tokens.sum(), list[int](), list[float]()
    for _ in range(count):
        left = [row for row in range(len(vectors)) if row not in chosen and tokens[row]]
        away = [np.sqrt(((vectors[[*chosen, row]].sum(0) / tokens[[*chosen, row]].sum() - mean) ** 2).sum()) for row in left]
        chosen.append(left[int(np.argmin(away))])
        distances.append(float(min(away)))
    return chosen, distances


def head_gradients(hidden: Array, logits: Array, tokens: NDArray[np.int64]) -> Array:
    """The gradient of the sum of the tokens' cross-entropies on a plain head [V, D]: `sum (q - onehot) hidden'`."""
    return cross_entropy(tokens, logits)[1].T @ np.float64(hidden)


def states_mse(h: Array, t: Array, w: Array | None = None) -> tuple[Array, Array, Array | None]:
    """`mean_D (h W' - t)^2` of each row, its gradient on h, and that of the sum over rows on W [teacher's width, student's]."""
    apart = (h if w is None else h @ w.T) - t
    slope = 2 * apart / t.shape[-1]
    return (apart**2).sum(-1) / t.shape[-1], slope if w is None else slope @ w, None if w is None else slope.T @ h


def states_cosine(h: Array, t: Array, w: Array | None = None) -> tuple[Array, Array, Array | None]:
    """`1 - h W' t / (|h W'| |t|)` of each row, and the same gradients."""
    x = h if w is None else h @ w.T
    size, other = np.sqrt(total(x * x)), np.sqrt(total(t * t))
    cosine = total(x * t) / (size * other)
    slope = cosine * x / size**2 - t / (size * other)
    return 1 - cosine[:, 0], slope if w is None else slope @ w, None if w is None else slope.T @ h


def attention_row(query: Array, key: Array, scale: float, window: int | None = None, cap: float | None = None) -> Array:
    """How heads look back from the last of K tokens: query [H, d], key [G, K, d], each for H / G heads in turn; gives [H, K]."""
    heads, groups, keys = len(query), len(key), key.shape[1]
    row = np.zeros((heads, keys))
    for h in range(heads):
        seen = range(0 if window is None else max(0, keys - window), keys)
        score = np.array([scale * (query[h] * key[h * groups // heads, k]).sum() for k in seen])
        score = score if cap is None else cap * np.tanh(score / cap)
        row[h, list(seen)] = np.exp(log_softmax(score))
    return row


def attention_kl(theirs: Array, mine: Array) -> float:
    """`sum_K p log(p / q)`, the mean over heads; where their numbers differ, of the means over heads."""
    p, q = (theirs, mine) if len(theirs) == len(mine) else (theirs.mean(0)[None], mine.mean(0)[None])
    return float(np.mean([sum(a * np.log(a / b) for a, b in zip(*rows, strict=True) if a > 0) for rows in zip(p, q, strict=True)]))


def attention_mse(theirs: Array, mine: Array) -> float:
    """`mean_K (p - q)^2`, the mean over heads; where their numbers differ, of the means over heads."""
    p, q = (theirs, mine) if len(theirs) == len(mine) else (theirs.mean(0)[None], mine.mean(0)[None])
    return float(((p - q) ** 2).mean())


def binary(a: Array, b: Array, temperature: float) -> Answer:
    """`T KL` of (P, 1 - P) against (Q, 1 - Q), `P = exp(a / T)`, `Q = exp(b / T)`, and its derivative on b, `(Q - P) / (1 - Q)`."""
    big_p, big_q = np.exp(np.longdouble(a) / temperature), np.exp(np.longdouble(b) / temperature)
    not_p, not_q = -np.expm1(np.longdouble(a) / temperature), -np.expm1(np.longdouble(b) / temperature)
    value = big_p * np.log(big_p / big_q) + not_p * np.log(not_p / not_q)
    return (temperature * value).astype(np.float64), ((big_q - big_p) / not_q).astype(np.float64)


def span_likelihood_of(s: Array, tokens: NDArray[np.int64], log_p: Array, temperature: float) -> Answer:
    """Of spans of one token each, their log-probabilities given: nats [N] and their gradient on s [N, V]."""
    wide = s.astype(np.longdouble)
    q = np.exp(wide - wide.max(-1, keepdims=True))
    rows = np.arange(len(s))
    rest = (q.sum(-1) - q[rows, tokens]) / q.sum(-1)
    value, slope = binary(log_p, np.log1p(-rest), temperature)
    gradient = -slope[:, None] * (q / q.sum(-1, keepdims=True))
    gradient[rows, tokens] = slope * rest
    return value, gradient.astype(np.float64)


def span_likelihood(
    s: Array, tokens: NDArray[np.int64], z: Array, theirs: NDArray[np.int64], mine_bytes: list[int], their_bytes: list[int], temperature: float
) -> Answer:
    """ALM of two cuts of the same bytes, from their boundaries: nats at the token that ends each span, gradient on s."""
    lq, lp = log_softmax(s)[np.arange(len(s)), tokens], log_softmax(z)[np.arange(len(z)), theirs]
    after, theirs_after = np.cumsum(mine_bytes), np.cumsum(their_bytes)
    both = sorted(set(after.tolist()) & set(theirs_after.tolist()))
    values, slopes, start = np.zeros(len(s)), np.zeros_like(s), 0
    for stop in both:
        inside = np.flatnonzero((after > start) & (after <= stop))
        value, slope = binary(lp[(theirs_after > start) & (theirs_after <= stop)].sum(), lq[inside].sum(), temperature)
        values[inside[-1]] = value
        for n in inside:
            slopes[n] = -slope * np.exp(log_softmax(s)[n])
            slopes[n, tokens[n]] += slope
        start = stop
    return values, slopes


def _downwards(x: Array, size: int) -> tuple[Array, NDArray[np.int64]]:
    order = np.argsort(-x, axis=-1, kind="stable")
    return np.pad(np.take_along_axis(x, order, -1), ((0, 0), (0, size - x.shape[-1]))), order


def _sorted_distance(p: Array, q: Array) -> Answer:
    """`sum |p_(i) - q_(i)|` and its slope on the log of each q."""
    size = max(p.shape[-1], q.shape[-1])
    (p_down, _), (q_down, order) = _downwards(p, size), _downwards(q, size)
    slope = np.zeros_like(q)
    np.put_along_axis(slope, order, (np.sign(q_down - p_down) * q_down)[:, : q.shape[-1]], -1)
    return abs(p_down - q_down).sum(-1), slope


def _on_logits(slope: Array, q: Array) -> Array:
    return slope - q * total(slope)


def uld(z: Array, s: Array) -> Answer:
    """L1 of sorted probabilities, the shorter padded with zeros."""
    p, q = np.exp(log_softmax(z)), np.exp(log_softmax(s))
    value, slope = _sorted_distance(p, q)
    return value, _on_logits(slope, q)


def gold(z: Array, s: Array, mine: NDArray[np.int64], theirs: NDArray[np.int64], kind: str, common: float = 1.0, rest: float = 1.0) -> Answer:
    """A divergence of the two measures on common tokens, and ULD on the others."""
    lp, lq = log_softmax(z)[:, theirs], log_softmax(s)[:, mine]
    p, q, whole = np.exp(lp), np.exp(lq), np.exp(log_softmax(s))
    m = (p + q) / 2
    value, slope = {
        "jsd": ((p * np.log(p / m) + q * np.log(q / m)).sum(-1) / 2, q * np.log(q / m) / 2),
        "variation": (abs(p - q).sum(-1) / 2, q * np.sign(q - p) / 2),
        "forward": ((p * (lp - lq) - p + q).sum(-1), q - p),
        "reverse": ((q * (lq - lp) - q + p).sum(-1), q * (lq - lp)),
    }[kind]
    left, right = np.delete(np.arange(s.shape[-1]), mine), np.delete(np.arange(z.shape[-1]), theirs)
    distance, slope_rest = _sorted_distance(np.exp(log_softmax(z))[:, right], whole[:, left])
    slopes = np.zeros_like(whole)
    slopes[:, mine], slopes[:, left] = common * slope, rest * slope_rest
    return common * value + rest * distance, _on_logits(slopes, whole)
