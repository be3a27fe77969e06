"""The released models' folders: ``beeg_config.json`` and ``final_model.pt`` in, and out again.

The format is that of the repository openai/circuit_sparsity (Gao et al. 2025): a JSON of the model's configuration and
the state dict of dense float32 tensors, zeros included. Files are read as data: nothing in them is executed.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from ..formats import CSR
from ..nn import SparseWeight
from .config import GPTConfig
from .gpt import GPT

CONFIG, WEIGHTS = "beeg_config.json", "final_model.pt"

# What the published configuration means where a field is missing; ours has other defaults.
PUBLISHED_DEFAULTS: dict[str, Any] = {
    "block_size": 1024,
    "vocab_size": 50304,
    "n_layer": 12,
    "n_head": 12,
    "d_head": None,
    "d_model": 768,
    "dropout": 0.0,
    "bias": True,
    "ln_bias": True,
    "rms_norm": False,
    "residual_activation_type": "identity",
    "activation_type": "gelu",
    "afrac": None,
    "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out",
    "tied_unembed": True,
    "d_mlp": None,
    "enable_bigram_table": False,
    "learnable_bigram_table": False,
    "d_pos_emb": None,
    "dropout_cat_pos_emb": False,
    "sinusoidal_cat_pos_emb": False,
    "sink": False,
}
# Published fields that change no number here: how the model is run, or what it is called.
INERT = {"debug_nans", "tokenizer_name", "grad_checkpointing", "enable_sparse_kernels", "flash"}


class ReleasedFormatError(Exception):
    """A folder that holds no released model that can be read; the message says which file and why."""


def load_released(folder: str | Path) -> GPT:
    """A model from a folder in the released format, with its matrices as their nonzeros.

    Every variant that was released is read: added and concatenated positions, sinks, tied embeddings, LayerNorm, a
    missing ``sink`` or ``final_logits_bias``, ``n_mlp`` for ``d_mlp``, buffers of causal masks. Keys of the
    configuration that the format does not know are left out, and one warning names them.
    ``print(sparsekern.report(model))`` has the density of every matrix.

    Args:
        folder: with ``beeg_config.json`` and ``final_model.pt``.

    Returns:
        The model in ``eval`` mode, on the CPU, in float32.

    Raises:
        ReleasedFormatError: a file is missing, damaged, or does not fit the other.
    """
    folder = Path(folder)
    fields = _read_config(folder / CONFIG)
    state = _read_state(folder / WEIGHTS)
    has_bias = bool(state.get("final_logits_bias", torch.zeros(())).any())
    config = GPTConfig(**{**fields, "final_logits_bias": has_bias})
    _require_fits(folder / WEIGHTS, config, state)
    model = GPT(config, density=0.0)
    with torch.no_grad():
        for key, module, name in _places(model):
            target = getattr(module, name)
            if isinstance(target, SparseWeight):
                dense = state[key]
                csr = CSR.from_dense(dense, nnz=int(dense.count_nonzero()))
                target.load_state_dict(SparseWeight(csr).state_dict())
            else:
                target.copy_(state[key])
    return model.eval()


def save_released(model: GPT, folder: str | Path) -> None:
    """Write a model in the released format; each of the two files appears whole or not at all.

    Dense blocks of weights, if the model has any, become plain zeros and numbers, as everything does there.

    Args:
        model: of any option; it is left as it is.
        folder: made if it does not exist.

    Raises:
        CheckpointError: a file could not be written.
    """
    from .. import checkpoint  # which knows the optimizer, and so more than a model needs to

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: _dense(getattr(module, name)) for key, module, name in _places(model)}
    if model.config.tied_unembed:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    if model.final_logits_bias is None:
        state["final_logits_bias"] = torch.zeros(model.config.vocab_size)
    text = json.dumps(_published(model.config), indent=2)
    checkpoint.write_atomically(folder / WEIGHTS, lambda to: torch.save(state, to))
    checkpoint.write_atomically(folder / CONFIG, lambda to: to.write_text(text + "\n"))


# ---- names


def _places(model: GPT) -> Iterator[tuple[str, nn.Module, str]]:
    """Published key, and the module and attribute that hold the same here; a tied unembedding is left out."""
    yield "transformer.wte.weight", model.wte, "weight"
    yield "transformer.wpe.weight", model.wpe, "weight"
    for i, block in enumerate(model.blocks):
        yield from _block_places(f"transformer.h.{i}", block)
    yield from _norm_places("transformer.ln_f", model.ln_f)
    if not model.config.tied_unembed:
        yield "lm_head.weight", model.lm_head, "weight"
    for name in ("final_logits_bias", "bigram_table"):
        if getattr(model, name) is not None:
            yield name, model, name


def _block_places(prefix: str, block: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name in ("ln_1", "ln_2", "ln_p1", "ln_p2"):
        if hasattr(block, name):
            yield from _norm_places(f"{prefix}.{name}", getattr(block, name))
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        layer = block.get_submodule(name)
        yield f"{prefix}.{name}.weight", layer, "weight"
        if layer.bias is not None:
            yield f"{prefix}.{name}.bias", layer, "bias"
    attend = block.get_submodule("attn.attend")
    if attend.sink is not None:
        yield f"{prefix}.attn.attn_imp.sink_logit", attend, "sink"


def _norm_places(prefix: str, norm: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    yield f"{prefix}.weight", norm, "weight"
    if getattr(norm, "bias", None) is not None:
        yield f"{prefix}.bias", norm, "bias"


def _dense(held: SparseWeight | Tensor) -> Tensor:
    dense = held.to_dense() if isinstance(held, SparseWeight) else held
    return dense.detach().float().cpu().contiguous()


# ---- the configuration


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of :class:`GPTConfig`, checked."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"expected an object, got {type(read).__name__}")
        fields: dict[str, Any] = {**read}
        if "n_mlp" in fields:
            fields["d_mlp"] = fields.pop("n_mlp")
        if fields.pop("use_tied_aux_matrix", False):
            raise ValueError("use_tied_aux_matrix must be false: its meaning was not released")
        unknown = sorted(set(fields) - set(PUBLISHED_DEFAULTS) - INERT)
        found = {name: fields.get(name, default) for name, default in PUBLISHED_DEFAULTS.items()}
        _require_types({**found, "d_head": 1 if found["d_head"] is None else found["d_head"]})
        if found["d_head"] is None:
            found["d_head"] = found["d_model"] // found["n_head"]
        GPTConfig(**found)  # checks the numbers
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ReleasedFormatError(f"could not read {path}: {type(error).__name__}: {error}") from error
    if unknown:
        warnings.warn(f"{path}: left out what the format does not know: {', '.join(unknown)}", stacklevel=3)
    return found


def _require_types(fields: dict[str, Any]) -> None:
    for name, hint in get_type_hints(GPTConfig).items():
        kinds = get_args(hint) or (hint,)
        value = fields.get(name)
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if name in fields and not fits:
            raise TypeError(f"{name} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")


def _published(config: GPTConfig) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in PUBLISHED_DEFAULTS}
    fields |= {"n_head": config.heads, "d_mlp": config.mlp_width, "flash": True}
    return {**fields, "grad_checkpointing": config.grad_checkpointing}


# ---- the weights


def _read_state(path: Path) -> dict[str, Tensor]:
    """Names and tensors, and nothing else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises is not documented
        reason = str(error).strip().splitlines()
        raise ReleasedFormatError(
            f"could not read {path}: {type(error).__name__}: {reason[0] if reason else 'no reason is given'}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise ReleasedFormatError(f"could not read {path}: expected names and tensors")
    return state


def _require_fits(path: Path, config: GPTConfig, state: dict[str, Tensor]) -> None:
    """Raises before a model is built, which may be larger than the file."""
    if config.n_layer > len(state):
        raise ReleasedFormatError(f"{path}: {len(state)} tensors are too few for {config.n_layer} layers")
    expected = _shapes(config)
    missing = sorted(set(expected) - set(state))
    if missing:
        raise ReleasedFormatError(f"{path}: {', '.join(missing[:3])} missing ({len(missing)} in all)")
    known = {*expected, "lm_head.weight", "final_logits_bias"}
    more = sorted(key for key in set(state) - known if not key.endswith(".attn.bias"))  # buffers of causal masks
    if more:
        raise ReleasedFormatError(f"{path}: does not fit {CONFIG}: {', '.join(more[:3])} ({len(more)} in all)")
    for key, shape in expected.items():
        tensor = state[key]
        if tensor.shape != shape or tensor.layout != torch.strided or not tensor.is_floating_point():
            what = f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.layout}"
            raise ReleasedFormatError(f"{path}: {key} must be {shape}, float, strided; got {what}")
        if not tensor.isfinite().all():
            raise ReleasedFormatError(f"{path}: {key} is not finite")
    if config.tied_unembed and not state.get("lm_head.weight", wte := state["transformer.wte.weight"]).equal(wte):
        raise ReleasedFormatError(f"{path}: lm_head.weight must be transformer.wte.weight, as tied_unembed says")


