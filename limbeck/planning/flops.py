"""What a model's arithmetic is, by its anatomy alone: FLOPs of reading, learning and writing, and the bytes that are moved on the way.

A multiplication and an addition are two FLOPs. B sequences, S tokens of each (padded), N rows that meet the head, V outcomes, D hidden
width, Q numbers of a token's queries in a layer, k of its keys and values together, L layers, P weights of linear layers in the blocks.

    reading    2 P B S + 4 L B S^2 Q      products with weights, and of queries with keys and of attention with values, the whole square
    learning   three times as much        forward, and back to what came in and to the weights
    head       2 N V D, and 6 N V D where it learns
    writing    (2 P + 4 L Q p) R and 2 R V D a token of R rows, of which each remembers p tokens
"""

from math import prod

from limbeck.anatomy import Anatomy, is_linear

ONE_EXPERT = ".experts."
"""What is in the names of weights of which a token meets a few."""


def body_weights(model: Anatomy) -> float:
    """Weights of the blocks' linear layers that one token meets; of experts as many as it is sent to."""
    experts = model.size("num_experts", "num_local_experts", "n_routed_experts")
    share = model.size("num_experts_per_tok") / experts if experts else 1.0

    def met(name: str, shape: tuple[int, ...]) -> float:
        if ONE_EXPERT in name and len(shape) >= 2:
            return share * prod(shape)
        return float(prod(shape)) if is_linear(name, shape) else 0.0

    return sum(met(name, shape) for name, shape in model.shapes.items())


def queries(model: Anatomy) -> int:
    """Numbers of a token's queries in a layer: heads x their size."""
    heads = model.size("num_attention_heads", "n_head") or 1
    return heads * (model.size("head_dim") or model.width // heads)


def read_flops(model: Anatomy, sequences: float, tokens: float) -> float:
    """Of one pass over sequences padded to `tokens`, without the head."""
    weights = 2 * body_weights(model) * sequences * tokens
    return weights + 4 * model.layers * sequences * tokens**2 * queries(model)


def learn_flops(model: Anatomy, sequences: float, tokens: float, adapters: float = 0, again: bool = False) -> float:
    """Of one pass forward and back. adapters: their weights, where the others stand still; again: read once more on the way back."""
    forward = read_flops(model, sequences, tokens)
    if not adapters:
        return (4 if again else 3) * forward
    return (3 if again else 2) * forward + 6 * adapters * sequences * tokens


def head_flops(model: Anatomy, rows: float, learns: bool = False) -> float:
    """Of the last linear map over `rows`, and of its two gradients."""
    return (6 if learns else 2) * rows * model.head_rows * model.width


def write_flops(model: Anatomy, rows: float, tokens: float, past: float) -> float:
    """Of `tokens` new ones of each of `rows`, each of which looks back over `past`, with the head."""
    body = (2 * body_weights(model) + 4 * model.layers * queries(model) * past) * rows * tokens
    return body + head_flops(model, rows * tokens)


def written_bytes(model: Anatomy, rows: float, past: float, width: int) -> float:
    """Moved for one token of each row: all weights once, embeddings as the head alone, and what each row remembers."""
    weights = width * (body_weights(model) + model.head_rows * model.width)
    return weights + width * rows * past * model.layers * model.keys_values
