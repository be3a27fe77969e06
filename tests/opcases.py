"""One ``OpCase`` per op: its inputs, what it computes, the raw ops beneath. ``test_ops.py`` runs them all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from sparsekern import BSR, CSR, Pattern, ops
from sparsekern.formats import ActivePattern
from sparsekern.ops import reference


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values, biases and masters have beside activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


RawCall = tuple[torch._ops.OpOverload, tuple[Any, ...]]
raw = torch.ops.sparsekern


@dataclass(frozen=True)
class Draw:
    """Seeded random inputs: the same numbers again for the same calls, whatever the index type and device."""

    dtype: torch.dtype = torch.float64
    index: torch.dtype = torch.int32
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int) -> Tensor:
        """Activations."""
        drawn = torch.randn(shape, dtype=value_dtype(self.dtype), generator=self.generator, device="cpu")
        return drawn.to(torch.get_default_device(), self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """A master, values or a bias."""
        return replace(self, dtype=value_dtype(self.dtype)).normal(*shape)

    def ids(self, shape: tuple[int, ...], rows: int) -> Tensor:
        drawn = torch.randint(max(rows, 1), shape, generator=self.generator, device="cpu")
        return drawn.to(torch.get_default_device())

    def csr(self, n: int, k: int, nnz: int) -> CSR:
        w = CSR.random(n, k, nnz=nnz, generator=self.generator, dtype=value_dtype(self.dtype))
        w = w.to(torch.get_default_device())
        return CSR(w.values, Pattern.build(w.crow_indices.to(self.index), w.col_indices.to(self.index), w.shape))


@dataclass(frozen=True)
class Problem:
    """One call: ``op`` and ``reference`` are functions of the floating point ``inputs``."""

    op: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class OpCase:
    name: str
    build: Callable[[Any, Draw], Problem]
    shapes: tuple[Any, ...]  # the first where one is enough
    small: tuple[Any, ...]  # for numerical gradients; empty where there is no gradient
    raw: Callable[[Draw], Iterable[RawCall]]
    rounds_values: bool = False  # on a GPU to the dtype of narrow activations, for tensor cores
    rounding: float = 4.0  # allowed error, in units of eps times the sum of absolute products; 0 for ops that only move

    def __str__(self) -> str:
        return self.name


# ---- linear ops: x (lead, K), a sparse (N, K) weight of nnz positions


@dataclass(frozen=True)
class Shape:
    lead: tuple[int, ...]
    n: int
    k: int
    nnz: int

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.lead)) or 'vector'},{self.n}x{self.k},nnz={self.nnz}"


SHAPES = (
    Shape((130,), 70, 257, 900),
    Shape((), 5, 7, 9),
    Shape((1,), 1, 1, 1),
    Shape((1,), 5, 70, 40),
    Shape((3,), 70, 5, 30),  # empty rows
    Shape((33,), 257, 70, 1500),
    Shape((2, 3), 5, 70, 100),
    Shape((33,), 5, 70, 0),
    Shape((33,), 5, 5, 25),  # full
    Shape((0,), 5, 7, 9),
    Shape((3, 0), 5, 7, 9),
    Shape((3,), 0, 7, 0),
    Shape((3,), 7, 0, 0),
    Shape((0,), 0, 0, 0),
    Shape((33,), 3, 3000, 200),  # panels of two vectors with AVX-512
    Shape((33,), 3, 10000, 300),  # of two at the baseline, of one with AVX2
    Shape((33,), 3, 20000, 300),  # of one at the baseline
    Shape((1100,), 257, 5, 1285),  # csr_sddmm: several blocks of rows, slices of tokens, panels per slice
    Shape((1100,), 5, 7, 20),  # csr_sddmm: one block of rows, the most slices
    Shape((17,), 257, 257, 257 * 257),  # more positions than one range of the gather and of the sum over slices
)
PATTERNS = tuple(dict.fromkeys(replace(shape, lead=()) for shape in SHAPES))
TABLES = (*(shape for shape in SHAPES if shape.n > 0 or prod(shape.lead) == 0), Shape((2, 100), 3, 5, 15))
SMALL = (Shape((3,), 4, 5, 9), Shape((), 4, 5, 9))
SMALL_FULL = (Shape((3,), 4, 5, 20), Shape((), 4, 5, 20))


def build_linear(shape: Shape, draw: Draw, with_bias: bool) -> Problem:
    w = draw.csr(shape.n, shape.k, shape.nnz)
    inputs = (draw.normal(*shape.lead, shape.k), w.values, *([draw.weight(shape.n)] if with_bias else []))
    return Problem(
        lambda x, values, *bias: ops.csr_linear(x, CSR(values, w.pattern), *bias),
        lambda x, values, *bias: reference.csr_linear(x, CSR(values, w.pattern), *bias),
        inputs,
    )


def build_linear_dense_grad(shape: Shape, draw: Draw, with_bias: bool) -> Problem:
    pattern = draw.csr(shape.n, shape.k, shape.nnz).pattern
    inputs = (
        draw.normal(*shape.lead, shape.k),
        draw.weight(shape.n, shape.k),
        *([draw.weight(shape.n)] if with_bias else []),
    )
    return Problem(
        lambda x, master, *bias: ops.csr_linear_dense_grad(x, master, pattern, *bias),
        lambda x, master, *bias: reference.csr_linear_dense_grad(x, master, pattern, *bias),
        inputs,
    )


def active_pattern(shape: Shape, draw: Draw) -> ActivePattern:
    """``shape.nnz`` active positions, two thirds of them in the support; all in the small shapes, where gradients are
    compared with derivatives: a candidate's is none, by design."""
    return divide(draw.csr(shape.n, shape.k, shape.nnz).pattern, draw, shape.nnz < 10)


