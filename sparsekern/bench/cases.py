"""The cases of the benchmarks, the most telling first."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product

from ..ops.bsr_linear import BLOCK_SIDES
from .blocks import build_blocks
from .linear import build_conversion, build_layer, build_linear, build_sddmm
from .measure import Builder, Case
from .ops import (
    build_abs_topk,
    build_abs_topk_backward,
    build_attention,
    build_embedding,
    build_embedding_backward,
)
from .optimizer import build_adamw_project, build_adamw_select, build_topk_project
from .training import build_training_step

BUILDERS: Mapping[str, Builder] = {
    "csr_linear": partial(build_linear, backward=False),
    "csr_linear forward and backward": partial(build_linear, backward=True),
    "csr_sddmm": build_sddmm,
    **{f"bsr_linear {side}": partial(build_blocks, side=side, backward=False) for side in BLOCK_SIDES},
    **{
        f"bsr_linear {side} forward and backward": partial(build_blocks, side=side, backward=True)
        for side in BLOCK_SIDES
    },
    "SparseLinear": build_layer,
    "CSR.from_dense": build_conversion,
    "causal_attention": partial(build_attention, backward=False),
    "causal_attention forward and backward": partial(build_attention, backward=True),
    "abs_topk": build_abs_topk,
    "abs_topk_backward": build_abs_topk_backward,
    "csr_embedding": build_embedding,
    "csr_embedding_backward": build_embedding_backward,
    "topk_project_": build_topk_project,
    "adamw_project_": build_adamw_project,
    "adamw_select_": build_adamw_select,
    "training step": build_training_step,
    "sparse training step": partial(build_training_step, mode="sparse"),
}
LINEAR = ("csr_linear", "csr_linear forward and backward")  # what is compared over densities
BLOCKS = tuple(op for op in BUILDERS if op.startswith("bsr_"))
PER_WEIGHT = (*LINEAR, "csr_sddmm", "SparseLinear", "CSR.from_dense")
ATTENTIONS = ("causal_attention", "causal_attention forward and backward")
BLOCK_DENSITIES = (0.1, 0.5, 0.2, 0.05, 0.01)
GPU_DENSITIES = (0.004, 0.1, 0.05, 0.02, 0.01, 0.001)
GPU_TOKENS = (65536, 2048, 16)
SHAPE = (8192, 2048)  # c_fc of the published model: 2048 -> 8192
GPU_SHAPES = (SHAPE, (6144, 2048), (2048, 8192), (4096, 1024), (16384, 4096))
MODEL = (2048, 8, 1 / 256)  # d_model, layers, density

CPU_SHAPES = (SHAPE, (4096, 4096), (6144, 2048), (2048, 8192), (4096, 1024), (16384, 4096))
CPU_TOKENS = (2048, 16384, 256, 16, 1)
CPU_DENSITIES = (0.01, 0.001, 0.1, 0.5)
CPU_CURVE = (0.002, 0.005, 0.02, 0.05, 0.2, 0.3)  # with the others a curve, at the published shape
ATTENTION = (128, 16)  # heads and their width in a model 2048 wide


# ---- on a GPU


def goals() -> list[Case]:
    """What the goals in docs/gpu.md are about, but for whole training steps."""
    return [
        *(Case("csr_linear", "bf16", 65536, *SHAPE, d) for d in GPU_DENSITIES),
        Case("abs_topk", "bf16", 65536, 8192, 8192, 0.25),
        Case("abs_topk", "bf16", 65536, 2048, 2048, 0.25),
        Case("adamw_project_", "f32", 0, *MODEL),
        Case("topk_project_", "f32", 0, 4096, 4096, 0.004),
    ]


def training() -> list[Case]:
    """Whole steps, from the most tokens; the first that the dense contender fits is the one to compare."""
    tokens = (131072, 65536, 32768, 16384, 8192)
    return [Case(op, "bf16", t, *MODEL) for t, op in product(tokens, ("sparse training step", "training step"))]


def sweep() -> list[Case]:
    """Everything else."""
    sizes = product(GPU_TOKENS, GPU_SHAPES, LINEAR, GPU_DENSITIES)
    linear = [Case(op, "bf16", t, *shape, d) for t, shape, op, d in sizes]
    others = [
        *(Case(op, "bf16", 65536, w, w, 0.25) for op, w in product(("abs_topk", "abs_topk_backward"), (2048, 8192))),
        *(Case(op, "f32", 65536, 2048, 2048, 1 / 256) for op in ("csr_embedding", "csr_embedding_backward")),
        *(Case(op, "f32", 65536, *SHAPE, d) for op, d in product(LINEAR, GPU_DENSITIES)),
        *(Case("abs_topk", "f32", 65536, w, w, 0.25) for w in (2048, 8192)),
        Case("adamw_select_", "f32", 0, *MODEL),
        *(Case(op, "bf16", 65536, *SHAPE, d) for op, d in product(BLOCKS, BLOCK_DENSITIES)),
    ]
    already = set(goals())
    ordered = [*linear[: len(GPU_DENSITIES) * 2], *others, *linear[len(GPU_DENSITIES) * 2 :]]
    return [case for case in ordered if case not in already]


# ---- on a CPU


def cpu() -> list[Case]:
    """Every published shape at 2048 tokens, every number of tokens at the published shape; no product of the two."""

    def linear(op: str, tokens: int, shape: tuple[int, int], densities: tuple[float, ...]) -> list[Case]:
        return [Case(op, "f32", tokens, *shape, d) for d in densities]

    square, dtypes = (4096, 4096), ("f32", "bf16")
    cases = [
        *(Case("csr_linear", dtype, 2048, *square, d) for dtype, d in product(dtypes, CPU_DENSITIES)),
        *(Case("SparseLinear", dtype, 2048, *square, 0.001) for dtype in dtypes),
        *(Case("csr_sddmm", dtype, 2048, *square, d) for dtype, d in product(dtypes, (0.001, 0.01))),
        *(Case("abs_topk", dtype, 2048, 4096, 4096, 0.25) for dtype in dtypes),
        *(Case("topk_project_", "f32", 0, *square, d) for d in (0.001, 0.1)),
        *(Case(op, dtype, 2048, *ATTENTION, 1.0) for op, dtype in product(ATTENTIONS, dtypes)),
        *(Case(op, dtype, 2048, *square, d) for d, dtype, op in product((0.1, 0.5), dtypes, BLOCKS) if "64" in op),
    ]
    cases += [case for op in LINEAR for case in linear(op, 2048, SHAPE, (*CPU_DENSITIES, *CPU_CURVE))]
    cases += [
        *(Case("abs_topk", "f32", 2048, w, w, 0.25) for w in (2048, 8192)),
        *(Case(op, "f32", 0, 1024, 8, 1 / 128) for op in ("adamw_project_", "adamw_select_")),
        *(Case("CSR.from_dense", "f32", 0, *SHAPE, d) for d in CPU_DENSITIES),
    ]
    for op, shape in product((*LINEAR, "csr_sddmm", "SparseLinear"), CPU_SHAPES):
        cases += linear(op, 2048, shape, CPU_DENSITIES)
    for tokens, op in product(CPU_TOKENS, (*LINEAR, "SparseLinear")):
        cases += linear(op, tokens, SHAPE, CPU_DENSITIES)
    cases += [
        *(Case(op, "f32", 2048, *square, d) for op, d in product(BLOCKS, BLOCK_DENSITIES)),
        Case("abs_topk_backward", "f32", 2048, 8192, 8192, 0.25),
        *(Case(op, "f32", 2048, 2048, 2048, 1 / 256) for op in ("csr_embedding", "csr_embedding_backward")),
    ]
    return list(dict.fromkeys(cases))


def quick() -> list[Case]:
    """A look at everything in two minutes, at sizes that :func:`cpu` has not."""
    shape = (4096, 1024)
    return [
        *(Case("csr_linear", "f32", 256, *shape, d) for d in (*CPU_DENSITIES, 0.2)),
        *(Case("csr_linear forward and backward", "f32", 256, *shape, d) for d in CPU_DENSITIES),
        *(Case(op, "f32", 256, *shape, 0.01) for op in ("csr_sddmm", "SparseLinear")),
        *(Case(op, "f32", 256, *shape, 0.1) for op in BLOCKS if "64" in op),
        Case("CSR.from_dense", "f32", 0, *shape, 0.01),
        *(Case(op, "f32", 256, *ATTENTION, 1.0) for op in ATTENTIONS),
        Case("abs_topk", "f32", 256, 4096, 4096, 0.25),
        Case("topk_project_", "f32", 0, 1024, 1024, 0.01),
        Case("adamw_project_", "f32", 0, 256, 2, 1 / 32),
    ]


GROUPS: dict[str, Callable[[], list[Case]]] = {
    "goals": goals,
    "training": training,
    "sweep": sweep,
    "cpu": cpu,
    "quick": quick,
}


def cases_of(group: str, *, tiny: bool = False) -> list[Case]:
    """The cases of a group; with ``tiny`` small float32 ones for each of its ops: the same code in a second."""
    cases = GROUPS[group]()
    return list(dict.fromkeys(map(shrunk, cases))) if tiny else cases


def shrunk(case: Case) -> Case:
    """A small float32 case of the same op, at the same density where that decides who takes part."""
    model = (0, 32, 1)
    sizes = {
        "adamw_project_": model,
        "adamw_select_": model,
        "topk_project_": (0, 33, 70),
        **dict.fromkeys(BLOCKS, (40, 256, 256)),
        "training step": (64, 32, 1),
        "sparse training step": (64, 32, 1),
    }
    tokens, n, k = sizes.get(case.op, (40, 64, 48))
    density = case.density if case.op in PER_WEIGHT else 0.25
    return replace(case, dtype="f32", tokens=tokens, n=n, k=k, density=density)
