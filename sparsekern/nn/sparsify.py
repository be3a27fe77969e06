"""``sparsify_``: replace the dense layers of a model by sparse ones."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from .linear import SparseEmbedding, SparseLinear
from .weight import SparseWeight


def sparsify_(
    model: nn.Module,
    *,
    density: float,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
) -> nn.Module:
    """Replace every ``nn.Linear`` and ``nn.Embedding`` by a sparse layer that keeps its largest magnitudes, in place.

    Layers used in several places and weights shared between layers stay shared. Subclasses are left alone, as they may
    do something else with their weight, and so are embeddings with ``padding_idx``, ``max_norm``,
    ``scale_grad_by_freq`` or ``sparse``.

    Args:
        model: any module; if it is itself a layer to replace, use the return value.
        density: fraction of the entries kept, per layer.
        include, exclude: shell-style patterns of qualified module names (``"blocks.*.mlp.*"``).

    Returns:
        The model.

    Raises:
        ValueError: ``density`` out of range, or nothing to replace.
    """
    included, excluded = ([p] if isinstance(p, str) else list(p) for p in (include, exclude))
    layers: dict[int, nn.Module] = {}  # by identity of the dense layer
    weights: dict[int, SparseWeight] = {}  # by identity of the dense Parameter
    for name, layer in list(_dense_layers(model)):
        if not _matches(name, included) or _matches(name, excluded):
            continue
        if id(layer) not in layers:
            if id(layer.weight) not in weights:
                weights[id(layer.weight)] = SparseWeight.from_parameter(layer.weight, density=density)
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


def _wrap(layer: nn.Linear | nn.Embedding, weight: SparseWeight) -> nn.Module:
    wrapped: nn.Module
    if isinstance(layer, nn.Linear):
        wrapped = SparseLinear.from_weight(weight, layer.bias)
    else:
        wrapped = SparseEmbedding.from_weight(weight)
    return wrapped.train(layer.training)
