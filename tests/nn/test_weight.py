"""``SparseWeight``: its two forms, projection, and what a checkpoint, a copy and a cast keep."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsekern import CSR, ops
from sparsekern.nn import SparseLinear, SparseWeight
from sparsekern.ops.choice import BREAK_EVEN

N, K = 6, 9
FORMS = {"values": SparseWeight.to_values_, "master": SparseWeight.to_master_}
form = pytest.mark.parametrize("form", FORMS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_weight(form: str, nnz: int = 13, seed: int = 0) -> SparseWeight:
    return FORMS[form](SparseWeight(CSR.random(N, K, nnz=nnz, generator=seeded(seed))))


def a_master(seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=seeded(seed))


def snapshot(weight: SparseWeight) -> tuple[list[str], list[list[float]], list[int], list[int]]:
    """Everything that a refused change must leave alone."""
    names = [name for name, _ in weight.named_parameters()]
    return names, weight.to_dense().tolist(), weight.crow_indices.tolist(), weight.col_indices.tolist()


def off_pattern(weight: SparseWeight) -> Tensor:
    return CSR(torch.ones(weight.nnz), weight.pattern).to_dense() == 0


# ---- the two forms


def test_values_form_shows_the_matrix() -> None:
    csr = CSR.random(N, K, nnz=13, generator=seeded())
    weight = SparseWeight(csr)
    assert [name for name, _ in weight.named_parameters()] == ["values"]
    assert type(weight.values) is nn.Parameter
    assert weight.parameter is weight.values
    assert weight.form != "master"
    assert (weight.shape, weight.nnz, weight.budget, weight.density) == ((N, K), 13, 13, 13 / (N * K))
    assert (weight.dtype, weight.device.type) == (torch.float32, "cpu")
    assert torch.equal(weight.to_dense(), csr.to_dense())
    assert weight.values.data_ptr() != csr.values.data_ptr()
    assert repr(weight) == "SparseWeight(6, 9, nnz=13, density=24.074%, form=values)"


def test_master_form_is_the_same_matrix() -> None:
    weight = a_weight("values")
    dense, values = weight.to_dense().detach(), weight.values.detach().clone()
    assert weight.to_master_() is weight
    assert [name for name, _ in weight.named_parameters()] == ["master"]
    assert type(weight.master) is nn.Parameter
    assert weight.parameter is weight.master
    assert weight.form == "master"
    assert torch.equal(weight.master, dense)
    assert torch.equal(weight.values, values)
    assert repr(weight).endswith("form=master)")


@form
def test_forms_round_trip(form: str) -> None:
    weight = a_weight(form)
    before = snapshot(weight)
    assert snapshot(weight.to_master_().to_values_())[1:] == before[1:]
    assert snapshot(FORMS[form](weight)) == before
    weight.csr.validate()


@form
def test_switching_to_the_present_form_keeps_the_parameter(form: str) -> None:
    weight = a_weight(form)
    parameter = weight.parameter
    assert FORMS[form](weight).parameter is parameter


@pytest.mark.parametrize("requires_grad", [True, False], ids=["trained", "frozen"])
def test_switching_keeps_requires_grad(requires_grad: bool) -> None:
    weight = a_weight("values")
    weight.values.requires_grad_(requires_grad)
    assert weight.to_master_().master.requires_grad is requires_grad
    assert weight.to_values_().values.requires_grad is requires_grad


def test_values_read_the_master() -> None:
    weight = a_weight("master")
    with torch.no_grad():
        weight.master.mul_(3).add_(1)
    rows = torch.repeat_interleave(torch.arange(N), weight.crow_indices.diff())
    assert torch.equal(weight.values, weight.master[rows, weight.col_indices.long()])
    (weight.values * torch.arange(13.0)).sum().backward()
    assert torch.equal(weight.master.grad[rows, weight.col_indices.long()], torch.arange(13.0))
    assert not weight.master.grad[off_pattern(weight)].any()


def test_from_master_begins_dense() -> None:
    master = a_master()
    weight = SparseWeight.from_master(master, floor=2, axis=1)
    assert (weight.nnz, weight.budget, weight.density, weight.floor, weight.axis) == (N * K, N * K, 1.0, 2, 1)
    assert torch.equal(weight.master, master)
    assert torch.equal(weight.values, master.flatten())
    assert weight.master.data_ptr() != master.data_ptr()
    weight.csr.validate()


# ---- computing


@pytest.mark.parametrize(
    ("form", "nnz", "kernel"),
    [("values", 13, "csr"), ("values", 54, "csr"), ("master", 13, "csr"), ("master", 54, "dense")],
)
def test_linear_is_the_dense_product(form: str, nnz: int, kernel: str) -> None:
    weight = a_weight(form, nnz).double()
    x = torch.randn(4, K, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    bias = torch.randn(N, dtype=torch.float64, generator=seeded(2))
    dy = torch.randn(4, N, dtype=torch.float64, generator=seeded(3))
    assert weight.choice().kernel == kernel
    y = weight.linear(x, bias)
    y.backward(dy)
    dense = weight.to_dense().detach()
    torch.testing.assert_close(y, x @ dense.T + bias)
    torch.testing.assert_close(x.grad, dy @ dense)
    full = dy.T @ x.detach()  # of the master also off the pattern: what exact mode selects from
    expected = full if form == "master" else full[~off_pattern(weight)]
    torch.testing.assert_close(weight.parameter.grad, expected)


@form
def test_embedding_reads_rows(form: str) -> None:
    weight = a_weight(form)
    ids = torch.tensor([[5, 0], [2, 5]])
    rows = weight.embedding(ids)
    assert torch.equal(rows, weight.to_dense()[ids])
    rows.sum().backward()
    counts = torch.tensor([1.0, 0, 1, 0, 0, 2])[:, None].expand(N, K)
    expected = counts if form == "master" else counts[~off_pattern(weight)]
    assert torch.equal(weight.parameter.grad, expected)


def test_choice_tells_why() -> None:
    weight = a_weight("master")
    reason = "6 x 9, 13 nonzeros (24.07%), float32, cpu: at or below the break-even of 30%"
    assert BREAK_EVEN["cpu"] == 0.3
    assert str(weight.choice()) == f"csr: {reason}"


# ---- projection


@pytest.mark.parametrize(
    ("budget", "floor", "axis"),
    [(7, 0, None), (7, 1, 0), (18, 3, 0), (9, 1, 1), (20, 2, 1), (54, 0, None), (0, 0, None)],
)
def test_projection_is_exact(budget: int, floor: int, axis: int | None) -> None:
    weight = SparseWeight.from_master(a_master(), floor=floor, axis=axis)
    parameter = weight.master
    weight.budget = budget
    weight.project_()
    assert weight.master is parameter
    assert weight.nnz == budget == int(weight.master.count_nonzero())
    assert torch.equal(weight.master, ops.reference.topk_project_(a_master(), budget, floor, axis))
    assert torch.equal(weight.to_dense(), weight.master)
    weight.csr.validate()
    if axis is not None:
        assert int((weight.master != 0).sum(1 - axis).min()) >= floor


def test_a_floor_decides_what_is_kept() -> None:
    weight = SparseWeight.from_master(torch.tensor([[9.0, 8, 7], [1, 2, 3]]), axis=0)
    weight.budget = 3
    plain, floored = copy.deepcopy(weight), weight
    plain.project_()
    floored.floor = 1
    floored.project_()
    assert plain.master.tolist() == [[9, 8, 7], [0, 0, 0]]
    assert floored.master.tolist() == [[9, 8, 0], [0, 0, 3]]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (11, r"at least floor \* 6 = 12, got 11"),
        (55, "between 0 and 54, got 55"),
        (-1, "between 0 and 54, got -1"),
    ],
    ids=["below-the-floor", "too-many", "negative"],
)
def test_an_impossible_budget_is_refused(budget: int, message: str) -> None:
    weight = SparseWeight.from_master(a_master(), floor=2, axis=0)
    before = snapshot(weight)
    weight.budget = budget
    with pytest.raises(ValueError, match=message):
        weight.project_()
    assert snapshot(weight) == before


def test_nan_is_refused() -> None:
    master = a_master()
    master[2, 3] = torch.nan
    weight = SparseWeight.from_master(master)
    weight.budget = 5
    with pytest.raises(RuntimeError, match="NaN"):
        weight.project_()
    assert weight.nnz == N * K
    assert torch.equal(weight.master.nan_to_num(), master.nan_to_num())


def test_values_form_cannot_be_projected() -> None:
    with pytest.raises(RuntimeError, match="only a weight in master form can be projected"):
        a_weight("values").project_()


def test_projection_renews_the_pattern() -> None:
    weight = SparseWeight.from_master(a_master())
    weight.budget = 10
    weight.project_()
    old = weight.pattern
    old_columns = old.col_indices.tolist()
    assert weight.pattern.perm is old.perm  # built once
    with torch.no_grad():
        weight.master.copy_(a_master(seed=1))
    weight.project_()
    assert weight.pattern.perm is not old.perm
    assert old.col_indices.tolist() == old_columns  # whoever still holds it is not surprised
    weight.csr.validate()
    x = torch.randn(3, K, generator=seeded(2), requires_grad=True)
    weight.linear(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.master.detach().sum(0).expand(3, K))


# ---- checkpoints


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("nnz", [13, 5, 54, 0])
def test_state_dict_decides_form_and_length(source: str, target: str, nnz: int) -> None:
    saved, weight = a_weight(source, nnz, seed=1), a_weight(target, seed=2)
    parameter = weight.parameter
    weight.load_state_dict(saved.state_dict())
    assert snapshot(weight) == snapshot(saved)
    assert (weight.nnz, weight.budget) == (nnz, nnz)
    weight.csr.validate()
    assert (weight.parameter is parameter) == (source == target)  # so an optimizer goes on where it can


@form
def test_state_dict_holds_each_position_once(form: str) -> None:
    assert set(a_weight(form).state_dict()) == {form, "crow_indices", "col_indices"}


@form
def test_a_loaded_weight_shares_nothing(form: str) -> None:
    saved, weight = a_weight(form, seed=1), a_weight(form, seed=2)
    weight.load_state_dict(saved.state_dict())
    theirs = {t.data_ptr() for t in saved.state_dict().values()}
    assert theirs.isdisjoint(t.data_ptr() for t in weight.state_dict().values())


def test_training_goes_on_after_loading_another_length() -> None:
    weight = a_weight("values", 13)
    weight.values.sum().backward()
    weight.load_state_dict(a_weight("values", 5).state_dict())
    weight.values.sum().backward()
    assert weight.values.grad.tolist() == [1.0] * 5


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "unsorted": (lambda s: s["col_indices"][:2].copy_(torch.tensor([1, 0])), "ascend within a row"),
    "out-of-range": (lambda s: s["col_indices"][-1:].fill_(K), "between 0 and 8"),
    "too-few-rows": (lambda s: s.update(crow_indices=s["crow_indices"][:-1]), r"7 entries, got \(6,\)"),
    "too-few-values": (lambda s: s.update(values=s["values"][:-1]), r"equal length, got \(53,\) and \(54,\)"),
    "no-columns": (lambda s: s.pop("col_indices"), "expected .*, got crow_indices, values"),
    "no-values": (lambda s: s.pop("values"), "expected .*, got crow_indices, col_indices"),
    "two-forms": (lambda s: s.update(master=torch.zeros(N, K)), "expected .*, got .*values, master"),
    "wrong-master": (
        lambda s: s.update(master=s.pop("values").view(K, N)),
        r"master must have shape \(6, 9\), got \(9, 6\)",
    ),
}


@form
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_changes_nothing(form: str, damage: str) -> None:
    apply, message = DAMAGES[damage]
    state = {name: t.clone() for name, t in a_weight("values", 54, seed=1).state_dict().items()}
    apply(state)
    model = nn.Sequential(nn.Identity(), SparseLinear.from_weight(a_weight(form)))
    before = snapshot(model[1].weight)
    with pytest.raises(RuntimeError, match=rf"1\.weight: .*{message}"):
        model.load_state_dict({f"1.weight.{name}": t for name, t in state.items()})
    assert snapshot(model[1].weight) == before
    model[1].weight.csr.validate()


# ---- copies and casts


@form
def test_deepcopy_is_independent(form: str) -> None:
    weight = a_weight(form)
    weight.floor, weight.axis = 1, 0
    before = snapshot(weight)
    twin = copy.deepcopy(weight)
    assert snapshot(twin) == before
    assert (twin.floor, twin.axis, twin.budget) == (1, 0, 13)
    twin.to_master_().budget = 6
    twin.project_()
    assert twin.nnz == 6
    assert snapshot(weight) == before
    weight.csr.validate()


@form
def test_pickle_round_trip(form: str) -> None:
    weight = a_weight(form)
    twin = pickle.loads(pickle.dumps(weight))
    assert snapshot(twin) == snapshot(weight)
    assert type(twin.parameter) is nn.Parameter
    twin.csr.validate()


@form
def test_double_casts_the_numbers_only(form: str) -> None:
    weight = a_weight(form)
    before = snapshot(weight)
    assert weight.double().dtype == torch.float64
    assert weight.values.dtype == torch.float64
    assert {t.dtype for t in weight.pattern.tensors} == {torch.int32}
    assert snapshot(weight) == before
    x = torch.ones(2, K, dtype=torch.float64)
    torch.testing.assert_close(weight.linear(x), weight.to_dense().sum(1).expand(2, N))
