"""Attention of a few new places over all that is remembered, on a processor: the heads that share keys are asked at once.

Axes: B rows, H query heads, K heads of keys and values, G = H / K that share one, Q new places, S places in memory, D width of a head.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "limbeck_grouped"
MOST = 32
"""New places of a row up to which this is the way; a text's first reading is left to transformers."""


def grouped(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any) -> tuple[Tensor, None]:
    """softmax(scaling q k^T + mask) v of [B, H, Q, D] over [B, K, S, D]: [B, Q, H, D]. The mask is added [B, 1, Q, S].

    G x Q places of K heads in place of Q places of H: transformers does so for one place, and for more copies keys and
    values to all heads, which takes longer than the attention.
    """
    group, places = query.shape[1] // key.shape[1], query.shape[2]
    if group == 1 or places == 1 or attention_mask is None or attention_mask.shape[1] != 1 or given.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    found = scaled_dot_product_attention(
        query.reshape(query.shape[0], key.shape[1], group * places, query.shape[3]), key, value, attention_mask.repeat(1, 1, group, 1),
        dropout_p=given.get("dropout", 0.0), scale=given.get("scaling"),
    )  # fmt: skip
    return found.unflatten(2, (group, places)).flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def few_places(causal: Any, places: int) -> Generator[None]:
    """For as long as the block lasts a model of torch's fused attention asks in this way, on a processor."""
    config = causal.config.get_text_config()
    usable = config._attn_implementation == "sdpa" and causal._supports_attention_backend and next(causal.parameters()).device.type == "cpu"
    if places > MOST or not usable:
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"  # not what stood there: another thread may write with the same configuration
