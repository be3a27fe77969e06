"""A thin GPT with sparse weights and sparse activations (Gao et al. 2025, appendix A.1).

Pre-norm, RMSNorm with the dtype's epsilon, many small heads, AbsTopK at the eight sublayer locations, additive learned
positions, separate embedding and unembedding, and a dense bigram table added to the logits. All matrices and both
embeddings are sparse; norm gains, biases and the bigram table are dense.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import BLOCK_SIDES, BSR, CSR
from ..nn import (
    AbsTopK,
    BlockSparseLinear,
    BlockSparseWeight,
    CausalAttention,
    RMSNorm,
    SparseEmbedding,
    SparseLinear,
    SparseWeight,
)

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
SUBLAYER_LOCATIONS = "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"
HOOK_POINTS = (  # of a block, in the order in which they run; the modules below bear these names
    "resid_in",
    "attn.act_in",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.y",
    "attn.resid_delta",
    "resid_mid",
    "mlp.act_in",
    "mlp.post_act",
    "mlp.resid_delta",
)


@dataclass(frozen=True)
class GPTConfig:
    """The published field names; the defaults are those of the published training script, at a small width.

    Attributes:
        block_size: longest context.
        n_head, d_head: heads and their width; ``n_head`` None means ``d_model // d_head``.
        d_mlp: None means ``4 * d_model``.
        afrac: fraction of the channels that AbsTopK keeps; None turns it off.
        afrac_loctypes: comma-separated locations of AbsTopK.
        enable_bigram_table: add a dense (vocab, vocab) table, indexed by the current token, to the logits.
        learnable_bigram_table: whether that table is trained, or a buffer.
        weight_blocks: side of the dense blocks that matrices consist of: one for all of them ("32"), or some by name
            ("mlp.c_fc=64,mlp.c_proj=64"); the others are unstructured.
    """

    block_size: int = 256
    vocab_size: int = 2048
    n_layer: int = 8
    n_head: int | None = None
    d_head: int = 16
    d_model: int = 256
    d_mlp: int | None = None
    bias: bool = True
    afrac: float | None = 0.25
    afrac_loctypes: str = SUBLAYER_LOCATIONS
    enable_bigram_table: bool = True
    learnable_bigram_table: bool = True
    weight_blocks: str = ""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "d_head", "d_model", "d_mlp"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.d_model % self.d_head:
            raise ValueError(f"d_model must be a multiple of d_head, got {self.d_model} and {self.d_head}")
        if self.afrac is not None and not 0 < self.afrac <= 1:
            raise ValueError(f"afrac must be in (0, 1], got {self.afrac}")
        narrowest = min(self.d_model, self.heads * self.d_head, self.mlp_width)
        if self.afrac is not None and self.afrac * narrowest < 1:
            raise ValueError(f"afrac must keep at least one of {narrowest} channels, got {self.afrac}")
        unknown = set(self.locations) - set(SUBLAYER_LOCATIONS.split(","))
        if unknown:
            raise ValueError(f"afrac_loctypes must be among {SUBLAYER_LOCATIONS}, got {', '.join(sorted(unknown))}")

        if set(self.blocks) - set(MATRICES) or set(self.blocks.values()) - set(BLOCK_SIDES):
            raise ValueError(
                f"weight_blocks must be a side, {', '.join(map(str, BLOCK_SIDES))}, or sides of {', '.join(MATRICES)} "
                f"as in mlp.c_fc=64,mlp.c_proj=64; got {self.weight_blocks!r}"
            )

    @property
    def blocks(self) -> dict[str, int]:
        """Side of the blocks by name of the matrix; unstructured ones are missing."""
        if self.weight_blocks.isdecimal():
            return dict.fromkeys(MATRICES, int(self.weight_blocks))
        pairs = [item.partition("=") for item in self.weight_blocks.split(",") if item]
        return {name: int(side) if side.isdecimal() else 0 for name, _, side in pairs}

    @property
    def locations(self) -> list[str]:
        return [name for name in self.afrac_loctypes.split(",") if name]

    @property
    def heads(self) -> int:
        return self.n_head or self.d_model // self.d_head

    @property
    def mlp_width(self) -> int:
        return self.d_mlp or 4 * self.d_model

    def topk(self, location: str, width: int) -> nn.Module:
        """The AbsTopK of a location, or the identity where it is off."""
        if self.afrac is None or location not in self.locations:
            return nn.Identity()
        return AbsTopK(math.floor(self.afrac * width))


@dataclass(frozen=True)
class Start:
    """How matrices begin: dense in master form, or with random nonzeros in values form, never allocated densely.

    Attributes:
        density: of the nonzeros, or None for a dense start; 0 leaves the matrices empty, to be loaded.
        floor: nonzeros that every neuron has at least.
    """

    density: float | None = None
    floor: int = 0

    def weight(self, n: int, k: int, std: float, axis: int | None = None, block: int | None = None) -> SparseWeight:
        """(n, k); ``std`` is that of the entries of a dense one, and a sparse one gives outputs of the same variance.

        ``axis`` tells which dimension is the neuron that the floor protects; ``block`` the side of dense blocks.
        """
        floor = floor_of(self.floor, block) if axis is not None else 0
        if self.density is None:
            master = torch.randn(n, k) * std
            if block is None:
                return SparseWeight.from_master(master, floor=floor, axis=axis)
            return BlockSparseWeight.from_master(master, block, floor=floor, axis=axis)
        rule: dict[str, Any] = {"density": self.density}
        rule |= {"floor": floor, "axis": axis} if self.density else {}
        scale = std / math.sqrt(self.density) if self.density else 0.0
        if block is not None:
            bsr = BSR.random(n, k, block, **rule)
            return BlockSparseWeight(bsr.with_values(bsr.values * scale), floor=floor, axis=axis)
        csr = CSR.random(n, k, **rule)
        return SparseWeight(CSR(csr.values * scale, csr.pattern), floor=floor, axis=axis)

    def linear(
        self, n: int, k: int, bias: bool, std: float, axis: int | None = None, block: int | None = None
    ) -> SparseLinear:
        kind = SparseLinear if block is None else BlockSparseLinear
        return kind.from_weight(self.weight(n, k, std, axis, block), nn.Parameter(torch.zeros(n)) if bias else None)


def floor_of(nonzeros: int, block: int | None) -> int:
    """Positions that have at least so many nonzeros of a neuron."""
    return nonzeros if block is None else -(-nonzeros // block)


class Attention(nn.Module):
    """Causal self-attention; AbsTopK acts on q, k and v over all heads together."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        width = config.heads * config.d_head
        self.d_head = config.d_head
        blocks, std = config.blocks, 0.02 / math.sqrt(2 * config.n_layer)
        self.c_attn = start.linear(3 * width, config.d_model, config.bias, 0.02, 0, blocks.get("attn.c_attn"))
        self.c_proj = start.linear(config.d_model, width, config.bias, std, 1, blocks.get("attn.c_proj"))
        self.act_in = config.topk("attn_in", config.d_model)
        self.q = config.topk("attn_q", width)
        self.k = config.topk("attn_k", width)
        self.v = config.topk("attn_v", width)
        self.attend = CausalAttention()
        self.y = nn.Identity()
        self.resid_delta = config.topk("attn_out", config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        q, k, v = self.c_attn(self.act_in(x)).chunk(3, dim=-1)
        q, k, v = (self._heads(t) for t in (self.q(q), self.k(k), self.v(v)))
        return self.resid_delta(self.c_proj(self.y(self.attend(q, k, v).flatten(2))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        width = config.mlp_width
        blocks, std = config.blocks, 0.02 / math.sqrt(2 * config.n_layer)
        self.c_fc = start.linear(width, config.d_model, config.bias, 0.02, 0, blocks.get("mlp.c_fc"))
        self.c_proj = start.linear(config.d_model, width, config.bias, std, 1, blocks.get("mlp.c_proj"))
        self.act_in = config.topk("mlp_in", config.d_model)
        self.post_act = config.topk("mlp_neuron", width)
        self.resid_delta = config.topk("mlp_out", config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        return self.resid_delta(self.c_proj(self.post_act(F.gelu(self.c_fc(self.act_in(x))))))


class Block(nn.Module):
    """One layer of the residual stream."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        self.resid_in = nn.Identity()
        self.ln_1 = RMSNorm(config.d_model)
        self.attn = Attention(config, start)
        self.resid_mid = nn.Identity()
        self.ln_2 = RMSNorm(config.d_model)
        self.mlp = MLP(config, start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        x = self.resid_in(x)
        x = self.resid_mid(x + self.attn(self.ln_1(x)))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The model; its weights begin dense, in master form (see :class:`sparsekern.nn.SparseWeight`).

    Args:
        config: the shape.
        density: let them begin with random nonzeros instead, in values form: nothing dense is allocated but the bigram
            table. 0 leaves them empty, to be loaded.
        embedding_density: of both embeddings and the unembedding; the same by default.
        floor: see :meth:`set_floor`.

    Raises:
        ValueError: a density too low for the floor.
    """

    bigram_table: Tensor | None

    def __init__(
        self, config: GPTConfig, *, density: float | None = None, embedding_density: float | None = None, floor: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        d, vocab = config.d_model, config.vocab_size
        start = Start(density, floor)
        embedding_start = Start(density if embedding_density is None else embedding_density)
        self.wte = SparseEmbedding.from_weight(embedding_start.weight(vocab, d, 0.02))
        self.wpe = SparseEmbedding.from_weight(embedding_start.weight(config.block_size, d, 0.0))
        self.blocks = nn.ModuleList(Block(config, start) for _ in range(config.n_layer))
        self.final_resid = nn.Identity()
        self.ln_f = RMSNorm(d)
        self.lm_head = embedding_start.linear(vocab, d, False, 0.02)
        table = torch.rand(vocab, vocab) * 0.02 if config.enable_bigram_table else None
        if table is not None and config.learnable_bigram_table:
            self.bigram_table = nn.Parameter(table)
        else:
            self.register_buffer("bigram_table", table)

    def forward(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits of the next token: (B, T) int64 -> (B, T, vocab), T <= block_size.

        Where only one position of each row matters, ``at`` (B,) int64 names it: the logits are (B, vocab) then.
        """
        if ids.dim() != 2 or ids.shape[1] > self.config.block_size:
            raise ValueError(f"ids must be (B, T) with T <= {self.config.block_size}, got {tuple(ids.shape)}")
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        x = self.final_resid(x)
        if at is not None:
            rows = torch.arange(len(ids), device=ids.device)
            x, ids = x[rows, at], ids[rows, at]
        logits = self.lm_head(self.ln_f(x))
        return logits if self.bigram_table is None else logits + F.embedding(ids, self.bigram_table)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats; ``targets`` is (B, T) int64."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    def hook_points(self) -> dict[str, nn.Module]:
        """What can be recorded and changed, by the published names ("0.attn.act_in"), in the order in which it runs.

        Each is the output of the module given, (B, T, channels); where AbsTopK acts, after it.
        """
        names = {f"{i}.{name}": f"blocks.{i}.{name}" for i in range(len(self.blocks)) for name in HOOK_POINTS}
        modules = {name: self.get_submodule(path) for name, path in names.items()}
        return {**modules, "final_resid": self.final_resid}

    def no_weight_decay(self) -> set[str]:
        """Names that :func:`sparsekern.optim.param_groups` leaves out of the decay."""
        return {"bigram_table"}

    def embeddings(self) -> list[SparseWeight]:
        """The sparse weights outside the blocks: token and position embedding, unembedding."""
        return [self.wte.weight, self.wpe.weight, self.lm_head.weight]

    def matrices(self) -> list[SparseWeight]:
        """The sparse weights of the blocks."""
        return [m for m in self.blocks.modules() if isinstance(m, SparseWeight)]

    def set_floor(self, floor: int) -> None:
        """Nonzeros that every neuron keeps: fan-in of c_attn and c_fc, fan-out of both c_proj (min-alive)."""
        for weight in self.matrices():
            weight.floor = floor_of(floor, None if weight.block is None else weight.block[0])

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        stop: int | None = None,
    ) -> Tensor:
        """Continue ``ids`` (1, T) by up to ``tokens`` sampled ones, ending early at ``stop``; 0 is greedy."""
        for _ in range(tokens):
            logits = self(ids[:, -self.config.block_size :])[:, -1]
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, chosen], dim=1)
            if stop is not None and int(chosen) == stop:
                break
        return ids
