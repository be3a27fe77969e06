"""Circuits as the released viewer has them: ``viz_data.pt``, in and out.

Their losses are sums over the two sides of a pair, twice the mean per sequence that this library has everywhere: they
are doubled on the way out and halved on the way in. Their circuits are sets of nodes; edges that were cut here, and how
the logits are calibrated, go into a key of our own ("sparsekern"), which their viewer does not look at.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..models import GPT
from .about import About
from .calibrate import Calibration
from .circuit import Circuit, CircuitError
from .hooks import record
from .nodes import Layout, Means, edges_between, edges_without
from .prune import Cut, Subject, edge_effects
from .tasks import Pairs

SAMPLES = 16  # pairs whose activations are written
TWICE = 2.0  # their losses in ours
OURS = "sparsekern"


def save_viz_data(circuit: Circuit, path: str | Path, pairs: Pairs) -> None:
    """Write a circuit as the released viewer reads it.

    Effects of edges (``pair_data``) are first-order estimates; ``samples``, the viewer's pieces of the training corpus,
    are left empty.

    Args:
        circuit: any.
        path: of the file, ``viz_data.pt`` there.
        pairs: of its task; losses are taken on all of them, and activations written of the first 16.

    Raises:
        CheckpointError: the file could not be written.
    """
    subject, cut = circuit.subject, circuit.cut
    kept = _channels(circuit)
    loss = subject.loss(pairs, cut)
    few = pairs[:SAMPLES]
    importances = {
        "beeg_model_config": asdict(circuit.model.config),
        "loss": TWICE * subject.loss(pairs),
        "interv_loss": TWICE * loss,
        "ch_interv_losses": {
            location: [TWICE * _loss_without(subject, pairs, cut, [(location, c)]) for c in channels]
            for location, channels in kept.items()
        },
        "loc_interv_losses": {
            location: TWICE * _loss_without(subject, pairs, cut, [(location, c) for c in channels])
            for location, channels in kept.items()
        },
        # this one is halved already, as far as can be told from what their viewer makes of it
        "layer_interv_losses": {
            layer: _loss_without(subject, pairs, cut, nodes) for layer, nodes in _by_layer(kept).items()
        },
        "pair_data": _pair_data(circuit, _effects(circuit, pairs)),
        "pair_data_connections": _pair_data(circuit, [edge.weight for edge in circuit.edges]),
        "task_samples": (few.ids.cpu(), _activations(circuit, few, kept)),
    }
    payload = {
        "circuit_data": {location: torch.tensor(channels) for location, channels in kept.items()},
        "samples": {},
        "importances": importances,
        "num_total_nodes": subject.layout.size,
        "all_loss": [],
        "prune_config": {},
        OURS: {
            "task": circuit.about.task,
            "calibration": asdict(cut.calibration),
            "edges": [(edge.matrix, edge.row, edge.column) for edge in circuit.edges],
        },
    }
    checkpoint.write_atomically(Path(path), lambda to: torch.save(payload, to))


def load_viz_data(path: str | Path, model: GPT, means: Means) -> Circuit:
    """A circuit that runs, from a payload of the released viewer, or from :func:`save_viz_data`.

    ``about.checks`` has the losses of model and circuit that the file states, per sequence. Nothing is executed.

    Args:
        path: of the file.
        model: that the circuit is of.
        means: of :func:`sparsekern.circuits.mean_activations`.

    Raises:
        CircuitError: the file is missing or damaged, or names nodes or edges that the model has not.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        mask = _mask(payload["circuit_data"], Layout.of(model.config))
        stated, ours = payload["importances"], payload.get(OURS)
        losses = {"model_loss": float(stated["loss"]) / TWICE, "circuit_loss": float(stated["interv_loss"]) / TWICE}
        if ours is None:
            return Circuit(model, means, Cut(mask), About(checks=losses))
        edges = {(str(matrix), int(row), int(column)) for matrix, row, column in ours["edges"]}
        between = edges_between(model, mask)
        if len(edges - {(group.matrix, *place) for group in between for place in group.places}):
            raise ValueError("edges that the model has not")
        cut = Cut(mask, tuple(edges_without(between, edges)), Calibration(**ours["calibration"]))
        return Circuit(model, means, cut, About(task=str(ours["task"]), checks=losses))
    except Exception as error:  # what a damaged file raises is not documented
        reason = str(error).strip().splitlines()
        what = reason[0] if reason else "no reason is given"
        raise CircuitError(f"could not read {path}: {type(error).__name__}: {what}") from error


def _mask(kept: dict[str, Tensor], layout: Layout) -> Tensor:
    mask = torch.zeros(layout.size, dtype=torch.bool)
    for location, channels in kept.items():
        part = layout.slices[location]
        numbers = torch.as_tensor(channels).long()
        if numbers.dim() != 1 or ((numbers < 0) | (numbers >= part.stop - part.start)).any():
            raise ValueError(f"{location} has {part.stop - part.start} channels, not all of those named")
        mask[part.start + numbers] = True
    return mask


def _channels(circuit: Circuit) -> dict[str, list[int]]:
    """Every location, also those without a node, as in the released files."""
    parts = circuit.subject.layout.split(circuit.cut.nodes)
    return {location: part.nonzero()[:, 0].tolist() for location, part in parts.items()}


def _by_layer(kept: dict[str, list[int]]) -> dict[str, list[tuple[str, int]]]:
    """Nodes by sublayer, "3.attn" for "3.attn.act_in"; the last residual is one of its own."""
    found: dict[str, list[tuple[str, int]]] = {}
    for location, channels in kept.items():
        found.setdefault(location.rpartition(".")[0] or location, []).extend((location, c) for c in channels)
    return found


def _loss_without(subject: Subject, pairs: Pairs, cut: Cut, nodes: list[tuple[str, int]]) -> float:
    mask = cut.nodes.clone()
    for location, channel in nodes:
        mask[subject.layout.slices[location].start + channel] = False
    left = [group[mask[group.sources] & mask[group.targets]] for group in cut.removed]
    return subject.loss(pairs, Cut(mask, tuple(group for group in left if len(group)), cut.calibration))


def _effects(circuit: Circuit, pairs: Pairs) -> list[float]:
    subject = circuit.subject
    groups = subject.edges(circuit.cut)
    return [effect for part in edge_effects(subject, pairs, circuit.cut, groups) for effect in part.tolist()]


def _pair_data(circuit: Circuit, numbers: list[float]) -> list[list[Any]]:
    """For each pair of locations with edges: a matrix source x target, the channels of both, and the two names."""
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for edge, number in zip(circuit.edges, numbers, strict=True):
        ends = edge.source[0], edge.target[0]
        found.setdefault(ends, {})[edge.source[1], edge.target[1]] = number
    return [[*_matrix(places), ends] for ends, places in found.items()]


def _matrix(places: dict[tuple[int, int], float]) -> tuple[Tensor, list[int], list[int]]:
    sources, targets = (sorted({place[side] for place in places}) for side in (0, 1))
    matrix = torch.zeros(len(sources), len(targets))
    for (source, target), number in places.items():
        matrix[sources.index(source), targets.index(target)] = number
    return matrix, sources, targets


@torch.no_grad()
def _activations(circuit: Circuit, pairs: Pairs, kept: dict[str, list[int]]) -> dict[str, dict[int, Tensor]]:
    with record(circuit.model, "|".join(map(_escaped, kept))) as acts:
        circuit(pairs.ids)
    return {name: {c: acts[name][..., c].cpu().clone() for c in channels} for name, channels in kept.items()}


def _escaped(location: str) -> str:
    return location.replace(".", r"\.")