def divide(active: Pattern, draw: Draw, all_of_it: bool) -> ActivePattern:
    """Two thirds of the positions, or all, are the support."""
    slots = torch.arange(active.nnz, device=active.col_indices.device)
    slots = slots[(slots % 3 != 1) | all_of_it].to(draw.index)
    rows = reference.row_indices(active)[slots.long()]
    crow = torch.zeros_like(active.crow_indices)
    crow[1:] = torch.bincount(rows, minlength=active.shape[0]).cumsum(0)
    support = Pattern.build(crow, active.col_indices[slots.long()], active.shape)
    return ActivePattern(active.crow_indices, active.col_indices, slots, support)


def build_linear_active(shape: Shape, draw: Draw, with_bias: bool) -> Problem:
    pattern = active_pattern(shape, draw)
    inputs = (
        draw.normal(*shape.lead, shape.k),
        draw.weight(shape.nnz),
        *([draw.weight(shape.n)] if with_bias else []),
    )
    return Problem(
        lambda x, active, *bias: ops.csr_linear_active(x, active, pattern, *bias),
        lambda x, active, *bias: reference.csr_linear_active(x, active, pattern, *bias),
        inputs,
    )


def build_sddmm(shape: Shape, draw: Draw) -> Problem:
    w = draw.csr(shape.n, shape.k, shape.nnz)
    return Problem(
        lambda a, b: ops.csr_sddmm(a, b, w),
        lambda a, b: reference.csr_sddmm(a, b, w),
        (draw.normal(*shape.lead, shape.n), draw.normal(*shape.lead, shape.k)),
    )


# ---- the same over blocks


@dataclass(frozen=True)
class Blocks:
    lead: tuple[int, ...]
    n: int
    k: int
    block: tuple[int, int]
    blocks: int

    def __str__(self) -> str:
        of = f"{self.blocks} of {self.block[0]}x{self.block[1]}"
        return f"{'x'.join(map(str, self.lead)) or 'vector'},{self.n}x{self.k},{of}"


BLOCKS = (
    Blocks((70,), 96, 160, (16, 32), 12),
    Blocks((), 16, 16, (16, 16), 1),
    Blocks((1,), 5, 7, (16, 16), 1),  # smaller than a block
    Blocks((3,), 33, 70, (32, 16), 4),  # ragged edges, empty rows of the grid
    Blocks((2, 3), 70, 130, (64, 128), 2),
    Blocks((5,), 130, 65, (128, 64), 4),  # full
    Blocks((33,), 40, 40, (16, 16), 0),
    Blocks((0,), 40, 40, (16, 16), 3),
    Blocks((3,), 0, 40, (16, 16), 0),
    Blocks((3,), 40, 0, (16, 16), 0),
    Blocks((600,), 17, 31, (16, 16), 3),  # bsr_sddmm: two slabs of tokens
)
SMALL_BLOCKS = (Blocks((2,), 18, 5, (16, 16), 1), Blocks((), 5, 18, (16, 16), 2))


