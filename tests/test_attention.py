"""A few new places over what is remembered: the value of plain attention, and nothing left changed behind."""

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.attention import MOST, NAME, grouped


def plainly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen_BQS: torch.Tensor) -> np.ndarray:
    """Head by head, softmax(q k / sqrt(D)) v over the places that are seen, in float64: [B, Q, H, D]."""
    q, k, v, seen = (each.double().numpy() for each in (query, key, value, seen_BQS))
    group = q.shape[1] // k.shape[1]
    found = np.zeros((q.shape[0], q.shape[2], q.shape[1], q.shape[3]))
    for b, h, n in np.ndindex(q.shape[:3]):
        scores = np.where(seen[b, n] > 0, k[b, h // group] @ q[b, h, n] / np.sqrt(q.shape[3]), -np.inf)
        weights = np.exp(scores - scores.max())
        found[b, n, h] = weights / weights.sum() @ v[b, h // group]
    return found


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 3), shared=st.integers(1, 3), group=st.integers(1, 4), places=st.integers(1, 5), past=st.integers(0, 9),
       seed=st.integers(0, 999))  # fmt: skip
def test_it_is_attention(rows: int, shared: int, group: int, places: int, past: int, seed: int) -> None:
    torch.manual_seed(seed)
    query = torch.randn(rows, shared * group, places, 8, dtype=torch.float64)
    key, value = torch.randn(2, rows, shared, past + places, 8, dtype=torch.float64)
    seen = (torch.arange(past + places) <= past + torch.arange(places)[:, None]).expand(rows, -1, -1).clone()
    seen[:, :, :past] &= torch.rand(rows, 1, past) > 0.4
    mask = torch.zeros(rows, 1, places, past + places, dtype=torch.float64).masked_fill(~seen[:, None], torch.finfo(torch.float64).min)
    module = torch.nn.Module()
    module.num_key_value_groups = group
    found, _ = grouped(module, query, key, value, mask, scaling=8**-0.5)
    np.testing.assert_allclose(found.numpy(), plainly(query, key, value, seen), atol=1e-12)


@pytest.mark.parametrize("places", [1, 3, MOST, MOST + 1])
def test_a_model_is_asked_so_only_while_it_is_fed_few_places(places: int, tmp_path) -> None:
    model = toys.opened(tmp_path)
    names, config = list[str](), model.causal.config
    layer = model.causal.get_decoder().layers[0].self_attn
    layer.register_forward_pre_hook(lambda *given: names.append(config._attn_implementation))
    text = model.begin([[5, 6, 7]])
    names.clear()
    text.feed(torch.full((1, places), 9))
    assert names == [NAME if places <= MOST else "sdpa"]
    assert config._attn_implementation == "sdpa"
    whole = model.begin([[5, 6, 7, *[9] * places]])
    assert torch.allclose(text.hidden_BQD[:, -1], whole.hidden_BQD[:, -1], atol=1e-5)
