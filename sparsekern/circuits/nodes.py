"""Nodes and edges of a GPT, and how it runs with some of them cut.

A *node* is a channel at one of eight places of a layer (Gao et al. 2025, section 2 and appendix A.5), or of the last
residual; a node that is cut has its mean over the training corpus instead, for every token. An *edge* is a nonzero
weight between two nodes that are kept; one that is cut passes on the mean of its input. The residual stream between the
places, embeddings, biases and the unembedding are no nodes, and their weights no edges.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import GPT, GPTConfig
from .hooks import intervene, record

NODE_PLACES = (
    "attn.act_in",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.resid_delta",
    "mlp.act_in",
    "mlp.post_act",
    "mlp.resid_delta",
)
# matrix -> where its rows and columns are nodes; attention passes on a value channel under its own number
ENDS = {
    "attn.c_attn": (("attn.q", "attn.k", "attn.v"), "attn.act_in"),
    "attn.c_proj": (("attn.resid_delta",), "attn.v"),
    "mlp.c_fc": (("mlp.post_act",), "mlp.act_in"),
    "mlp.c_proj": (("mlp.resid_delta",), "mlp.post_act"),
}
# what a matrix reads, where that is not the node itself: a cut edge passes on its mean
INPUTS = {"attn.v": "attn.y"}

Means = Mapping[str, Tensor]


def locations(config: GPTConfig) -> dict[str, int]:
    """Hook points that are nodes, in the order in which they run -> number of channels."""
    attention = config.heads * config.d_head
    widths = {"attn.q": attention, "attn.k": attention, "attn.v": attention, "mlp.post_act": config.mlp_width}
    widths |= {"attn.act_in": config.width_read, "mlp.act_in": config.width_read}
    names = {f"{i}.{place}": widths.get(place, config.d_model) for i in range(config.n_layer) for place in NODE_PLACES}
    return {**names, "final_resid": config.d_model}


@dataclass(frozen=True)
class Layout:
    """All nodes of a model in one row, location after location.

    Attributes:
        slices: where the nodes of a location are.
        size: number of nodes.
    """

    slices: Mapping[str, slice]
    size: int

    @classmethod
    def of(cls, config: GPTConfig) -> "Layout":
        slices, start = {}, 0
        for name, width in locations(config).items():
            slices[name] = slice(start, start + width)
            start += width
        return cls(slices, start)

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """(size,) -> location -> (channels,)."""
        return {name: row[part] for name, part in self.slices.items()}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Location -> (channels,) to (size,); other names are left out."""
        return torch.cat([parts[name] for name in self.slices])

    def name(self, node: int) -> tuple[str, int]:
        """Location and channel of a node."""
        name = next(name for name, part in self.slices.items() if node < part.stop)
        return name, node - self.slices[name].start


