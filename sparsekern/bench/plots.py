"""A picture of a CSV file of benchmarks: speed-up over density with the break-even, and a roofline."""

import importlib.util
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .cases import LINEAR, SHAPE
from .measure import COPY, FMA
from .report import Result, break_even, matching, one_clock, ours
from .timer import COLD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]


def plot(results: list[Result], path: Path) -> bool:
    """Write the picture; False where there is nothing to draw (with)."""
    ops = [op for op in LINEAR if matching(results, {"op": op})]
    if not ops or not importlib.util.find_spec("matplotlib"):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * (len(ops) + 1), 5.5), layout="constrained")
    *left, right = figure.subplots(1, len(ops) + 1)
    for axes, op in zip(left, ops, strict=True):
        draw_speedup(axes, matching(one_clock(results), {"op": op}))
    draw_roofline(right, results)
    figure.savefig(path, dpi=120)
    return True


# ---- speed-up


def same_size(results: list[Result]) -> list[Result]:
    """Of the results of one op, those of the size that has the most densities; of the published shape, if there are
    several."""
    cases = {r.case for r in results}
    sizes = Counter((c.dtype, c.tokens, c.n, c.k) for c in cases)
    dtype, tokens, n, k = max(sizes, key=lambda s: (sizes[s], s[2:] == SHAPE, s[0] == "bf16", s[1]))
    return matching(results, {"dtype": dtype, "tokens": tokens, "n": n, "k": k})


def speedups(results: list[Result]) -> dict[str, Points]:
    """(density in percent, times as fast as the fastest dense contender) of every contender, and of the limit."""
    curves: dict[str, Points] = {}
    for r in sorted(results, key=lambda r: r.case.density):
        if "dense" in r.vs and r.contender not in (COPY, FMA):
            curves.setdefault(r.contender, []).append((100 * r.case.density, r.vs["dense"]))
    for r in sorted(ours(results), key=lambda r: r.case.density):
        if {"dense", "limit"} <= r.vs.keys():
            curves.setdefault("limit", []).append((100 * r.case.density, r.vs["dense"] / r.vs["limit"]))
    return curves


def draw_speedup(axes: "Axes", results: list[Result]) -> None:
    """Over density, with the density at which dense is as fast."""
    shown = same_size(results)
    for name, points in speedups(shown).items():
        style = "--" if name == "limit" or name.startswith("dense") else "-"
        axes.loglog(*zip(*points, strict=True), style, marker="o", ms=3, label=name)
    axes.axhline(1, color="black", lw=0.8)
    even = break_even(ours(shown))
    if even is not None and 0 < even < math.inf:
        axes.axvline(100 * even, color="black", lw=0.8, ls=":")
        axes.annotate(f"break-even {100 * even:.2g} % ", (100 * even, 1), ha="right", va="bottom", fontsize="small")
    case = shown[0].case
    title = f"{case.op}\n{case.k} -> {case.n}, {case.tokens} tokens, {case.dtype}"
    axes.set(title=title, xlabel="density (%)", ylabel="times as fast as the fastest dense")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


# ---- roofline


def roofs(results: list[Result]) -> tuple[float, float]:
    """The most bytes per millisecond that a copy moved from memory, the most operations per millisecond of a matmul."""
    copies = [r.work.bytes / r.median_ms for r in results if (r.contender, r.clock) == (COPY, COLD)]
    products = [r.work.flops / r.median_ms for r in results if r.contender == FMA]
    return max(copies, default=math.nan), max(products, default=math.nan)


def roofline(results: list[Result]) -> dict[str, Points]:
    """(operations per byte, operations per millisecond) of every op of ours that has any, with cold caches."""
    points: dict[str, Points] = {}
    for r in ours(results):
        if r.clock == COLD and r.work.flops and r.work.bytes:
            at = r.work.flops / r.work.bytes, r.work.flops / r.median_ms
            points.setdefault(r.case.op, []).append(at)
    return points


def draw_roofline(axes: "Axes", results: list[Result]) -> None:
    """Cases of ours below what the bandwidth and the arithmetic of the device allow."""
    bytes_per_ms, flops_per_ms = roofs(results)
    by_op = roofline(results)
    for op, points in by_op.items():
        intensity, rate = zip(*points, strict=True)
        axes.loglog(intensity, [1e-6 * r for r in rate], "o", ms=3, label=op)
    corner = flops_per_ms / bytes_per_ms
    every = [intensity for points in by_op.values() for intensity, _ in points] + [corner]
    ends = [min(every) / 2, corner, max(every) * 2]
    axes.loglog(ends, [1e-6 * min(flops_per_ms, bytes_per_ms * at) for at in ends], "k-", lw=1)
    title = f"cold caches: {1e-6 * bytes_per_ms:.3g} GB/s, {1e-6 * flops_per_ms:.3g} GFLOP/s in float32"
    axes.set(title=title, xlabel="operations per byte", ylabel="GFLOP/s")
    axes.legend(fontsize="small", loc="lower right")