def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Every key that must be there, without building the model."""
    d, width, mlp, read = config.d_model, config.heads * config.d_head, config.mlp_width, config.width_read
    vocab, positions = config.vocab_size, config.d_pos_emb
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, d),
        "transformer.wpe.weight": (config.block_size, positions or d),
    }

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = (size,)
        if not config.rms_norm and config.ln_bias:
            shapes[f"{name}.bias"] = (size,)

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if config.bias:
            shapes[f"{name}.bias"] = (rows,)

    for i in range(config.n_layer):
        block = f"transformer.h.{i}"
        for name in ("ln_1", "ln_2"):
            norm(f"{block}.{name}", d)
        for name in ("ln_p1", "ln_p2") if positions else ():
            norm(f"{block}.{name}", positions or 0)
        linear(f"{block}.attn.c_attn", 3 * width, read)
        linear(f"{block}.attn.c_proj", d, width)
        linear(f"{block}.mlp.c_fc", mlp, read)
        linear(f"{block}.mlp.c_proj", d, mlp)
        if config.sink:
            shapes[f"{block}.attn.attn_imp.sink_logit"] = (config.heads,)
    norm("transformer.ln_f", d)
    if not config.tied_unembed:
        shapes["lm_head.weight"] = (vocab, d)
    if config.enable_bigram_table:
        shapes["bigram_table"] = (vocab, vocab)
    if config.final_logits_bias:
        shapes["final_logits_bias"] = (vocab,)
    return shapes
