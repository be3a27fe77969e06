"""A circuit as a program: it runs by itself, is saved as a folder of two files, and can be looked at."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..models import GPT, GPTConfig
from .about import About, Context, Edge, Link, Node, Prompt
from .calibrate import Calibration
from .nodes import INPUTS, EdgeGroup, Layout, Means, count_edges, edges_between, edges_without
from .page import page
from .picture import picture
from .prune import Cut, Subject

FORMAT = 1
DESCRIPTION, WEIGHTS = "circuit.json", "circuit.safetensors"


class CircuitError(Exception):
    """A folder that holds no circuit that can be read; the message says why."""


class Circuit(nn.Module):
    """A model of which only some nodes and edges still vary; everything else is at its mean.

    Args:
        model: its weights become part of the circuit.
        means: see :func:`sparsekern.circuits.mean_activations`.
        cut: what to keep, and how the logits are calibrated.
        about: the task.
        nodes: descriptions of the nodes kept; bare ones unless given.

    Attributes:
        model: the whole model; ``subject`` the model with its means; ``cut`` what is kept.
        nodes, edges: tuples of :class:`Node` and :class:`Edge`, in the order in which they run.
    """

    def __init__(
        self, model: GPT, means: Means, cut: Cut, about: About | None = None, nodes: Sequence[Node] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        layout = Layout.of(model.config)
        self.register_buffer("means", layout.join(means))
        ys = [means[f"{i}.attn.y"] for i in range(model.config.n_layer)]
        self.register_buffer("y_means", torch.stack(ys))
        self.cut = cut
        self.about = about or About()
        names = [layout.name(int(node)) for node in cut.nodes.nonzero()[:, 0]]
        self.nodes = tuple(Node(*name) for name in names) if nodes is None else tuple(nodes)
        groups = self.subject.edges(cut)
        self.edges = tuple(edge for group in groups for edge in _edges_of(group, layout))

    @property
    def subject(self) -> Subject:
        means: dict[str, Tensor] = Layout.of(self.model.config).split(self.means)  # type: ignore[arg-type]
        ys: Tensor = self.y_means  # type: ignore[assignment]
        return Subject(self.model, {**means, **{f"{i}.{INPUTS['attn.v']}": y for i, y in enumerate(ys)}})

    def forward(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Calibrated logits, of the shapes that :meth:`sparsekern.models.GPT.forward` gives."""
        subject = self.subject
        with subject.cut(self.cut.to(subject.device)) as model:
            return self.cut.calibration.logits(model(ids, at))

    def __repr__(self) -> str:
        return f"Circuit(task={self.about.task!r}, nodes={len(self.nodes)}, edges={len(self.edges)})"

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write ``circuit.json``, which can be read by a person, and ``circuit.safetensors`` into a folder.

        Raises:
            CheckpointError: a file could not be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        checkpoint.save_weights(folder / WEIGHTS, self, {})
        checkpoint.write_atomically(folder / DESCRIPTION, lambda to: to.write_text(text + "\n", encoding="utf-8"))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights of the model, as JSON has it."""
        return {
            "format": FORMAT,
            "model": asdict(self.model.config),
            "calibration": asdict(self.cut.calibration),
            "about": asdict(self.about),
            "nodes": [asdict(node) for node in self.nodes],
            "edges": [asdict(edge) for edge in self.edges],
        }

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page to explore the circuit in a browser; also written to ``path``, if given."""
        data = {**self.to_dict(), "d_head": self.model.config.d_head}
        text = page(data, f"{self.about.task or 'circuit'}: {len(self.nodes)} nodes, {len(self.edges)} edges")
        if path is not None:
            checkpoint.write_atomically(Path(path), lambda to: to.write_text(text, encoding="utf-8"))
        return text

    def to_picture(self, path: str | Path) -> None:
        """Draw the graph for a paper; the suffix of ``path`` decides: .png, .svg or .pdf."""
        picture(self.nodes, self.edges, self.model.config.d_head, Path(path))

    @classmethod
    def load(cls, folder: str | Path) -> "Circuit":
        """Read what :meth:`save` wrote; nothing in the files is executed.

        Raises:
            CircuitError: the description is missing, damaged, or names nodes or edges that the model has not.
            CheckpointError: the same of the weights.
        """
        folder = Path(folder)
        try:
            data = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT}, got {data['format']!r}")
            config = GPTConfig(**data["model"])
            _require_fits(config, (folder / WEIGHTS).stat().st_size)
            nodes = tuple(_node_of(node) for node in data["nodes"])
            calibration, about = Calibration(**data["calibration"]), _about_of(data["about"])
            kept = {(edge["matrix"], edge["row"], edge["column"]) for edge in data["edges"]}
            mask = _mask(nodes, config)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CircuitError(f"could not read {folder / DESCRIPTION}: {type(error).__name__}: {error}") from error
        model = GPT(config, density=0.0)
        zeros = {name: torch.zeros(width) for name, width in _mean_widths(config).items()}
        circuit = cls(model, zeros, Cut(mask), about, nodes)
        checkpoint.load(folder / WEIGHTS, circuit)
        between = edges_between(model, mask)
        cut = Cut(mask, tuple(edges_without(between, kept)), calibration)
        if count_edges(between) - count_edges(cut.removed) != len(kept):
            raise CircuitError(f"could not read {folder / DESCRIPTION}: edges that the model has not")
        means = circuit.subject.means
        return cls(model, means, cut, about, nodes)


