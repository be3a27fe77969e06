"""``sparsify_``: replace the dense layers of a model by sparse ones."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..formats import Block
from .linear import BlockSparseLinear, SparseEmbedding, SparseLinear
from .weight import BlockSparseWeight, SparseWeight


def sparsify_(
    model: nn.Module,
    *,
    density: float,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    block: Block | None = None,
) -> nn.Module:
    """Replace every ``nn.Linear`` and ``nn.Embedding`` by a sparse layer that keeps its largest magnitudes, in place.

    Layers used in several places and weights shared between layers stay shared. Subclasses are left alone, as they may
    do something else with their weight, and so are embeddings with ``padding_idx``, ``max_norm``,
    ``scale_grad_by_freq`` or ``sparse``.

    Args:
        model: any module; if it is itself a layer to replace, use the return value.
        density: fraction of the entries (or blocks) kept, per layer; rounded down to a count, which may be 0.
        include, exclude: shell-style patterns of qualified module names (``"blocks.*.mlp.*"``).
        block: sides of the dense blocks that linear layers keep; of an embedding, and of a linear layer tied to one,
            single entries are kept all the same.

    Returns:
        The model.

    Raises:
        ValueError: ``density`` out of range, a side of ``block`` without kernels, or nothing to replace.
    """
    included, excluded = ([p] if isinstance(p, str) else list(p) for p in (include, exclude))
    layers: dict[int, nn.Module] = {}  # by identity of the dense layer
    weights: dict[int, SparseWeight] = {}  # by identity of the dense Parameter
    found = list(_dense_layers(model))
    tables = {id(layer.weight) for _, layer in found if isinstance(layer, nn.Embedding)}
    for name, layer in found:
        if not _matches(name, included) or _matches(name, excluded):
            continue
        if id(layer) not in layers:
            if id(layer.weight) not in weights:
                blocks = None if id(layer.weight) in tables else block
                weights[id(layer.weight)] = _sparse(layer.weight, density, blocks)
            layers[id(layer)] = _wrap(layer, weights[id(layer.weight)])
        if not name:
            return layers[id(layer)]
        model.set_submodule(name, layers[id(layer)])
    if not layers:
        raise ValueError(f"sparsify_: no nn.Linear or nn.Embedding matches include={included}, exclude={excluded}")
    return model


def _dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is nn.Linear or (type(module) is nn.Embedding and _is_plain(module)):
            yield name, module


def _is_plain(table: nn.Embedding) -> bool:
    return table.padding_idx is None and table.max_norm is None and not (table.scale_grad_by_freq or table.sparse)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _sparse(dense: Tensor, density: float, block: Block | None) -> SparseWeight:
    if block is None:
        return SparseWeight.from_parameter(dense, density=density)
    return BlockSparseWeight.from_parameter(dense, block, density=density)


def _wrap(layer: nn.Linear | nn.Embedding, weight: SparseWeight) -> nn.Module:
    wrapped: nn.Module
    if isinstance(layer, nn.Linear):
        kind = SparseLinear if weight.block is None else BlockSparseLinear
        wrapped = kind.from_weight(weight, layer.bias)
    else:
        wrapped = SparseEmbedding.from_weight(weight)
    return wrapped.train(layer.training)
