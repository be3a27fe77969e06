"""The cases of the GPU benchmarks, the most telling first."""

from collections.abc import Mapping
from functools import partial
from itertools import product

from .measure import Builder, Case
from .ops import (
    build_abs_topk,
    build_abs_topk_backward,
    build_embedding,
    build_embedding_backward,
    build_linear,
)
from .optimizer import build_adamw_project, build_adamw_select, build_topk_project
from .training import build_training_step

BUILDERS: Mapping[str, Builder] = {
    "csr_linear": partial(build_linear, backward=False),
    "csr_linear forward and backward": partial(build_linear, backward=True),
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
LINEAR = ("csr_linear", "csr_linear forward and backward")
DENSITIES = (0.004, 0.1, 0.05, 0.02, 0.01, 0.001)
TOKENS = (65536, 2048, 16)
SHAPE = (8192, 2048)  # c_fc of the published model: 2048 -> 8192
SHAPES = (SHAPE, (6144, 2048), (2048, 8192), (4096, 1024), (16384, 4096))
MODEL = (2048, 8, 1 / 256)  # d_model, layers, density


def goals() -> list[Case]:
    """What the goals in docs/gpu.md are about, but for whole training steps."""
    return [
        *(Case("csr_linear", "bf16", 65536, *SHAPE, d) for d in DENSITIES),
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
    linear = [Case(op, "bf16", t, *shape, d) for t, shape, op, d in product(TOKENS, SHAPES, LINEAR, DENSITIES)]
    others = [
        *(Case(op, "bf16", 65536, w, w, 0.25) for op, w in product(("abs_topk", "abs_topk_backward"), (2048, 8192))),
        *(Case(op, "f32", 65536, 2048, 2048, 1 / 256) for op in ("csr_embedding", "csr_embedding_backward")),
        *(Case(op, "f32", 65536, *SHAPE, d) for op, d in product(LINEAR, DENSITIES)),
        *(Case("abs_topk", "f32", 65536, w, w, 0.25) for w in (2048, 8192)),
        Case("adamw_select_", "f32", 0, *MODEL),
    ]
    already = set(goals())
    ordered = [*linear[: len(DENSITIES) * 2], *others, *linear[len(DENSITIES) * 2 :]]
    return [case for case in ordered if case not in already]


GROUPS = {"goals": goals, "training": training, "sweep": sweep}


def cases_of(group: str, *, tiny: bool = False) -> list[Case]:
    """The cases of a group; with ``tiny`` a small float32 one for each of its ops: the same code in a second."""
    cases = GROUPS[group]()
    if not tiny:
        return cases
    model = (0, 32, 1)
    sizes = {
        "adamw_project_": model,
        "adamw_select_": model,
        "topk_project_": (0, 33, 70),
        "training step": (64, 32, 1),
        "sparse training step": (64, 32, 1),
    }
    small = [Case(case.op, "f32", *sizes.get(case.op, (40, 64, 48)), 0.25) for case in cases]
    densities = [Case("csr_linear", "f32", 40, 64, 48, d) for d in (0.01, 0.02)] if group == "goals" else []
    return list(dict.fromkeys(small + densities))
