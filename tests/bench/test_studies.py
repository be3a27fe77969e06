"""The studies of training, on a corpus and models of toy size: every method runs to its end, and rows make tables."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import corpus, tiny
from torch import nn

import sparsekern as sk
from sparsekern.bench import scale, steps, tables
from sparsekern.bench.rivals import DenseGradients, FrozenAdamW, LazyAdamW, RigLAdamW, SetAdamW
from sparsekern.bench.studies import METHODS, SETTINGS, branch_step, run
from sparsekern.optim import SparseAdamW, param_groups
from sparsekern.optim.topology import active_flat


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with corpus(tmp_path_factory.mktemp("corpus")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsekern.train.plot_losses", lambda folder: None)
        yield folder


@pytest.fixture(scope="module")
def trunk(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that the exact run leaves for the methods that branch off."""
    folder = tmp_path_factory.mktemp("trunk")
    config = tiny(sources, switch_density=0.4, eval_every=100, save_every=100)
    outcome = run(config, METHODS["exact"], folder / "scratch", folder)
    assert outcome.steps_taken == 12
    assert {path.name for path in folder.iterdir()} == {"end-of-anneal.safetensors", "density.safetensors"}
    return folder


@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])
def test_every_method_runs(name: str, sources: Path, trunk: Path, tmp_path: Path) -> None:
    config = tiny(sources, switch_density=0.4, eval_every=100, save_every=100, refresh_every=3, start_factor=2.0)
    method = METHODS[name]
    if method.block is not None:
        config = replace(config, min_alive=0)  # which would need more blocks than there are
    if method.attributes and "update_every" in method.attributes:
        method = replace(method, attributes={**method.attributes, "update_every": 2})
    outcome = run(config, method, tmp_path / "scratch", trunk)
    assert outcome.steps_taken == (12 - branch_step(config, method.branches_at) if method.branches_at else 12)
    assert 1.5 < outcome.held_out < 5.5
    assert not (tmp_path / "scratch").exists()


def test_branches_leave_just_before_the_switch() -> None:
    for config in SETTINGS.values():
        assert branch_step(config, "end-of-anneal") == config.anneal_end * config.steps
        assert 0 < branch_step(config, "density") < branch_step(config, "end-of-anneal")


# ---- rivals


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(sk.nn.SparseLinear(30, 40, density=0.1), nn.GELU(), sk.nn.SparseLinear(40, 5, density=0.2))


def take_steps(net: nn.Module, optimizer: SparseAdamW, count: int) -> None:
    for step in range(count):
        x = torch.randn(16, 30, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x[:, :5].abs()).square().mean().backward()
        optimizer.step()


def test_dense_gradients_are_those_of_dense_layers() -> None:
    net = a_net()
    dense = nn.Sequential(*(m.to_linear() if isinstance(m, sk.nn.SparseLinear) else m for m in net))
    watched = DenseGradients(net)
    x = torch.randn(16, 30)
    for model in (net, dense):
        model(x).square().sum().backward()
    for ours, theirs in zip(net[::2], dense[::2], strict=True):
        torch.testing.assert_close(watched[ours.weight], theirs.weight.grad)


@pytest.mark.parametrize("kind", [FrozenAdamW, SetAdamW, RigLAdamW])
def test_rivals_move_what_they_should(kind: type[FrozenAdamW]) -> None:
    net = a_net()
    optimizer = kind(param_groups(net), 0.05, "sparse", candidates=0.0)
    optimizer.model, optimizer.steps, optimizer.fraction, optimizer.update_every = net, 100, 0.2, 5
    optimizer.to_sparse_()
    weight = net[0].weight
    take_steps(net, optimizer, 1)  # the first of five, after which they move
    before = active_flat(weight)
    take_steps(net, optimizer, 4)
    assert torch.equal(active_flat(weight), before)
    take_steps(net, optimizer, 1)
    after = active_flat(weight)
    new = int((~torch.isin(after, before)).sum())
    assert weight.nnz == len(after) == len(before) == 120
    assert torch.equal(weight.pattern.flat_indices(), after)
    assert (new == 0) if kind is FrozenAdamW else (0 < new <= 0.2 * 120)
    assert (weight.active[~torch.isin(after, before)] == 0).all()


def test_rigl_grows_where_the_gradient_is_largest() -> None:
    net = a_net()
    optimizer = RigLAdamW(param_groups(net), 0.05, "sparse", candidates=0.0)
    optimizer.model, optimizer.steps = net, 100
    optimizer.to_sparse_()
    take_steps(net, optimizer, 1)
    taken = active_flat(net[0].weight)
    grown = optimizer._grow(net[0].weight, taken, 7)
    grad = optimizer.dense[net[0].weight].abs().flatten()
    grad[taken] = 0
    assert grad[grown].min() >= grad.sort(descending=True).values[6]


def test_gradients_off_the_support_are_held() -> None:
    net = a_net()
    optimizer, master = LazyAdamW(param_groups(net), 0.05), net[0].weight.master
    take_steps(net, optimizer, 4)
    support = torch.zeros(master.numel(), dtype=torch.bool)
    support[net[0].weight.pattern.flat_indices()] = True
    first = optimizer._held[net[0].weight]
    used = master.grad  # of the fourth step, at which the gradient of the first still holds
    off = (used == first).flatten()
    assert off[~support].float().mean() > 0.9  # but for what entered the support on the way
    assert not off[support].all()
    take_steps(net, optimizer, 1)
    assert not torch.equal(optimizer._held[net[0].weight], first)


