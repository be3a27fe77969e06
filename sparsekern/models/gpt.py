"""A thin GPT with sparse weights and sparse activations (Gao et al. 2025, appendix A.1).

Pre-norm, many small heads, AbsTopK at up to ten locations, learned or sinusoidal positions that are added or
concatenated, separate or tied embedding and unembedding, and a dense bigram table added to the logits. All matrices and
both embeddings are sparse; norms, biases, sinks, concatenated positions and the bigram table are dense.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..nn import CausalAttention, SparseEmbedding, SparseLinear, SparseWeight
from .config import ACTIVATIONS, RESIDUAL_ACTIVATIONS, GPTConfig
from .start import Start, floor_of

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


class Attention(nn.Module):
    """Causal self-attention; AbsTopK acts on q, k and v over all heads together."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        width = config.heads * config.d_head
        self.d_head = config.d_head
        blocks, std = config.blocks, 0.02 / math.sqrt(2 * config.n_layer)
        self.c_attn = start.linear(3 * width, config.width_read, config.bias, 0.02, 0, blocks.get("attn.c_attn"))
        self.c_proj = start.linear(config.d_model, width, config.bias, std, 1, blocks.get("attn.c_proj"))
        self.act_in = config.topk("attn_in", config.width_read)
        self.q = config.topk("attn_q", width)
        self.k = config.topk("attn_k", width)
        self.v = config.topk("attn_v", width)
        self.attend = CausalAttention(config.heads if config.sink else None, config.dropout)
        self.y = nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.resid_delta = config.topk("attn_out", config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width read) -> (B, T, d_model)."""
        q, k, v = self.c_attn(self.act_in(x)).chunk(3, dim=-1)
        q, k, v = (self._heads(t) for t in (self.q(q), self.k(k), self.v(v)))
        return self.resid_delta(self.dropout(self.c_proj(self.y(self.attend(q, k, v).flatten(2)))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))


class MLP(nn.Module):
    """Linear, GELU or ReLU, linear."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        width = config.mlp_width
        blocks, std = config.blocks, 0.02 / math.sqrt(2 * config.n_layer)
        self.c_fc = start.linear(width, config.width_read, config.bias, 0.02, 0, blocks.get("mlp.c_fc"))
        self.c_proj = start.linear(config.d_model, width, config.bias, std, 1, blocks.get("mlp.c_proj"))
        self.act_in = config.topk("mlp_in", config.width_read)
        self.activation = ACTIVATIONS[config.activation_type]()
        self.post_act = config.topk("mlp_neuron", width)
        self.dropout = nn.Dropout(config.dropout)
        self.resid_delta = config.topk("mlp_out", config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width read) -> (B, T, d_model)."""
        neurons = self.post_act(self.activation(self.c_fc(self.act_in(x))))
        return self.resid_delta(self.dropout(self.c_proj(neurons)))


class Block(nn.Module):
    """One layer of the residual stream."""

    def __init__(self, config: GPTConfig, start: Start) -> None:
        super().__init__()
        self.is_checkpointed = config.grad_checkpointing
        self.resid_in = nn.Identity()
        self.ln_1 = config.norm(config.d_model)
        self.attn = Attention(config, start)
        self.resid_mid = config.topk("resid_post_attn", config.d_model)
        self.ln_2 = config.norm(config.d_model)
        self.mlp = MLP(config, start)
        self.resid_out = config.topk("resid_post_mlp", config.d_model)
        self.residual_activation = RESIDUAL_ACTIVATIONS[config.residual_activation_type]()
        if config.d_pos_emb is not None:
            self.ln_p1 = config.norm(config.d_pos_emb)
            self.ln_p2 = config.norm(config.d_pos_emb)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, T, d_model), with (T, d_pos_emb) where positions are concatenated -> (B, T, d_model)."""
        x = self.resid_in(x)
        read = self.ln_1(x) if positions is None else _beside(self.ln_1(x), self.ln_p1(positions))
        x = self.resid_mid(self.residual_activation(x + self._run(self.attn, read)))
        read = self.ln_2(x) if positions is None else _beside(self.ln_2(x), self.ln_p2(positions))
        return self.resid_out(self.residual_activation(x + self._run(self.mlp, read)))

    def _run(self, sublayer: nn.Module, x: Tensor) -> Tensor:
        """One that is hooked is not computed twice: what was recorded would be recorded again, without its graph."""
        if not self.is_checkpointed or not torch.is_grad_enabled() or _is_hooked(sublayer):
            return sublayer(x)
        return checkpoint(sublayer, x, use_reentrant=False)


