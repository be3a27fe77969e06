"""Tables of the studies, as markdown, from the rows of their results."""

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
            loss[f"{row['setting']}, anneal {float(row['anneal_end']):.0%}"][row["method"]][row["seed"]] = float(
                row["held_out"]
            )
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


def whole_run(rows: list[Row], config: TrainConfig) -> tuple[float, float]:
    """Mean seconds per step of a run of ``config`` at the largest size that was measured, and of masked dense.

    Exact mode's seconds are interpolated between the densities at which it was timed; sparse mode's include refreshes.
    """
    largest = max(int(r["d_model"]) for r in rows if r["study"] == "speed")
    total = {r["what"]: float(r["total"]) for r in rows if r["study"] == "speed" and int(r["d_model"]) == largest}
    along = sorted((float(r["density"]), float(r["total"])) for r in rows if r["what"].startswith("exact at"))
    schedule = config.schedule(config.density)
    sparse = total["sparse"] + total["refresh"] / config.refresh_every
    seconds = []
    for step in range(0, WHOLE_RUN, 100):
        density = schedule.density(step, WHOLE_RUN, config.density)
        exact = np.interp(math.log(density), [math.log(d) for d, _ in along], [s for _, s in along])
        seconds.append(sparse if config.is_sparse_after(density) else float(exact))
    return float(np.mean(seconds)), min(s for name, s in total.items() if name.startswith("masked"))
