"""Checkpoints: safetensors files that appear whole or not at all, and execute nothing when read."""

import json
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .nn import SparseWeight
from .optim import SparseAdamW

_MODEL, _OPTIMIZER, _META = "model.", "optimizer.", "sparsekern"


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which and why."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place of ``path``.

    A crash, a kill or a full disk leaves the old file as it was.

    Raises:
        CheckpointError: the file could not be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        kept = "; the one before it is kept" if path.exists() else ""
        raise CheckpointError(f"could not write {path}: {error}{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]) -> None:
    """Write everything that training needs to go on: weights, patterns, moments and ``meta`` (JSON)."""
    tensors = _state_of(model)
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{_OPTIMIZER}{name}.{key}"] = value
    _write(path, tensors, meta)


def save_weights(path: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """Write the model alone, with every sparse weight as its nonzeros."""
    tensors = _state_of(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseWeight) and module.form != "values":
            for key in (module.form, "active_crow_indices", "active_col_indices"):
                tensors.pop(f"{_MODEL}{name}.{key}", None)
            tensors[f"{_MODEL}{name}.values"] = module.values.detach()
    _write(path, tensors, meta)


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """What is tied is in it under its first name."""
    tied = _tied(model)
    state = model.state_dict()
    return {_MODEL + name: t for name, t in state.items() if not any(_is_part(name, other) for other in tied)}


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of modules and Parameters that the model has under another name, too -> the first of its names."""
    first: dict[object, str] = {}
    named = chain(model.named_modules(remove_duplicate=False), model.named_parameters(remove_duplicate=False))
    return {name: first[item] for name, item in named if first.setdefault(item, name) != name}


def _is_part(name: str, of: str) -> bool:
    return name == of or name.startswith(f"{of}.")


def _write(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    contiguous = {name: t.cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda to: save_file(contiguous, to, metadata={_META: json.dumps(meta)}))


def read_meta(path: Path) -> dict[str, Any]:
    """The ``meta`` of a checkpoint."""
    return _open(path, "none of them")[0]


def load(path: Path, model: nn.Module) -> dict[str, Any]:
    """Fill ``model``, on its device, from a checkpoint; returns its ``meta``.

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit the model.
    """
    meta, state = _open(path, _MODEL)
    for name, first in _tied(model).items():
        state |= {name + key.removeprefix(first): t for key, t in state.items() if _is_part(key, first)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {error}") from error
    return meta


def load_optimizer(path: Path, model: nn.Module, optimizer: SparseAdamW) -> dict[str, Any]:
    """Fill ``optimizer``, made for a ``model`` that was loaded from the same checkpoint; returns its ``meta``.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    meta, tensors = _open(path, _OPTIMIZER)
    for name, p in model.named_parameters():
        moments = {
            key.removeprefix(f"{name}."): t.to(p.device, copy=True)
            for key, t in tensors.items()
            if key.startswith(f"{name}.")
        }
        if moments:
            optimizer.state[p] = moments
    optimizer.prepare()
    return meta


def _open(path: Path, prefix: str = _MODEL) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The ``meta`` and the tensors whose names begin with ``prefix``, without it."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(_META, "null"))
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path} is not a sparsekern checkpoint")
    return meta, tensors
