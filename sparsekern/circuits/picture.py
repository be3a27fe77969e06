"""A circuit's graph for a paper: rows from the embedding (below) to the unembedding (above)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from .. import checkpoint
from .about import Edge, Node
from .nodes import NODE_PLACES

# of the places of a layer, from below: q, k and v side by side
QKV = ("attn.q", "attn.k", "attn.v")
ROWS = {place: row for row, place in enumerate(dict.fromkeys("qkv" if p in QKV else p for p in NODE_PLACES))}
POSITIVE, NEGATIVE, LINK = "#1f6fb4", "#c05a11", "#9aa5b5"
SWEEPS = 6

Name = tuple[str, int]


def picture(nodes: Sequence[Node], edges: Sequence[Edge], d_head: int, path: Path) -> None:
    """Draw nodes (darker: the loss rises more without), weights (dashed: negative) and residual channels (dotted)."""
    rows: dict[int, list[Name]] = defaultdict(list)
    for node in nodes:
        rows[_row(node.location)].append((node.location, node.channel))
    joined = [(edge.source, edge.target) for edge in edges]
    links = _residual_links(nodes)
    x = _settled(rows, joined + links)
    y = {name: height for height, row in enumerate(sorted(rows)) for name in rows[row]}
    widest = max(map(len, rows.values()), default=1)

    figure = Figure(figsize=(1.5 + 0.45 * widest, 0.6 + 0.75 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    for a, b in links:
        axes.plot([x[a], x[b]], [y[a], y[b]], color=LINK, linestyle=":", linewidth=0.8, zorder=1)
    strongest = max((abs(edge.weight) for edge in edges), default=1.0)
    for edge in edges:
        sign = {"color": NEGATIVE, "linestyle": "--"} if edge.weight < 0 else {"color": POSITIVE}
        ends = [x[edge.source], x[edge.target]], [y[edge.source], y[edge.target]]
        axes.plot(*ends, linewidth=0.5 + 2.5 * abs(edge.weight) / strongest, zorder=2, **sign)  # type: ignore[arg-type]
    greatest = max((abs(node.effect) for node in nodes), default=0.0) or 1.0
    for node in nodes:
        name = node.location, node.channel
        shade = 1 - 0.8 * min(1.0, abs(node.effect) / greatest)
        axes.scatter(x[name], y[name], s=70, color=str(shade), edgecolors="black", linewidths=0.8, zorder=3)
        above = {"xytext": (0, 7), "textcoords": "offset points"}
        axes.annotate(_label(node, d_head), (x[name], y[name]), ha="center", fontsize=6, **above)  # type: ignore[arg-type]
    for height, row in enumerate(sorted(rows)):
        axes.text(-0.08, height, rows[row][0][0].replace("attn.q", "attn.qkv"), ha="right", va="center", fontsize=7)
    axes.margins(0.08, 0.12)
    checkpoint.write_atomically(path, lambda to: figure.savefig(to, format=path.suffix.lstrip(".") or "png", dpi=200))


def _row(location: str) -> int:
    if location == "final_resid":
        return 1_000_000
    layer, _, place = location.partition(".")
    return len(ROWS) * int(layer) + ROWS["qkv" if place in QKV else place]


def _label(node: Node, d_head: int) -> str:
    place = node.location[-2:]
    if place in (".q", ".k", ".v"):
        return f"{place[1]}{node.channel // d_head}.{node.channel % d_head}"
    return str(node.channel)


def _residual_links(nodes: Sequence[Node]) -> list[tuple[Name, Name]]:
    """From each node that writes a residual channel to those that read it later."""
    writers = [n for n in nodes if n.location.endswith("resid_delta")]
    readers = [n for n in nodes if n.location.endswith("act_in") or n.location == "final_resid"]
    return [
        ((w.location, w.channel), (r.location, r.channel))
        for w in writers
        for r in readers
        if w.channel == r.channel and _row(w.location) < _row(r.location)
    ]


def _settled(rows: dict[int, list[Name]], joined: list[tuple[Name, Name]]) -> dict[Name, float]:
    """Places from 0 to 1 in each row, ordered by the middle of the neighbours, a few times up and down."""
    near: dict[Name, list[Name]] = defaultdict(list)
    for a, b in joined:
        near[a].append(b)
        near[b].append(a)
    x: dict[Name, float] = {}

    def spread(row: list[Name]) -> None:
        x.update({name: (i + 0.5) / len(row) for i, name in enumerate(row)})

    for row in rows.values():
        spread(row)
    for sweep in range(SWEEPS):
        for key in sorted(rows, reverse=bool(sweep % 2)):
            middles = {name: fmean(x[n] for n in near[name] or [name]) for name in rows[key]}
            rows[key].sort(key=lambda name, middles=middles: (middles[name], name))  # type: ignore[misc]
            spread(rows[key])
    return x