def _require_fits(config: GPTConfig, size: int) -> None:
    """Raises ValueError for a model larger than its file, before memory is asked for: each row and node is stored."""
    width = config.heads * config.d_head
    nodes = config.n_layer * (2 * config.width_read + 2 * config.d_model + 3 * width + config.mlp_width)
    tables = config.vocab_size * (1 if config.tied_unembed else 2)
    rows = tables + config.block_size * (config.d_pos_emb or 1) + config.n_layer * (3 * width + config.mlp_width)
    table = config.vocab_size**2 if config.enable_bigram_table else 0
    if 4 * (nodes + rows + table) > size:
        raise ValueError(f"{WEIGHTS} is too small, {size:,} bytes, for a model of {nodes + rows + table:,} numbers")


def _edges_of(group: EdgeGroup, layout: Layout) -> list[Edge]:
    return [
        Edge(group.matrix, row, column, weight, layout.name(source), layout.name(target))
        for row, column, weight, source, target in zip(*(part.tolist() for part in group.parts), strict=True)
    ]


def _mean_widths(config: GPTConfig) -> dict[str, int]:
    layout = Layout.of(config)
    widths = {name: part.stop - part.start for name, part in layout.slices.items()}
    return widths | {f"{i}.attn.y": widths[f"{i}.attn.v"] for i in range(config.n_layer)}


def _mask(nodes: Sequence[Node], config: GPTConfig) -> Tensor:
    layout = Layout.of(config)
    mask = torch.zeros(layout.size, dtype=torch.bool)
    for node in nodes:
        part = layout.slices[node.location]
        if not 0 <= node.channel < part.stop - part.start:
            raise ValueError(f"{node.location} has no channel {node.channel}")
        mask[part.start + node.channel] = True
    return mask


def _node_of(data: dict[str, Any]) -> Node:
    contexts = tuple(Context(tuple(c["tokens"]), tuple(c["activations"]), c["peak"]) for c in data["contexts"])
    activations = tuple(map(tuple, data["activations"]))
    return Node(data["location"], data["channel"], data["mean"], data["effect"], activations, contexts)


def _about_of(data: dict[str, Any]) -> About:
    prompts = tuple(Prompt(tuple(p["tokens"]), p["answer"], p["other"], p["margin"]) for p in data["prompts"])
    links = tuple(Link(k["location"], k["channel"], tuple(map(tuple, k["tokens"]))) for k in data["links"])
    return About(**{**data, "prompts": prompts, "links": links})
