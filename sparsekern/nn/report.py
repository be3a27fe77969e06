"""``report``: what is sparse in a model, which kernels compute it, and how fast they are beside dense ones."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import SparseEmbedding, SparseLinear

ROUNDS = 7
HEADINGS = ("layer", "kind", "shape", "nonzeros", "density", "kernel", "ms", "dense ms", "times as fast")


@dataclass(frozen=True)
class LayerReport:
    """One sparse layer.

    Attributes:
        name: qualified; ``kind``: its class.
        shape: (N, K); ``nnz``: entries stored; ``density``: their fraction.
        kernel: "csr", "bsr" or "dense"; ``reason``: why this one.
        sparse_ms, dense_ms: of a forward pass of the layer and of an equal dense one, if they were measured.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    nnz: int
    density: float
    kernel: str
    reason: str
    sparse_ms: float | None = None
    dense_ms: float | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the dense layer, if measured."""
        return None if self.sparse_ms is None or self.dense_ms is None else self.dense_ms / self.sparse_ms


@dataclass(frozen=True)
class Report:
    """All sparse layers of a model; prints as a table.

    Attributes:
        layers: each once, under its first name.
        parameters: numbers that the model trains, and how many it would if all of them were dense.
    """

    layers: tuple[LayerReport, ...]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [HEADINGS]
        for layer in self.layers:
            times = (layer.sparse_ms, layer.dense_ms, layer.speedup)
            shown = ("" if t is None else f"{t:.3g}" for t in times)
            shape = f"{layer.shape[0]} x {layer.shape[1]}"
            rows.append((layer.name, layer.kind, shape, f"{layer.nnz:,}", f"{layer.density:.3%}", layer.kernel, *shown))
        used = [column for column in zip(*rows, strict=True) if any(column[1:])]
        widths = [max(map(len, column)) for column in used]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in zip(*used, strict=True)
        ]
        held, dense = self.parameters
        return "\n".join([*lines, f"{held:,} trained numbers; {dense:,} if all were dense"])


def report(model: nn.Module, *, tokens: int | None = None) -> Report:
    """What of a model is sparse.

    Args:
        model: any module with sparse layers.
        tokens: rows of an input with which to time every linear layer and a dense one of its shape, forward only, in
            turns (some seconds for a large model); None times nothing.

    Raises:
        ValueError: the model has no sparse layers, or ``tokens`` is not positive.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens must be positive, got {tokens}")
    found = {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear | SparseEmbedding)}
    if not found:
        raise ValueError("model must have sparse layers, got none (see sparsify_)")
    layers = tuple(_layer(name, layer, tokens) for name, layer in found.items())
    trained = sum(p.numel() for p in model.parameters())
    weights = {layer.weight for layer in found.values()}
    saved = sum(w.shape[0] * w.shape[1] - w.parameter.numel() for w in weights)
    return Report(layers, (trained, trained + saved))


def _layer(name: str, layer: SparseLinear | SparseEmbedding, tokens: int | None) -> LayerReport:
    weight, choice = layer.weight, layer.weight.choice()
    times = () if tokens is None or isinstance(layer, SparseEmbedding) else _times_ms(layer, tokens)
    density = weight.entries / max(1, weight.shape[0] * weight.shape[1])
    about = (type(layer).__name__, weight.shape, weight.entries, density, choice.kernel, choice.reason)
    return LayerReport(name, *about, *times)


@torch.no_grad()
def _times_ms(layer: SparseLinear, tokens: int) -> tuple[float, float]:
    """Medians of the layer and of a dense one, timed in turns."""
    weight = layer.weight
    x = torch.randn(tokens, layer.in_features, dtype=weight.dtype, device=weight.device)
    dense = weight.to_dense()
    contenders = (lambda: layer(x), lambda: F.linear(x, dense, layer.bias))
    rounds = [[_ms(run, x) for run in contenders] for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    ours, theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
    return ours, theirs


def _ms(run: Callable[[], Tensor], x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    started = time.perf_counter()
    run()
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return 1e3 * (time.perf_counter() - started)
