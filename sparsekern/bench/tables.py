"""Tables (markdown) and a picture of the studies, from the rows of their results."""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..recipe import TrainConfig

# 97.5 % quantiles of Student's t by degrees of freedom; the last one for all beyond
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
WHOLE_RUN = 20_000  # steps; the mean over a schedule hardly depends on them

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    n = len(differences)
    spread = float(np.std(differences, ddof=1)) if n > 1 else math.inf
    return float(np.mean(differences)), _T[min(n - 1, len(_T) - 1)] * spread / math.sqrt(n)


def against_exact(rows: list[Row], study: str) -> str:
    """Held-out loss of every method, and what it is behind exact mode of the same seed, in percent of its loss."""
    loss: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["study"] == study:
            setting = f"{row['setting']}, rate {row['lr']}, anneal {float(row['anneal_end']):.0%}"
            loss[setting][row["method"]][row["seed"]] = float(row["held_out"])
    lines = []
    for setting, methods in loss.items():
        exact = methods.get("exact", {})
        for method, by_seed in methods.items():
            behind = [100 * (v / exact[seed] - 1) for seed, v in by_seed.items() if seed in exact]
            mean, half = interval(behind) if behind else (math.nan, math.nan)
            error = f" ± {half:.2f}" if math.isfinite(half) and method != "exact" else ""
            gap = "" if method == "exact" else f"{mean:+.2f}{error} %"
            lines.append([setting, method, str(len(by_seed)), f"{np.mean(list(by_seed.values())):.4f}", gap])
    return markdown(["setting", "method", "seeds", "held-out loss", "behind exact"], lines)


PARTS = ("linears", "attention", "abs_topk", "rest", "update", "total")


def speed(rows: list[Row]) -> str:
    """Seconds of a step by parts, the ratio to the best masked dense one of the same size, and megabytes held."""
    held = {(r["d_model"], r["what"]): f"{float(r['bytes']) / 1e6:,.0f}" for r in rows if r["study"] == "memory"}
    rows = [r for r in rows if r["study"] == "speed" and r["linears"]]
    lines = []
    for row in rows:
        rivals = [float(r["total"]) for r in rows if r["d_model"] == row["d_model"] and r["what"].startswith("masked")]
        seconds = [f"{float(row[part]):.2f}" for part in PARTS]
        ratio = f"{min(rivals) / float(row['total']):.1f}"
        lines.append([f"{row['d_model']}, {row['what']}", *seconds, ratio, held.get((row["d_model"], row["what"]), "")])
    header = ["d_model", "linears", "attention", "AbsTopK", "rest", "update", "all", "x masked dense", "MB"]
    return markdown(header, lines)


def whole_run(rows: list[Row], config: TrainConfig, study: str) -> dict[str, float]:
    """Mean seconds per step of runs of ``config`` at the largest size that was timed: "sparse" (exact mode up to its
    switch point), "exact" and "masked dense".

    Exact mode's seconds are interpolated between the densities at which it was timed; sparse mode's include refreshes.
    """
    rows = [r for r in rows if r["study"] == study]
    largest = max(int(r["d_model"]) for r in rows)
    total = {r["what"]: float(r["total"]) for r in rows if int(r["d_model"]) == largest}
    along = sorted((float(r["density"]), float(r["total"])) for r in rows if r["what"].startswith("exact at"))
    sparse_step = total["sparse"] + total["refresh"] / config.refresh_every
    schedule = config.schedule(config.density)
    exact, sparse = [], []
    for step in range(0, WHOLE_RUN, 100):
        density = schedule.density(step, WHOLE_RUN, config.density)
        exact.append(float(np.interp(math.log(density), [math.log(d) for d, _ in along], [s for _, s in along])))
        sparse.append(sparse_step if config.is_sparse_after(density) else exact[-1])
    masked = min(seconds for name, seconds in total.items() if name.startswith("masked"))
    return {"sparse": float(np.mean(sparse)), "exact": float(np.mean(exact)), "masked dense": masked}


def price(runs: list[Row], timed: list[Row], setting: str, method: str, config: TrainConfig) -> str:
    """What a run of ``setting`` takes in seconds, trained in three ways, against the cheapest dense model that is at
    least as good as sparse mode makes it by ``method``, of which ``config`` is. Losses are of whole runs; seconds are
    their steps times those of a step."""
    of_setting = [r for r in runs if r["study"] == "parity" and r["setting"] == setting]
    loss = {
        what: float(np.mean([float(r["held_out"]) for r in of_setting if r["method"] == name] or math.nan))
        for what, name in (("sparse", method), ("exact", "exact"))
    }
    dense_step = {int(r["d_model"]): float(r["total"]) for r in timed if (r["study"], r["what"]) == ("price", "dense")}
    dense = []
    for row in runs:
        if row["study"] == "cost" and float(row["held_out"]) <= loss["sparse"]:
            _, width, _, steps, _ = row["setting"].replace(",", "").split()
            dense.append((int(steps) * dense_step[int(width)], float(row["held_out"]), row["setting"]))
    if not dense or "sparse" not in {r["what"] for r in timed if r["study"] == "price"}:
        return "not yet measured"
    cheapest, reached, name = min(dense)
    seconds = {what: config.steps * each for what, each in whole_run(timed, config, "price").items()}
    lines = [[name, f"{reached:.3f}", f"{cheapest:.0f}", "1"]]
    for what, value in (("sparse", loss["sparse"]), ("exact", loss["exact"]), ("masked dense", loss["exact"])):
        lines.append([f"{setting}, {what}", f"{value:.3f}", f"{seconds[what]:.0f}", f"{seconds[what] / cheapest:.0f}"])
    return markdown(["model", "held-out loss", "seconds", "x dense"], lines)


def plot_scale(rows: list[Row], path: Path) -> None:
    """Seconds of a step and peak memory over the nonzeros: more of them at one width, and ever wider models."""
    from matplotlib.figure import Figure

    rows = [r for r in rows if r["study"] == "scale"]
    widths = [r["d_model"] for r in rows]
    fixed = [r for r in rows if widths.count(r["d_model"]) > 1]
    growing = sorted((r for r in rows if widths.count(r["d_model"]) == 1), key=lambda r: int(r["nnz"]))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (("total", 1, "seconds per step"), ("bytes", 1e9, "peak memory of the process (GB)"))
    for axes, (column, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for series, name in ((fixed, f"d_model {fixed[0]['d_model']}, ever denser"), (growing, "ever wider")):
            millions, values = ([float(r[of]) / by for r in series] for of, by in (("nnz", 1e6), (column, unit)))
            axes.loglog(millions, values, "o-", ms=4, label=name)
            if series is growing:
                for row, *at in zip(growing, millions, values, strict=True):
                    axes.annotate(f" {row['d_model']}", at, fontsize="x-small", va="top")
                ideal = [values[-1] * m / millions[-1] for m in millions]
                axes.loglog(millions, ideal, "k:", lw=1, label="proportional to the nonzeros")
        axes.set(xlabel="nonzeros (millions)", ylabel=label)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