def draw_blocks(shape: Blocks, draw: Draw) -> BSR:
    """What blocks hold over the edge of the matrix is NaN, which must not show."""
    w = BSR.random(shape.n, shape.k, shape.block, blocks=shape.blocks, generator=draw.generator)
    where = Pattern.build(w.crow_indices.to(draw.index), w.col_indices.to(draw.index), w.pattern.shape)
    w = BSR(w.values, where, w.shape).to(torch.get_default_device())
    inside = w.gather(torch.ones(shape.n, shape.k)).values == 1
    return w.with_values(torch.where(inside, draw.weight(*w.values.shape), torch.nan))


def build_bsr_linear(shape: Blocks, draw: Draw, with_bias: bool) -> Problem:
    w = draw_blocks(shape, draw)
    inputs = (draw.normal(*shape.lead, shape.k), w.values, *([draw.weight(shape.n)] if with_bias else []))
    return Problem(
        lambda x, values, *bias: ops.bsr_linear(x, w.with_values(values), *bias),
        lambda x, values, *bias: reference.bsr_linear(x, w.with_values(values), *bias),
        inputs,
    )


def active_blocks(shape: Blocks, draw: Draw) -> tuple[ActivePattern, Tensor]:
    """``shape.blocks`` active positions and their blocks; of four and more, two thirds are in the support."""
    w = draw_blocks(shape, draw)
    return divide(w.pattern, draw, shape.blocks < 4), w.values


def build_bsr_linear_active(shape: Blocks, draw: Draw, with_bias: bool) -> Problem:
    pattern, active = active_blocks(shape, draw)
    inputs = (draw.normal(*shape.lead, shape.k), active, *([draw.weight(shape.n)] if with_bias else []))
    return Problem(
        lambda x, active, *bias: ops.bsr_linear_active(x, active, pattern, shape.n, *bias),
        lambda x, active, *bias: reference.bsr_linear_active(x, active, pattern, shape.n, *bias),
        inputs,
    )


def build_bsr_sddmm(shape: Blocks, draw: Draw) -> Problem:
    w = draw_blocks(shape, draw)
    return Problem(
        lambda a, b: ops.bsr_sddmm(a, b, w),
        lambda a, b: reference.bsr_sddmm(a, b, w),
        (draw.normal(*shape.lead, shape.n), draw.normal(*shape.lead, shape.k)),
    )


def build_embedding(shape: Shape, draw: Draw) -> Problem:
    w, ids = draw.csr(shape.n, shape.k, shape.nnz), draw.ids(shape.lead, shape.n)
    return Problem(
        lambda values: ops.csr_embedding(ids, CSR(values, w.pattern)),
        lambda values: reference.csr_embedding(ids, CSR(values, w.pattern)),
        (w.values,),
    )


def build_gather(shape: Shape, draw: Draw) -> Problem:
    pattern = draw.csr(shape.n, shape.k, shape.nnz).pattern
    return Problem(
        lambda dense: raw.csr_gather(dense, pattern.crow_indices, pattern.col_indices),
        lambda dense: dense[reference.row_indices(pattern), pattern.col_indices.long()],
        (draw.weight(shape.n, shape.k),),
    )


def build_scatter(shape: Shape, draw: Draw) -> Problem:
    w = draw.csr(shape.n, shape.k, shape.nnz)
    return Problem(
        lambda values: CSR(values, w.pattern).to_dense(),
        lambda values: reference.to_dense(CSR(values, w.pattern)),
        (w.values,),
    )


def grads(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.requires_grad_() for t in tensors)


def raw_linear(draw: Draw, with_bias: bool) -> Iterable[RawCall]:
    w = draw.csr(5, 7, 9)
    x, g, bias, values = grads(draw.normal(3, 7), draw.normal(3, 5), draw.normal(5), w.values)
    if with_bias:
        yield raw.csr_linear.default, (x, values, *w.pattern.tensors, bias, False)
    else:
        yield raw.csr_linear.default, (g, values, *w.pattern.tensors, None, True)
        yield raw.csr_linear_backward.default, (g, x, values, *w.pattern.tensors)


