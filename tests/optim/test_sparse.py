"""Sparse mode: against exact mode where every position is active, and what it promises where few are."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import gpu_backends
from test_exact import CONFIG, DENSITY, FLOOR, STEPS, batches, make_model, schedule, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import sparsekern as sk
from sparsekern.bench.rivals import OracleAdamW
from sparsekern.models import GPT
from sparsekern.nn import SparseWeight
from sparsekern.optim import SparseAdamW, param_groups
from sparsekern.optim.topology import active_flat, draw_candidates
from sparsekern.train import set_budgets

EVERYTHING = {"candidates": math.inf, "refresh_every": 1, "candidate_beta1": 0.9}


def weights_of(model: GPT) -> dict[str, SparseWeight]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseWeight)}


# ---- everything active: the published rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_equals_exact_mode_bit_for_bit(dtype: torch.dtype) -> None:
    """The same gradients given to both, for 50 steps of falling budgets."""
    exact, sparse = make_model().to(dtype), make_model().to(dtype)
    optimizers = [
        SparseAdamW(param_groups(exact), lr=0.1),
        SparseAdamW(param_groups(sparse), 0.1, "sparse", **EVERYTHING),
    ]
    generator = torch.Generator().manual_seed(2)
    pairs = list(zip(weights_of(exact).values(), weights_of(sparse).values(), strict=True))
    for step in range(STEPS):
        density, lr = schedule(step)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
        for ours, theirs in pairs:
            grad = torch.randn(ours.shape, dtype=dtype, generator=generator)
            ours.master.grad, theirs.active.grad = grad, grad.flatten()
        for p, q in zip(exact.parameters(), sparse.parameters(), strict=True):
            if p.grad is None:
                p.grad = q.grad = torch.randn(p.shape, dtype=dtype, generator=generator)
        for model in (exact, sparse):
            set_budgets(list(weights_of(model).values()), density)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(*(optimizer.gradient_rms for optimizer in optimizers))
        for ours, theirs in pairs:
            assert torch.equal(ours.master, theirs.to_dense())
            assert torch.equal(ours.col_indices, theirs.col_indices)
            for name in ("exp_avg", "exp_avg_sq"):
                states = optimizers[0].state[ours.master], optimizers[1].state[theirs.active]
                assert torch.equal(states[0][name].flatten(), states[1][name])
        for p, q in zip(exact.parameters(), sparse.parameters(), strict=True):
            assert torch.equal(p.flatten(), q.flatten())
            p.grad = q.grad = None


@pytest.mark.parametrize("backend", ["default", *gpu_backends()], indirect=True)
def test_equals_exact_mode_end_to_end(backend: str) -> None:
    data = list(batches(10 if backend == "emulated" else STEPS))
    exact, sparse = make_model(), make_model()
    expected = train(exact, SparseAdamW(param_groups(exact), lr=0.1), data)
    losses = train(sparse, SparseAdamW(param_groups(sparse), 0.1, "sparse", **EVERYTHING), data)
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-9
    for (name, ours), theirs in zip(weights_of(exact).items(), weights_of(sparse).values(), strict=True):
        assert torch.equal(ours.crow_indices, theirs.crow_indices), name
        assert torch.equal(ours.col_indices, theirs.col_indices), name
        assert len(theirs.active) == theirs.shape[0] * theirs.shape[1]


# ---- few active


def sparse_model(density: float = DENSITY) -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG, density=density, floor=FLOOR).double()


def sparse_optimizer(model: GPT, **settings: Any) -> SparseAdamW:
    return SparseAdamW(param_groups(model), 0.1, "sparse", **{"refresh_every": 7, "candidates": 1.0, **settings})


def assert_sound(weight: SparseWeight, name: str) -> None:
    """Support and candidates are what the documentation says."""
    flat = active_flat(weight)
    assert (flat.diff() > 0).all(), name
    assert torch.equal(flat[weight.slots.long()], weight.pattern.flat_indices()), name
    assert torch.equal(weight.in_support.nonzero().flatten(), weight.slots.long()), name
    assert (weight.active[~weight.in_support] == 0).all(), name
    weight.csr.validate()
    if weight.floor:
        rows, cols = weight.pattern.flat_indices() // weight.shape[1], weight.col_indices.long()
        counts = torch.bincount((rows, cols)[weight.axis], minlength=weight.shape[weight.axis])
        assert counts.min() >= weight.floor, name


def test_lengths_move_at_refreshes_only_and_floors_hold() -> None:
    model = sparse_model(density=0.3)
    optimizer = sparse_optimizer(model)
    shapes: list[dict[str, tuple[int, int]]] = []
    held: list[dict[str, Tensor]] = []
    for step, batch in enumerate(batches(30)):
        set_budgets(list(weights_of(model).values()), max(DENSITY, 0.3 * 0.9**step))
        train(model, optimizer, [batch], budgets=False)
        for name, weight in weights_of(model).items():
            assert_sound(weight, name)
            if step % 7 == 0:
                assert weight.nnz == weight.budget
        shapes.append({name: (w.nnz, len(w.active)) for name, w in weights_of(model).items()})
        held.append({name: active_flat(w) for name, w in weights_of(model).items()})
    for step in range(1, 30):
        pairs = [(held[step][name], before) for name, before in held[step - 1].items()]
        changed = any(now.shape != before.shape or not torch.equal(now, before) for now, before in pairs)
        assert changed == (step % 7 == 0)
        if step % 7:
            assert shapes[step] == shapes[step - 1]
    ends = weights_of(model)["blocks.0.mlp.c_fc.weight"]
    assert 1.5 * ends.nnz < len(ends.active) <= 2 * ends.nnz


def test_a_refresh_keeps_the_support_and_the_fastest_candidates() -> None:
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    data = list(batches(8))
    train(model, optimizer, data[:7], budgets=False)
    weight = weights_of(model)["blocks.0.attn.c_attn.weight"]
    state = optimizer.state[weight.active]
    before = {"flat": active_flat(weight), "avg": state["exp_avg"].clone()}
    candidates = before["flat"][~weight.in_support]
    train(model, optimizer, data[7:], budgets=False)
    flat, state = active_flat(weight), optimizer.state[weight.active]
    stayed = state["joined"] < 8  # what was dropped may have been drawn again
    assert torch.isin(weight.pattern.flat_indices(), flat).all()
    assert (state["joined"][~stayed] == 8).all()
    assert torch.isin(flat[stayed], before["flat"]).all()
    assert (state["exp_avg"][~stayed] == 0).all()
    assert (state["norm_weight"][stayed] == 1).all()
    assert (state["norm_weight"][~stayed] > 0).all()
    kept = torch.isin(candidates, flat[stayed])
    assert 0.4 < kept.double().mean() < 0.6
    assert len(flat) > 1.8 * weight.nnz


def test_observes_on_refresh_steps_only() -> None:
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    for step, batch in enumerate(batches(16)):
        watching = [w.observed is not None for w in weights_of(model).values()]
        assert all(watching) if step % 7 == 0 else not any(watching)
        train(model, optimizer, [batch], budgets=False)


def activity(weight: SparseWeight, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(size, generator=generator).square() for size in weight.shape)  # type: ignore[return-value]


@pytest.mark.parametrize(("floor", "axis"), [(0, None), (1, 0), (1, 1)])
def test_draws_estimate_the_norm_without_bias(floor: int, axis: int | None) -> None:
    """The sum of squares of a fixed gradient off the active positions, from many draws; also where a side is idle."""
    weight = SparseWeight(sk.CSR.random(30, 50, nnz=200), floor=floor, axis=axis)
    rows, cols = activity(weight)
    cols[:20] = 0
    grad = torch.randn(30, 50, dtype=torch.float64) * rows.unsqueeze(1) * cols + 0.01
    taken = weight.pattern.flat_indices()
    off = grad.flatten().clone()
    off[taken] = 0
    estimates = []
    for seed in range(400):
        new = draw_candidates(weight, rows, cols, taken, 100, torch.Generator().manual_seed(seed))
        assert (new.flat.diff() > 0).all()
        assert not torch.isin(new.flat, taken).any()
        assert len(new.flat) <= 100
        estimates.append(float((new.weight * off[new.flat]).square().sum()))
    mean, error = sum(estimates) / 400, torch.tensor(estimates).std().item() / 20
    assert abs(mean - float(off.square().sum())) < 4 * error
    assert error < 0.05 * mean


def test_draws_follow_the_activity() -> None:
    weight = SparseWeight(sk.CSR.random(100, 100, nnz=0))
    rows, cols = torch.ones(100), torch.ones(100)
    rows[:10] = 9  # half of the activity
    nothing = torch.empty(0, dtype=torch.int64)
    draws = [draw_candidates(weight, rows, cols, nothing, 200, torch.Generator().manual_seed(s)) for s in range(50)]
    drawn = torch.cat([draw.flat for draw in draws])
    share = (drawn < 1000).double().mean().item()
    assert share == pytest.approx(0.9 * 0.5 + 0.1 * 0.1, abs=0.03)


def test_the_norm_is_near_the_true_one() -> None:
    """In training, against the dense gradient of the same model."""
    ratios = []

    class Both(OracleAdamW):
        def _gradient_rms(self) -> Tensor:
            true = super()._gradient_rms()
            ratios.append(float(SparseAdamW._gradient_rms(self) / true))
            return true

    torch.manual_seed(0)
    net = nn.Sequential(
        sk.nn.SparseLinear(200, 300, density=0.02), nn.GELU(), sk.nn.SparseLinear(300, 10, density=0.05)
    )
    optimizer = Both(param_groups(net), 0.05, "sparse", refresh_every=7)
    optimizer.model = net
    optimizer.to_sparse_()  # watches the dense gradients
    for step in range(60):
        x = torch.randn(64, 200, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x[:, :10].abs()).square().mean().backward()
        optimizer.step()
    after_the_first_draw = torch.tensor(ratios[1:])
    assert 0.9 < after_the_first_draw.mean() < 1.1
    assert 0.5 < after_the_first_draw.min() <= after_the_first_draw.max() < 2


# ---- from exact to sparse


def test_to_sparse_keeps_weights_and_moments() -> None:
    model = make_model()
    optimizer = SparseAdamW(param_groups(model), lr=0.1, candidates=1.0, refresh_every=7)
    data = list(batches(STEPS))
    train(model, optimizer, data[:40])  # to the end of the anneal
    before = {name: w.to_dense().detach().clone() for name, w in weights_of(model).items()}
    moments = {
        name: {k: t.clone() for k, t in optimizer.state[w.master].items()} for name, w in weights_of(model).items()
    }
    norm = optimizer.gradient_rms.item()
    assert optimizer.mode == "exact"
    optimizer.to_sparse_()
    assert optimizer.mode == "sparse"
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in groups} == {id(p) for p in model.parameters()}
    for name, weight in weights_of(model).items():
        assert_sound(weight, name)
        assert torch.equal(weight.to_dense(), before[name])
        state, flat = optimizer.state[weight.active], active_flat(weight)
        old = state["joined"] == 0
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key][old], moments[name][key].flatten()[flat[old]])
            assert (state[key][~old] == 0).all()
        assert (state["joined"][~old] == 40).all()
        assert state["step"] == 40
        wanted = min(weight.nnz, before[name].numel() - weight.nnz)
        assert 0.85 * wanted < len(flat) - weight.nnz <= wanted
        # the fastest positions off the support are among the candidates
        speed = moments[name]["exp_avg"].abs() / (1 - 0.9**40)
        speed = speed / ((moments[name]["exp_avg_sq"] / (1 - 0.95**40)).sqrt() + 0.1)
        speed.view(-1)[weight.pattern.flat_indices()] = 0
        assert torch.isin(speed.flatten().topk(wanted // 2).indices, flat).all()
    losses = train(model, optimizer, data[39:40], budgets=False)  # the batch of the last step
    assert 0.6 * norm < optimizer.gradient_rms.item() < 1.6 * norm
    assert math.isfinite(losses[0])


def test_sparse_mode_learns_like_exact_mode() -> None:
    """From the same copy of a half-trained model."""
    data = list(batches(STEPS))
    exact = make_model()
    optimizer = SparseAdamW(param_groups(exact), lr=0.1, candidates=1.0, refresh_every=7)
    start = train(exact, optimizer, data[:40])[0]
    sparse, sparse_optimizer = copy.deepcopy((exact, optimizer))
    sparse_optimizer.to_sparse_()
    expected = train(exact, optimizer, data[40:] * 3, budgets=False)
    losses = train(sparse, sparse_optimizer, data[40:] * 3, budgets=False)
    assert losses[0] == pytest.approx(expected[0], abs=1e-9)
    assert sum(losses[-5:]) / 5 < start - 0.5
    assert sum(losses[-5:]) / 5 == pytest.approx(sum(expected[-5:]) / 5, abs=0.2)


# ---- nothing dense


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any op returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out


def test_nothing_of_the_size_of_a_matrix_is_allocated() -> None:
    """Neither when the model is made nor in steps, refreshes among them."""
    config = sk.models.GPTConfig(block_size=4, vocab_size=20, n_layer=1, d_head=8, d_model=256)
    smallest = 20 * 256  # an embedding; the matrices have 65,536 elements and more
    with LargestTensor() as made:
        model = GPT(config, density=0.002, embedding_density=0.02)
        optimizer = SparseAdamW(param_groups(model), 0.1, "sparse", refresh_every=2)
        for ids in torch.randint(20, (5, 1, 5)):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert 4 * 1024 <= made.largest < smallest


# ---- manners


def run(steps: int, **settings: Any) -> tuple[list[float], list[int]]:
    model = sparse_model()
    losses = train(model, sparse_optimizer(model, **settings), list(batches(steps)), budgets=False)
    return losses, active_flat(weights_of(model)["blocks.1.mlp.c_proj.weight"]).tolist()


def test_deterministic_for_a_seed() -> None:
    first = run(10)
    assert run(10) == first
    assert run(10, seed=1)[1] != first[1]


@pytest.mark.parametrize("split", [6, 7, 8])
def test_resumes_bit_for_bit(split: int) -> None:
    """From state dicts, saved before, at and after a refresh."""
    data = list(batches(20))
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    train(model, optimizer, data[:split], budgets=False)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, data[split:], budgets=False)
    other = GPT(CONFIG, density=0.0, floor=FLOOR).double()
    other.load_state_dict(saved[0])
    other_optimizer = sparse_optimizer(other)
    other_optimizer.load_state_dict(saved[1])
    assert train(other, other_optimizer, data[split:], budgets=False) == expected
    for name, weight in weights_of(other).items():
        assert torch.equal(active_flat(weight), active_flat(weights_of(model)[name]))


def one_step(loss_backward: Callable[[GPT, SparseAdamW], None], steps: int = 9) -> dict[str, Tensor]:
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_backward(model, optimizer)
        optimizer.step()
    return {**model.state_dict(), **{f"{n}.flat": active_flat(w) for n, w in weights_of(model).items()}}


def whole(model: GPT, optimizer: SparseAdamW) -> None:
    model.loss(*next(batches(1))).backward()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, t in actual.items():
        if t.is_floating_point():
            torch.testing.assert_close(t, expected[name], rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(t, expected[name]), name


def test_gradients_accumulate() -> None:
    """Two halves of a batch make the step of the whole, what is observed on a refresh step included."""
    results = []
    for parts in (1, 2):
        torch.manual_seed(0)
        net = nn.Sequential(sk.nn.SparseLinear(40, 60, density=0.1), nn.GELU(), sk.nn.SparseLinear(60, 5, density=0.2))
        optimizer = SparseAdamW(param_groups(net.double()), 0.05, "sparse", refresh_every=4)
        for step in range(10):
            x = torch.randn(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (net(part).sub(part[:, :5]).square().mean() / parts).backward()
            optimizer.step()
        results.append({**net.state_dict(), "rms": optimizer.gradient_rms})
    assert_same(*results)


def test_gradient_checkpointing() -> None:
    def recomputed(model: GPT, optimizer: SparseAdamW) -> None:
        handles = []
        for block in model.blocks:
            inner = block.forward
            block.forward = lambda *x, inner=inner: checkpoint(inner, *x, use_reentrant=False)
            handles.append((block, inner))
        whole(model, optimizer)
        for block, inner in handles:
            block.forward = inner

    assert_same(one_step(recomputed), one_step(whole))


def test_grad_scaler() -> None:
    """A step whose gradients overflow is skipped; what was observed in it is forgotten."""
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    data = list(batches(9))
    losses = []
    for step, (ids, targets) in enumerate([data[0], *data]):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        scaler.scale(loss * (1e308 if step == 0 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    plain = sparse_model()
    expected = train_unscheduled(plain, data)
    assert losses[1:] == pytest.approx(expected, rel=1e-9)
    for name, weight in weights_of(model).items():
        assert torch.equal(active_flat(weight), active_flat(weights_of(plain)[name])), name


def train_unscheduled(
    model: GPT, data: list[tuple[Tensor, Tensor]], optimizer: SparseAdamW | None = None
) -> list[float]:
    optimizer, losses = optimizer or sparse_optimizer(model), []
    for batch in data:
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_weights_without_gradients_stay() -> None:
    model = sparse_model()
    frozen = weights_of(model)["blocks.0.mlp.c_fc.weight"]
    frozen.values.requires_grad_(False)
    optimizer = sparse_optimizer(model)
    before = frozen.to_dense().clone()
    train(model, optimizer, list(batches(9)), budgets=False)
    assert torch.equal(frozen.to_dense(), before)
    frozen.active.requires_grad_(True)  # from now on it learns, with a count of its own
    losses = train(model, optimizer, list(batches(9)), budgets=False)
    assert not torch.equal(frozen.to_dense(), before)
    assert optimizer.state[frozen.active]["step"] == 9
    assert all(math.isfinite(loss) for loss in losses)


def test_a_weight_of_a_plain_model(tmp_path: Any) -> None:
    """Any module with sparse layers, not only the GPT; the support moves to where the signal is."""
    torch.manual_seed(0)
    layer = sk.nn.SparseLinear(64, 8, density=0.1)
    target = torch.zeros(8, 64)
    target[:, :4] = 1.0
    optimizer = SparseAdamW(param_groups(layer), 0.02, "sparse", refresh_every=5)
    for step in range(300):
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
        loss = nn.functional.mse_loss(layer(x), x @ target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (layer.weight.to_dense()[:, :4] > 0.5).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "dense"}, "mode must be 'exact' or 'sparse'"),
        ({"candidates": -1.0}, "candidates must not be negative"),
        ({"refresh_every": 0}, "refresh_every must be positive, got 0"),
        ({"candidate_beta1": 1.0}, "candidate_beta1 must be in"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAdamW(param_groups(sparse_model()), 0.1, **settings)


def test_a_budget_beyond_the_active_positions() -> None:
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    set_budgets(list(weights_of(model).values()), 0.9)
    whole(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="the budget of wte.weight must be at most its .* active positions, got"):
        optimizer.step()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def parts(weight: SparseWeight) -> Iterator[tuple[str, Tensor]]:
    yield from weight.state_dict().items()


def test_a_saved_weight_is_checked() -> None:
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    whole(model, optimizer)
    optimizer.step()
    weight = weights_of(model)["blocks.0.mlp.c_fc.weight"]
    good = {name: t.clone() for name, t in parts(weight)}
    assert set(good) == {"active", "crow_indices", "col_indices", "active_crow_indices", "active_col_indices"}
    other = SparseWeight(sk.CSR.random(*weight.shape, nnz=0, dtype=torch.float64))
    other.load_state_dict(good)
    assert other.form == "active"
    assert torch.equal(other.to_dense(), weight.to_dense())
    assert torch.equal(other.in_support, weight.in_support)
    elsewhere = (weight.col_indices + 1) % 32
    elsewhere = {"active_crow_indices": weight.crow_indices, "active_col_indices": elsewhere.sort().values}
    shifted = {"active": torch.zeros(weight.nnz), **elsewhere}
    candidate = int((~weight.in_support).nonzero()[0])
    broken = {
        r"expected crow_indices, col_indices and one of": {k: t for k, t in good.items() if k != "active_col_indices"},
        r"active must be 0 outside of": good | {"active": good["active"].index_fill(0, torch.tensor(candidate), 1.0)},
        r"(must contain all of|col_indices)": good | shifted,
    }
    for message, state in broken.items():
        with pytest.raises(RuntimeError, match=message):
            SparseWeight(sk.CSR.random(*weight.shape, nnz=0)).load_state_dict(state)


def test_copies_and_pickles_are_whole(tmp_path: Any) -> None:
    """Also with a scheduler, which wraps the step of the original."""
    model = sparse_model()
    optimizer = sparse_optimizer(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    data = list(batches(12))
    train_unscheduled(model, data[:3], optimizer)
    scheduler.step()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    torch.save((model, optimizer), tmp_path / "both")
    third, third_optimizer = torch.load(tmp_path / "both", weights_only=False)
    expected = train_unscheduled(model, data[3:], optimizer)
    assert train_unscheduled(twin, data[3:], twin_optimizer) == expected
    assert train_unscheduled(third, data[3:], third_optimizer) == expected


def test_a_model_loaded_too_late_is_noticed() -> None:
    trained = sparse_model()
    train_unscheduled(trained, list(batches(2)))
    model = make_model()
    optimizer = SparseAdamW(param_groups(model), lr=0.1)
    model.load_state_dict(trained.state_dict())
    whole(model, optimizer)
    with pytest.raises(RuntimeError, match="wte.weight has taken the active form since the optimizer was built"):
        optimizer.step()


def test_settings_are_saved() -> None:
    optimizer = sparse_optimizer(sparse_model(), candidates=2.0, seed=5)
    other = sparse_optimizer(sparse_model(), candidates=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert (other.candidates, other.refresh_every, other.seed) == (2.0, 7, 5)


def test_sparse_from_the_very_beginning() -> None:
    """Before any step there is nothing to go by: the candidates are random."""
    model = make_model()
    optimizer = SparseAdamW(param_groups(model), lr=0.1)
    set_budgets(list(weights_of(model).values()), DENSITY)
    for weight in weights_of(model).values():
        weight.project_()
    optimizer.to_sparse_()
    for name, weight in weights_of(model).items():
        assert_sound(weight, name)
        assert len(weight.active) > 1.7 * weight.nnz
    assert all(math.isfinite(loss) for loss in train(model, optimizer, list(batches(5)), budgets=False))


def test_infinite_activity_draws_uniformly() -> None:
    weight = SparseWeight(sk.CSR.random(30, 50, nnz=0))
    rows = torch.ones(30)
    rows[3] = math.inf
    nothing = torch.empty(0, dtype=torch.int64)
    new = draw_candidates(weight, rows, torch.ones(50), nothing, 200, torch.Generator().manual_seed(0))
    assert len((new.flat // 50).unique()) > 25
    assert new.weight.isfinite().all()