@torch.no_grad()
def mean_activations(model: GPT, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean of every channel over all tokens of ``batches`` of (B, T) ids: name -> (channels,), also of ``attn.y``."""
    names = "|".join([*map(re.escape, locations(model.config)), r"\d+\.attn\.y"])
    sums: dict[str, Tensor] = {}
    tokens = 0
    with record(model, names) as acts:
        for ids in batches:
            model(ids)
            tokens += ids.numel()
            for name, x in acts.items():
                sums[name] = sums.get(name, 0) + x.double().sum((0, 1))
    if not tokens:
        raise ValueError("batches: expected at least one, got none")
    dtype = model.ln_f.weight.dtype
    return {name: (total / tokens).to(dtype) for name, total in sums.items()}


@dataclass(frozen=True)
class EdgeGroup:
    """The edges of one matrix between nodes that are kept.

    Attributes:
        matrix: its name in the model, "0.mlp.c_fc".
        rows, columns: (E,) int64, of each edge in the matrix.
        weights: (E,).
        sources, targets: (E,) int64, the nodes (see :class:`Layout`) that an edge joins.
    """

    matrix: str
    rows: Tensor
    columns: Tensor
    weights: Tensor
    sources: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.rows, self.columns, self.weights, self.sources, self.targets

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of each edge."""
        return list(zip(self.rows.tolist(), self.columns.tolist(), strict=True))

    def __getitem__(self, which: Tensor) -> "EdgeGroup":
        return EdgeGroup(self.matrix, *(part[which] for part in self.parts))

    def to(self, device: torch.device | str) -> "EdgeGroup":
        return EdgeGroup(self.matrix, *(part.to(device) for part in self.parts))


@torch.no_grad()
def edges_between(model: GPT, nodes: Tensor) -> list[EdgeGroup]:
    """The weights that are not zero and join two nodes: ``nodes`` is a (nodes of the model,) bool.

    A matrix without any is left out.
    """
    layout = Layout.of(model.config)
    kept = layout.split(nodes)
    groups = []
    for i, block in enumerate(model.blocks):
        for matrix, (targets, source) in ENDS.items():
            dense = block.get_submodule(matrix).weight.to_dense()  # type: ignore[operator,union-attr]
            alive = torch.cat([kept[f"{i}.{target}"] for target in targets])
            rows, columns = (dense.masked_fill(~(alive[:, None] & kept[f"{i}.{source}"]), 0)).nonzero(as_tuple=True)
            first = layout.slices[f"{i}.{targets[0]}"].start  # q, k and v follow each other, as the rows do
            start = layout.slices[f"{i}.{source}"].start
            group = EdgeGroup(f"{i}.{matrix}", rows, columns, dense[rows, columns], columns + start, rows + first)
            groups += [group] if len(group) else []
    return groups


def count_edges(groups: Iterable[EdgeGroup]) -> int:
    """Edges of all groups together."""
    return sum(map(len, groups))


def edges_without(groups: Iterable[EdgeGroup], others: Collection[tuple[str, int, int]]) -> list[EdgeGroup]:
    """The edges of ``groups`` but ``others``, given as (matrix, row, column); groups that become empty are left out."""
    left = []
    for group in groups:
        stays = torch.tensor([(group.matrix, *place) not in others for place in group.places], device=group.rows.device)
        left += [group[stays]] if stays.any() else []
    return left


@contextmanager
def with_nodes(model: GPT, gates: Tensor, means: Means) -> Iterator[None]:
    """Let the model run with each node's activation mixed with its mean: ``gate * x + (1 - gate) * mean``.

    ``gates`` is (nodes of the model,), 1 where a node is kept and 0 where it is cut.
    """
    parts = Layout.of(model.config).split(gates)
    changes = {
        name: lambda x, gate=gate, mean=means[name]: torch.lerp(mean, x, gate)
        for name, gate in parts.items()
        if gate.requires_grad or not bool((gate == 1).all())
    }
    with intervene(model, changes):
        yield


@contextmanager
def with_constants(model: GPT, nodes: Tensor, means: Means) -> Iterator[None]:
    """Let sublayers of which no node is kept return what they write at their means, without being computed."""
    parts = Layout.of(model.config).split(nodes)
    skipped = [
        (block.get_submodule(sublayer), means[f"{i}.{sublayer}.resid_delta"])
        for i, block in enumerate(model.blocks)
        for sublayer in ("attn", "mlp")
        if not any(parts[f"{i}.{place}"].any() for place in NODE_PLACES if place.startswith(sublayer))
    ]
    try:
        for module, mean in skipped:
            module.forward = lambda x, mean=mean: mean.expand(*x.shape[:-1], -1)  # type: ignore[method-assign]
        yield
    finally:
        for module, _ in skipped:
            del module.forward


@contextmanager
def without_edges(
    model: GPT, groups: Iterable[EdgeGroup], means: Means, shares: Iterable[Tensor] | None = None
) -> Iterator[None]:
    """Let the model run with the inputs of some weights at their means.

    ``shares``, (E,) for each group, are how far each edge is cut: 1, unless given.
    """
    groups = list(groups)
    parts = [None] * len(groups) if shares is None else list(shares)
    with ExitStack() as hooks:
        for group, share in zip(groups, parts, strict=True):
            layer, _, matrix = group.matrix.partition(".")
            module = model.blocks[int(layer)].get_submodule(matrix)
            source = ENDS[matrix][1]
            mean = means[f"{layer}.{INPUTS.get(source, source)}"]
            hooks.enter_context(_cut(module, group, group.weights if share is None else share * group.weights, mean))
        yield


@contextmanager
def _cut(module: nn.Module, group: EdgeGroup, weights: Tensor, mean: Tensor) -> Iterator[None]:
    """Take from the module's output what these weights of its matrix add to it beyond the mean."""
    rows, row_of = group.rows.unique(return_inverse=True)
    columns, column_of = group.columns.unique(return_inverse=True)
    cut = weights.new_zeros(len(rows), len(columns)).index_put((row_of, column_of), weights)

    def subtract(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0][..., columns] - mean[columns]
        return output.index_add(-1, rows, -(x @ cut.T))

    handle = module.register_forward_hook(subtract)
    try:
        yield
    finally:
        handle.remove()