def raw_linear_dense_grad(draw: Draw, with_bias: bool) -> Iterable[RawCall]:
    pattern = draw.csr(5, 7, 9).pattern
    x, master, bias = grads(draw.normal(3, 7), draw.normal(5, 7), draw.normal(5))
    yield raw.csr_linear_dense_grad.default, (x, master, *pattern.tensors, bias if with_bias else None)


def raw_linear_active(draw: Draw, with_bias: bool) -> Iterable[RawCall]:
    p = active_pattern(Shape((3,), 5, 7, 12), draw)
    x, active, bias = grads(draw.normal(3, 7), draw.normal(12), draw.normal(5))
    layout = (p.slots, *p.support.tensors, p.crow_indices, p.col_indices)
    yield raw.csr_linear_active.default, (x, active, *layout, bias if with_bias else None)


def raw_observe(draw: Draw) -> Iterable[RawCall]:
    y, x, dy_squares, x_squares = grads(draw.normal(3, 5), draw.normal(3, 7), draw.normal(5), draw.normal(7))
    yield raw.observe.default, (y, x.detach(), dy_squares, x_squares)


def raw_bsr_linear(draw: Draw, with_bias: bool) -> Iterable[RawCall]:
    w = BSR.random(40, 20, 16, blocks=3, generator=draw.generator, dtype=value_dtype(draw.dtype))
    w = w.to(torch.get_default_device())
    x, g, bias, values = grads(draw.normal(3, 20), draw.normal(3, 40), draw.normal(40), w.values)
    if with_bias:
        yield raw.bsr_linear.default, (x, values, *w.pattern.tensors, bias, 40, False)
    else:
        yield raw.bsr_linear.default, (g, values, *w.pattern.tensors, None, 20, True)


def raw_bsr_linear_active(draw: Draw, with_bias: bool) -> Iterable[RawCall]:
    p, active = active_blocks(Blocks((3,), 40, 20, (16, 16), 5), draw)
    x, active, bias = grads(draw.normal(3, 20), active.nan_to_num(0), draw.normal(40))
    layout = (p.slots, *p.support.tensors, p.crow_indices, p.col_indices)
    yield raw.bsr_linear_active.default, (x, active, *layout, bias if with_bias else None, 40)


def raw_bsr_sddmm(draw: Draw) -> Iterable[RawCall]:
    w = BSR.random(40, 20, (16, 32), blocks=2, generator=draw.generator).to(torch.get_default_device())
    yield raw.bsr_sddmm.default, (*grads(draw.normal(3, 40), draw.normal(3, 20)), *w.pattern.tensors, 16, 32)


def raw_sddmm(draw: Draw) -> Iterable[RawCall]:
    w = draw.csr(5, 7, 9)
    for op in (raw.csr_sddmm.default, raw.csr_sddmm_sums.default):
        yield op, (*grads(draw.normal(3, 5), draw.normal(3, 7)), *w.pattern.tensors)


def raw_embedding(draw: Draw) -> Iterable[RawCall]:
    w, ids = draw.csr(5, 7, 9), draw.ids((3,), 5)
    values, g = grads(w.values, draw.normal(3, 7))
    yield raw.csr_embedding.default, (ids, values, w.crow_indices, w.col_indices, 7)
    yield raw.csr_embedding_backward.default, (g, ids, w.crow_indices, w.col_indices)


def raw_gather(draw: Draw) -> Iterable[RawCall]:
    w = draw.csr(5, 7, 9)
    yield raw.csr_gather.default, (*grads(draw.normal(5, 7)), w.crow_indices, w.col_indices)
    yield raw.csr_validate.default, (w.crow_indices, w.col_indices, 7)


def raw_scatter(draw: Draw) -> Iterable[RawCall]:
    w = draw.csr(5, 7, 9)
    yield raw.csr_scatter.default, (*grads(w.values), w.crow_indices, w.col_indices, 7)
    yield raw.csr_transpose.default, (w.crow_indices, w.col_indices, 7)


# ---- selections


@dataclass(frozen=True)
class Rows:
    shape: tuple[int, ...]
    k: int

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))},k={self.k}"


