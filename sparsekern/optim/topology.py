"""The candidates of sparse mode: positions that may grow into the support of a weight."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import block_norms, compressed, gather_blocks, is_among
from ..nn.weight import SparseWeight

REPLACED = 0.5  # share of the candidates that a refresh replaces: those with the smallest steps
UNIFORM = 0.1  # share of the draws that ignore a dimension's activity: an idle neuron may wake up
UNIFORM_NEURONS = 0.5  # the same for the neurons that a floor protects, of which many are idle
_OVERDRAWN = 2  # draws per new candidate: some hit what is active already, or each other


@dataclass(frozen=True)
class Draws:
    """New candidates: their flat indices, ascending, and the root of how many positions each stands for.

    A position of squared gradient g^2 that was drawn with probability p stands for 1 / p like it: summed over all
    draws, ``(weight * g) ** 2`` estimates without bias what ``g ** 2`` adds up to over all positions not active.
    """

    flat: Tensor  # (drawn) int64
    weight: Tensor  # (drawn)


def draw_candidates(
    weight: SparseWeight, row_norms: Tensor, col_norms: Tensor, taken: Tensor, count: int, generator: torch.Generator
) -> Draws:
    """At most ``count`` positions outside of ``taken``, drawn in proportion to the products of two norms; all that
    there are where ``count`` allows.

    The product of the norms of a row's output gradient and of a column's input bounds the gradient of the position
    between them, and foretells better than one step's gradient which positions will grow.

    Args:
        weight: tells shape, floor and axis; where there is a floor, half of the neurons are drawn uniformly.
        row_norms, col_norms: of the rows and columns of the weight's grid.
        taken: flat indices, ascending.
        generator: on the device of the norms.
    """
    n, k = weight.grid
    if len(taken) + count >= n * k:
        everything = torch.arange(n * k, device=taken.device)
        missing = everything[~is_among(everything, taken)]
        return Draws(missing, torch.ones_like(missing, dtype=torch.float64))
    uniform = [UNIFORM_NEURONS if weight.floor and weight.axis == axis else UNIFORM for axis in (0, 1)]
    rows = _Distribution(row_norms, uniform[0])
    cols = _Distribution(col_norms, uniform[1])
    tries = _OVERDRAWN * count
    flat, times = (rows.draw(tries, generator) * k + cols.draw(tries, generator)).unique(return_counts=True)
    new = ~is_among(flat, taken)
    flat, times = flat[new], times[new].double()
    found = len(flat)
    if found > count:
        chosen = torch.randperm(found, generator=generator, device=flat.device)[:count].sort().values
        flat, times = flat[chosen], times[chosen] * (found / count)
    probability = rows.probability[flat.div(k, rounding_mode="floor")] * cols.probability[flat % k]
    return Draws(flat, (times / (tries * probability)).sqrt())


class _Distribution:
    """In proportion to some norms, for a share of the draws uniform; all uniform where the norms say nothing."""

    _UNITS = 2**40  # integers add up to the same number in any order

    def __init__(self, norms: Tensor, uniform: float) -> None:
        norms = norms.double()
        size, total = len(norms), norms.sum()
        measured = (total > 0) & total.isfinite()
        self.probability = torch.where(measured, (1 - uniform) * norms / total + uniform / size, 1 / size)
        self._ends = (self.probability * self._UNITS).long().cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        at = torch.rand(count, dtype=torch.float64, generator=generator, device=self._ends.device) * self._ends[-1]
        return torch.searchsorted(self._ends, at.long(), right=True).clamp_(max=len(self._ends) - 1)


def over_entries(per_position: Tensor, entries: Tensor) -> Tensor:
    """One number per position, for each of its entries where positions are blocks."""
    return per_position.view(-1, *[1] * (entries.dim() - 1))


def position_norms(weight: SparseWeight, entries: Tensor) -> Tensor:
    """Of what is like the Parameter: (N, K) -> the grid, (positions) or (positions, *block) -> (positions)."""
    if weight.block is None:
        return entries.abs()
    return block_norms(entries, weight.block) if entries.dim() == 2 else entries.norm(dim=(1, 2))


def at_positions(weight: SparseWeight, dense: Tensor, flat: Tensor) -> Tensor:
    """What an (N, K) matrix holds at some positions."""
    return dense.flatten()[flat] if weight.block is None else gather_blocks(dense, weight.block, flat)


def activities(weight: SparseWeight, squares: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Norms over the rows and columns of the grid, from squares over those of the matrix; where they were not measured
    all are as active."""
    found = []
    for of, size, side in zip(squares, weight.grid, weight.block or (1, 1), strict=True):
        if of is None:
            found.append(weight.parameter.new_ones(size))
        else:
            found.append(F.pad(of, (0, size * side - len(of))).view(size, side).sum(1).sqrt())
    return found[0], found[1]


def active_flat(weight: SparseWeight) -> Tensor:
    """(active) int64, ascending: the flat indices of a weight's active positions."""
    return weight.active_pattern.flat_indices()


def replace_active_(weight: SparseWeight, state: dict[str, Tensor], kept: Tensor, new: Draws) -> None:
    """Let ``weight`` have the active positions ``kept`` (indices, ascending) and ``new``, and ``state`` follow.

    ``state`` is the optimizer's. It holds, for every active position, ``exp_avg``, ``exp_avg_sq``, ``joined`` and
    ``norm_weight`` (see :class:`Draws`): what is kept stands for itself from now on; what is new has no moments and
    joins after the weight's last step.
    """
    flat, order = torch.cat([active_flat(weight)[kept], new.flat]).sort()

    def merged(old: Tensor, of_new: Tensor) -> Tensor:
        return torch.cat([old[kept], of_new.to(old.dtype).expand(len(new.flat), *old.shape[1:])])[order]

    zero = state["step"].new_zeros(())
    for name, of_new in (("exp_avg", zero), ("exp_avg_sq", zero), ("joined", state["step"])):
        state[name] = merged(state[name], of_new)
    state["norm_weight"] = merged(torch.ones_like(state["norm_weight"]), new.weight)
    assert weight.in_support is not None
    slots = merged(weight.in_support, zero).nonzero().flatten()
    weight.set_active_(*compressed(flat, weight.grid), merged(weight.active.data, zero), slots)
