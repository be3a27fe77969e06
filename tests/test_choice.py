"""The pure functions that decide how ops run."""

import pytest
import torch

from sparsekern.ops import TilePlan, choose_linear, plan_tiles

KIB = 1 << 10


def test_all_features_fit_in_shared_memory() -> None:
    plan = plan_tiles((8192, 2048), 67_000, 65536, torch.bfloat16)
    assert plan == TilePlan(panel_cols=2048, panels=1, blocks=2048, shares=1, shared_bytes=(128 + 16) * KIB)


def test_features_are_split_evenly_where_they_do_not_fit() -> None:
    plan = plan_tiles((2048, 8192), 67_000, 65536, torch.bfloat16)
    assert plan == TilePlan(panel_cols=2736, panels=3, blocks=2048, shares=1, shared_bytes=2736 * 64 + 12 * KIB)


def test_few_tokens_share_their_tile() -> None:
    plan = plan_tiles((8192, 2048), 67_000, 256, torch.bfloat16)
    assert (plan.blocks, plan.shares) == (8, 17)  # 136 blocks for 132 multiprocessors


def test_partial_sums_are_bounded() -> None:
    assert plan_tiles((8192, 2048), 67_000, 65536, torch.bfloat16, sampled=True).blocks == 128
    dense = plan_tiles((8192, 2048), 8192 * 2048, 65536, torch.bfloat16, sampled=True)
    assert (dense.blocks, dense.shares) == (4, 32)  # 4 slices of 64 MiB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shared_bytes", [99 * KIB, 163 * KIB, 227 * KIB])
@pytest.mark.parametrize("cols", [0, 1, 2047, 5000, 100_000])
def test_plans_cover_the_problem_and_fit(cols: int, shared_bytes: int, dtype: torch.dtype) -> None:
    for rows in (1, 70, 10_000):
        for tokens in (17, 4096, 10**6):
            plan = plan_tiles((rows, cols), 100, tokens, dtype, shared_bytes=shared_bytes)
            assert plan.shared_bytes <= shared_bytes
            assert plan.panels >= 1
            assert (plan.panels - 1) * plan.panel_cols < max(cols, 1) <= max(plan.panels * plan.panel_cols, 1)
            assert 1 <= plan.shares <= 65535
            assert plan.blocks >= 1


def test_density_decides() -> None:
    for device, break_even in (("cpu", 0.3), ("cuda", 0.02)):
        assert choose_linear((100, 100), int(break_even * 1e4), torch.float32, device).kernel == "csr"
        assert choose_linear((100, 100), int(break_even * 1e4) + 1, torch.float32, device).kernel == "dense"