ROWS = (
    Rows((130, 257), 64),
    Rows((5,), 2),
    Rows((1, 1), 1),
    Rows((33, 70), 7),
    Rows((2, 3, 64), 8),
    Rows((3, 5), 0),
    Rows((3, 5), 5),
    Rows((17, 8), 8),
    Rows((4, 1000), 999),
    Rows((0, 5), 2),
    Rows((3, 0), 0),
)


@dataclass(frozen=True)
class Budget:
    n: int
    k: int
    keep: int
    floor: int = 0
    axis: int | None = None

    def __str__(self) -> str:
        floor = "" if self.axis is None else f",floor={self.floor},axis={self.axis}"
        return f"{self.n}x{self.k},keep={self.keep}{floor}"


BUDGETS = (
    Budget(257, 70, 5000),
    Budget(5, 7, 9),
    Budget(1, 1, 1),
    Budget(33, 70, 100),
    Budget(5, 7, 0),
    Budget(5, 7, 35),
    Budget(0, 7, 0),
    Budget(7, 0, 0),
    Budget(0, 0, 0),
    Budget(0, 7, 0, floor=2, axis=0),
    Budget(70, 257, 300, floor=2, axis=0),
    Budget(33, 600, 1400, floor=2, axis=1),  # three strips of columns
    Budget(70, 257, 280, floor=4, axis=0),  # the floor takes the whole budget
    Budget(70, 257, 1028, floor=4, axis=1),
    Budget(5, 7, 35, floor=7, axis=0),
)


def build_abs_topk(rows: Rows, draw: Draw) -> Problem:
    return Problem(partial(ops.abs_topk, k=rows.k), partial(reference.abs_topk, k=rows.k), (draw.normal(*rows.shape),))


def build_topk_project(budget: Budget, draw: Draw) -> Problem:
    rule = (budget.keep, budget.floor, budget.axis)
    return Problem(
        lambda w: ops.topk_project_(w.clone(), *rule),
        lambda w: reference.topk_project_(w.clone(), *rule),
        (draw.weight(budget.n, budget.k),),
    )


def raw_abs_topk(draw: Draw) -> Iterable[RawCall]:
    x, g = grads(draw.normal(3, 13), draw.normal(3, 13))
    yield raw.abs_topk.default, (x, 4)
    yield raw.abs_topk_backward.default, (g, raw.abs_topk(x, 4)[1])


def raw_topk_project(draw: Draw) -> Iterable[RawCall]:
    yield raw.topk_project_.default, (draw.normal(5, 7), 12, 1, 1)
    yield raw.topk_select.default, (draw.normal(5, 7), 12, 0, 0)


def raw_adamw_project(draw: Draw) -> Iterable[RawCall]:
    shape, k = (5, 7), 12
    weights, grads, avgs = ([draw.normal(*shape), draw.normal(*shape)] for _ in range(3))
    squares = [draw.normal(*shape).square() for _ in range(2)]
    steps = [torch.ones(()) for _ in range(2)]
    lengths = (shape[0] + 1, k, shape[1] + 1, k, k)
    indices = [[torch.zeros(length, dtype=torch.int32) for _ in range(2)] for length in lengths]
    scalars = [torch.full((), value, dtype=torch.float64) for value in (0.1, 1.0)]
    rule = ([0, 1], [0, 1], *scalars, 0.9, 0.95, 0.1, 0.1)
    yield raw.adamw_project_.default, (weights, grads, avgs, squares, steps, *indices, *rule)


def raw_adamw_select(draw: Draw) -> Iterable[RawCall]:
    n, k, active, nnz = 5, 7, 12, 8
    patterns = [draw.csr(n, k, active).pattern for _ in range(2)]
    weights, grads, avgs = ([draw.normal(active), draw.normal(active)] for _ in range(3))
    squares = [draw.normal(active).square() for _ in range(2)]
    joined, steps = [torch.zeros_like(w) for w in weights], [torch.ones(()) for _ in range(2)]
    flags = [torch.ones(active, dtype=torch.bool) for _ in range(2)]
    layouts = [p.crow_indices for p in patterns], [p.col_indices for p in patterns]
    indices = [
        [torch.zeros(length, dtype=torch.int32) for _ in range(2)] for length in (nnz, n + 1, nnz, k + 1, nnz, nnz)
    ]
    scalars = [torch.full((), value, dtype=torch.float64) for value in (0.1, 1.0)]
    rule = ([0, 1], [0, 1], *scalars, 0.9, 0.97, 0.95, 0.1, 0.1)
    state = (weights, grads, avgs, squares, joined, steps, flags)
    yield raw.adamw_select_.default, (*state, *layouts, *indices, *rule)