# ---- steps and scale


def test_steps_agree_and_are_timed() -> None:
    size = steps.Size(128, 1 / 16, n_layer=1, vocab=64, context=16, tokens=32)
    names = ["sparse", "sparse, 1 candidate", "exact", "masked dense f32", "masked dense bf16"]
    results = steps.compare(size, names, rounds=1) | steps.compare(replace(size, density=1.0), ["dense"], rounds=1)
    assert list(results) == [*names, "dense"]
    for numbers in results.values():
        assert all(numbers[part] > 0 for part in ("linears", "attention", "abs_topk", "update"))
        assert sum(numbers[part] for part in tables.PARTS[:-1]) == pytest.approx(numbers["total"])
    held = steps.memory(size, names)
    assert 2 * held["sparse, 1 candidate"] < held["exact"]
    assert held["sparse, 1 candidate"] < held["sparse"] < held["exact"]
    assert len(list(steps.exact_along(size, [1.0, 1 / 16]))) == 2


def test_scale_counts() -> None:
    outcome = scale.run(scale.Scale(128, 1, 0.05, tokens=32), np.arange(1000) % 7, steps=6, lr=0.02, refresh_every=3)
    assert outcome.losses[-1] < outcome.losses[0]
    assert outcome.nnz < outcome.active <= 2 * outcome.nnz
    assert outcome.dense_weights == 12 * 128**2 + (512 + 512 + 32) * 128


# ---- tables


def a_row(method: str, seed: int, held_out: float) -> dict[str, str]:
    row = {"study": "parity", "setting": "small", "method": method, "seed": seed, "lr": 0.1, "anneal_end": 0.2}
    return {name: str(value) for name, value in {**row, "held_out": held_out}.items()}


def test_table_against_exact() -> None:
    exact, sparse = (2.0, 3.0, 4.0), (2.02, 3.0, 4.04)  # 1, 0 and 1 % behind
    rows = [a_row("exact", i, v) for i, v in enumerate(exact)] + [a_row("sparse", i, v) for i, v in enumerate(sparse)]
    text = tables.against_exact(rows, "parity")
    half = 4.303 * np.std([1, 0, 1], ddof=1) / 3**0.5
    assert f"| small, rate 0.1, anneal 20% | sparse | 3 | 3.0200 | +0.67 ± {half:.2f} % |" in text
    assert tables.against_exact(rows, "norm").count("\n") == 1


def test_the_whole_run_follows_the_schedule(sources: Path) -> None:
    config = tiny(sources, density=0.01, anneal="geometric", anneal_end=0.5, min_alive=0)
    numbers = {"sparse": (0.01, 1.0), "masked dense f32": (0.01, 20.0), "refresh": (0.01, 6.0)}
    numbers |= {"exact at 1": (1.0, 12.0), "exact at 0.01": (0.01, 2.0)}
    rows = [
        {"study": "speed", "d_model": "64", "what": what, "density": str(density), "total": str(total)}
        for what, (density, total) in numbers.items()
    ]
    seconds = tables.whole_run(rows, config, "speed")
    assert seconds["masked dense"] == 20
    assert seconds["exact"] == pytest.approx(0.5 * (12 + 2) / 2 + 0.5 * 2, rel=0.01)
    assert seconds["sparse"] == pytest.approx(0.5 * (12 + 2) / 2 + 0.5 * (1 + 6 / config.refresh_every), rel=0.01)


def test_the_price_is_against_the_cheapest_dense_model_that_is_as_good(sources: Path) -> None:
    config = tiny(sources, density=0.01, anneal="geometric", anneal_end=0.5, min_alive=0)
    timed = [
        {"study": "price", "d_model": "64", "what": what, "density": str(density), "total": str(total)}
        for what, density, total in (
            ("sparse", 0.01, 1.0),
            ("refresh", 0.01, 0.0),
            ("masked dense f32", 0.01, 20.0),
            ("exact at 1", 1.0, 2.0),
            ("exact at 0.01", 0.01, 2.0),
        )
    ]
    timed += [
        {"study": "price", "d_model": str(width), "what": "dense", "density": "1", "total": str(total)}
        for width, total in ((8, 0.1), (16, 0.3))
    ]
    runs = [a_row("shipped", 0, 3.0), a_row("exact", 0, 2.9)]
    for setting, loss in (
        ("dense, 8 wide, 5 steps", 3.1),
        ("dense, 8 wide, 20 steps", 3.0),
        ("dense, 16 wide, 5 steps", 2),
    ):
        runs.append({**a_row("exact", 0, loss), "study": "cost", "setting": setting})
    text = tables.price(runs, timed, "small", "shipped", config)
    assert "| dense, 16 wide, 5 steps | 2.000 | 2 | 1 |" in text
    assert f"| small, masked dense | 2.900 | {20 * config.steps} | {20 * config.steps / 1.5:.0f} |" in text
    assert tables.price(runs[:2], timed, "small", "shipped", config) == "not yet measured"


def test_scale_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"study": "scale", "d_model": str(width), "nnz": str(nnz), "total": "1.5", "bytes": "1e9"}
        for width, nnz in ((64, 100), (64, 200), (128, 400))
    ]
    tables.plot_scale(rows, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG\r\n")
