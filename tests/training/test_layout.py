"""One flat row per client: every trained number has one place, and views share its memory."""

from __future__ import annotations

import pytest
import torch

from cases import CASES, Case, draw
from fedlora.training.layout import Layout

HEAD = {"classifier.weight": (3, 4), "classifier.bias": (3,)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_views_cover_the_row_and_share_its_memory(case: Case) -> None:
    adapters = [case.make("tall", index=0), case.make("conv1d", index=1)]
    layout = Layout(adapters, HEAD)
    sites = [draw(adapter.param_shapes, index, dtype=torch.float32) for index, adapter in enumerate(adapters)]
    head = draw(HEAD, 9, dtype=torch.float32)
    row = layout.row(sites, head)
    assert row.shape == (layout.size,) == (sum(adapter.trainable for adapter in adapters) + 15,)
    rows = torch.stack([row, 2 * row])
    found, found_head = layout.views(rows)
    for own, views in zip([*sites, head], [*found, found_head], strict=True):
        assert own.keys() == views.keys()
        for name, tensor in own.items():
            assert torch.equal(views[name][0], tensor) and torch.equal(views[name][1], 2 * tensor)
            views[name].zero_()
    assert not rows.any()


def test_the_head_comes_last() -> None:
    adapter = CASES[0].make()
    layout = Layout([adapter], HEAD)
    assert layout.head_start == adapter.trainable and layout.size == adapter.trainable + 15
    assert Layout([adapter], {}).head_start == Layout([adapter], {}).size == adapter.trainable
    assert Layout([], {}).size == 0 and Layout([], {}).row([], {}).shape == (0,)