def raw_causal_attention(draw: Draw) -> Iterable[RawCall]:
    q, k, v, g, logits = grads(*(draw.normal(2, 5, 3, 4) for _ in range(4)), draw.normal(3))
    for sink in (None, logits):
        yield raw.causal_attention.default, (q, k, v, sink)
        y, lse = (t.detach() for t in raw.causal_attention(q, k, v, sink))
        yield raw.causal_attention_backward.default, (g, q, k, v, sink, y, lse)


def raw_rms_norm(draw: Draw) -> Iterable[RawCall]:
    x, gain, g = grads(draw.normal(2, 3, 5), draw.normal(5), draw.normal(2, 3, 5))
    yield raw.rms_norm.default, (x, gain, 1e-6, True)
    rstd = raw.rms_norm(x, gain, 1e-6, False)[1].detach()
    yield raw.rms_norm_backward.default, (g, x, gain, rstd, 1e-6)


CASES = (
    *(
        OpCase(
            f"csr_linear{suffix}",
            partial(build_linear, with_bias=with_bias),
            SHAPES,
            SMALL,
            partial(raw_linear, with_bias=with_bias),
        )
        for suffix, with_bias in (("", False), ("+bias", True))
    ),
    *(
        OpCase(
            f"csr_linear_dense_grad{suffix}",
            partial(build_linear_dense_grad, with_bias=with_bias),
            SHAPES,
            SMALL_FULL,  # off the pattern the gradient of the master is not the derivative, by design
            partial(raw_linear_dense_grad, with_bias=with_bias),
        )
        for suffix, with_bias in (("", False), ("+bias", True))
    ),
    *(
        OpCase(
            f"csr_linear_active{suffix}",
            partial(build_linear_active, with_bias=with_bias),
            SHAPES,
            SMALL,
            partial(raw_linear_active, with_bias=with_bias),
        )
        for suffix, with_bias in (("", False), ("+bias", True))
    ),
    *(
        OpCase(
            f"bsr_linear{suffix}",
            partial(build_bsr_linear, with_bias=with_bias),
            BLOCKS,
            SMALL_BLOCKS,
            partial(raw_bsr_linear, with_bias=with_bias),
            rounds_values=True,
        )
        for suffix, with_bias in (("", False), ("+bias", True))
    ),
    *(
        OpCase(
            f"bsr_linear_active{suffix}",
            partial(build_bsr_linear_active, with_bias=with_bias),
            BLOCKS,
            SMALL_BLOCKS,
            partial(raw_bsr_linear_active, with_bias=with_bias),
            rounds_values=True,
        )
        for suffix, with_bias in (("", False), ("+bias", True))
    ),
    OpCase("bsr_sddmm", build_bsr_sddmm, BLOCKS, SMALL_BLOCKS, raw_bsr_sddmm, rounds_values=True),
    OpCase("csr_sddmm", build_sddmm, SHAPES, SMALL, raw_sddmm),
    OpCase("csr_embedding", build_embedding, TABLES, SMALL, raw_embedding),
    OpCase("csr_gather", build_gather, PATTERNS, SMALL[:1], raw_gather, rounding=0),
    OpCase("csr_scatter", build_scatter, PATTERNS, SMALL[:1], raw_scatter, rounding=0),
    OpCase("abs_topk", build_abs_topk, ROWS, (Rows((3, 7), 3), Rows((7,), 3)), raw_abs_topk, rounding=0),
    OpCase("topk_project_", build_topk_project, BUDGETS, (), raw_topk_project, rounding=0),
)

RAW_CALLS: dict[str, Callable[[Draw], Iterable[RawCall]]] = {
    **{case.name: case.raw for case in CASES},
    "adamw_project_": raw_adamw_project,  # these have tests of their own
    "adamw_select_": raw_adamw_select,
    "causal_attention": raw_causal_attention,
    "observe": raw_observe,
    "rms_norm": raw_rms_norm,
}
