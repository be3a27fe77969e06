"""``sparsify_``: replace the dense layers of a model by sparse ones."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..formats import Block
from .linear import BlockSparseLinear, SparseEmbedding, SparseLinear
from .weight import BlockSparseWeight, SparseWeight

# They hand their children's weights to a kernel of their own, the second one in ``eval`` mode.
READ_WEIGHTS_THEMSELVES = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def sparsify_(
    model: nn.Module,
    *,
    density: float,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    block: Block | None = None,
) -> nn.Module:
    """Replace every ``nn.Linear`` and ``nn.Embedding`` by a sparse layer that keeps its largest magnitudes, in place.

    Hugging Face's ``Conv1D``, a linear layer with its weight transposed, is replaced too. Layers used in several places
    and weights shared between layers stay shared. What looks like such a layer but may do something else with its
    weight is left dense, and a warning names it with the reason: subclasses, embeddings with ``padding_idx``,
    ``max_norm``, ``scale_grad_by_freq`` or ``sparse``, and the children of ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer``, which read their weights themselves.

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
    weights: dict[tuple[int, bool], SparseWeight] = {}  # by identity of the dense Parameter, and whether transposed
    named = dict(model.named_modules(remove_duplicate=False))
    wanted = {name: m for name, m in named.items() if _matches(name, included) and not _matches(name, excluded)}
    left = {name: reason for name, m in wanted.items() if (reason := _why_not(name, m, named))}
    tables = {id(m.weight) for m in named.values() if type(m) is nn.Embedding}
    for name, layer in wanted.items():
        if name in left or not _is_linear_or_table(layer):
            continue
        if id(layer) not in layers:
            key = id(layer.weight), _is_conv1d(layer)
            if key not in weights:
                weights[key] = _sparse(layer, density, None if id(layer.weight) in tables else block)
            layers[id(layer)] = _wrap(layer, weights[key])
        if not name:
            return layers[id(layer)]
        model.set_submodule(name, layers[id(layer)])
    listed = "; ".join(f"{name or 'the model'} ({reason})" for name, reason in left.items())
    if not layers:
        why = f"; left dense: {listed}" if listed else ""
        raise ValueError(f"sparsify_: no nn.Linear or nn.Embedding matches include={included}, exclude={excluded}{why}")
    if listed:
        warnings.warn(f"sparsify_ left dense: {listed}", stacklevel=2)
    return model


def _is_linear_or_table(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Embedding) or _is_conv1d(layer)


def _is_conv1d(layer: nn.Module) -> bool:
    """Hugging Face's: ``x @ weight + bias``, weight (in, out). By name, as their library need not be there."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers.")


def _why_not(name: str, layer: nn.Module, named: Mapping[str, nn.Module]) -> str | None:
    """Why a layer that looks as if it could be replaced must not be; None if it can, or is something else."""
    if not isinstance(layer, nn.Linear | nn.Embedding):
        return None
    for parent in _parents(name):
        if isinstance(named[parent], READ_WEIGHTS_THEMSELVES):
            return f"{type(named[parent]).__name__} reads its weight itself"
    if not _is_linear_or_table(layer):
        return f"{type(layer).__name__} is a subclass"
    if isinstance(layer, nn.Embedding):
        options = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
        used = [option for option, off in options.items() if getattr(layer, option) != off]
        return f"it has {' and '.join(used)}" if used else None
    return None


def _parents(name: str) -> Iterator[str]:
    """Qualified names of all modules around one, the nearest first; the model itself is ""."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _sparse(layer: nn.Module, density: float, block: Block | None) -> SparseWeight:
    dense: Tensor = layer.weight.T if _is_conv1d(layer) else layer.weight  # type: ignore[assignment,union-attr]
    if block is None:
        return SparseWeight.from_parameter(dense, density=density)
    return BlockSparseWeight.from_parameter(dense, block, density=density)


def _wrap(layer: nn.Module, weight: SparseWeight) -> nn.Module:
    wrapped: nn.Module
    if isinstance(layer, nn.Embedding):
        wrapped = SparseEmbedding.from_weight(weight)
    else:
        kind = SparseLinear if weight.block is None else BlockSparseLinear
        wrapped = kind.from_weight(weight, layer.bias)  # type: ignore[arg-type]
    return wrapped.train(layer.training)