def _beside(x: Tensor, positions: Tensor) -> Tensor:
    """(B, T, d_model) and (T, d_pos_emb) -> (B, T, d_model + d_pos_emb)."""
    return torch.cat([x, positions.to(x.dtype).expand(len(x), -1, -1)], dim=-1)


def _is_hooked(module: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


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
    final_logits_bias: Tensor | None

    def __init__(
        self, config: GPTConfig, *, density: float | None = None, embedding_density: float | None = None, floor: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        d, vocab = config.d_model, config.vocab_size
        start = Start(density, floor)
        embedding_start = Start(density if embedding_density is None else embedding_density)
        self.wte = SparseEmbedding.from_weight(embedding_start.weight(vocab, d, 0.02))
        self.wpe = self._positions(embedding_start)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, start) for _ in range(config.n_layer))
        self.final_resid = nn.Identity()
        self.ln_f = config.norm(d)
        unembedding = self.wte.weight if config.tied_unembed else embedding_start.weight(vocab, d, 0.02)
        self.lm_head = SparseLinear.from_weight(unembedding)
        self.register_buffer("final_logits_bias", torch.zeros(vocab) if config.final_logits_bias else None)
        table = torch.rand(vocab, vocab) * 0.02 if config.enable_bigram_table else None
        if table is not None and config.learnable_bigram_table:
            self.bigram_table = nn.Parameter(table)
        else:
            self.register_buffer("bigram_table", table)

    def _positions(self, start: Start) -> nn.Module:
        """Those that are added are sparse, and begin at zero; those that are concatenated are dense."""
        config = self.config
        if config.d_pos_emb is None:
            return SparseEmbedding.from_weight(start.weight(config.block_size, config.d_model, 0.0))
        if config.sinusoidal_cat_pos_emb:
            return nn.Embedding.from_pretrained(config.sinusoids())
        return nn.Embedding.from_pretrained(torch.randn(config.block_size, config.d_pos_emb) * 0.02, freeze=False)

    def forward(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits of the next token: (B, T) int64 -> (B, T, vocab), T <= block_size.

        Where only one position of each row matters, ``at`` (B,) int64 names it: the logits are (B, vocab) then.
        """
        if ids.dim() != 2 or ids.shape[1] > self.config.block_size:
            raise ValueError(f"ids must be (B, T) with T <= {self.config.block_size}, got {tuple(ids.shape)}")
        x, positions = self.wte(ids), self.wpe(torch.arange(ids.shape[1], device=ids.device))
        if self.config.d_pos_emb is None:
            x, positions = x + positions, None
        elif self.config.dropout_cat_pos_emb:
            positions = self.dropout(positions)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, positions)
        x = self.final_resid(x)
        if at is not None:
            rows = torch.arange(len(ids), device=ids.device)
            x, ids = x[rows, at], ids[rows, at]
        logits = self.lm_head(self.ln_f(x))
        if self.final_logits_bias is not None:
            logits = logits + self.final_logits_bias
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
        """The sparse weights outside the blocks: token embedding, positions that are added, unembedding if not tied."""
        weights = (self.wte.weight, self.wpe.weight, self.lm_head.weight)
        return list({weight: None for weight in weights if isinstance(weight, SparseWeight)})

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
