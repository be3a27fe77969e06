"""``GPTConfig``: the shape of a model, in the field names of the models released with Gao et al. 2025."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..formats import BLOCK_SIDES
from ..nn import AbsTopK, RMSNorm

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
SUBLAYER_LOCATIONS = "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"
LOCATIONS = (*SUBLAYER_LOCATIONS.split(","), "resid_post_attn", "resid_post_mlp")
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
RESIDUAL_ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU}
LAYER_NORM_EPS = 1e-5
SHORTEST_PERIOD = 4.0  # of sinusoidal positions, in tokens


@dataclass(frozen=True)
class GPTOptions:
    """What a model and a training run say of the model in the same words.

    Attributes:
        d_model: width of the residual; ``d_head`` of a head; ``d_mlp`` None means ``4 * d_model``.
        dropout: of the embeddings, the attention's weights and what sublayers write, in training.
        rms_norm: RMSNorm, with the dtype's epsilon, or else LayerNorm, with a bias if ``ln_bias``.
        activation_type: of the neurons, "gelu" or "relu".
        residual_activation_type: of the residual after each sublayer, "identity" or "relu".
        afrac: fraction of the channels that AbsTopK keeps; None turns it off.
        afrac_loctypes: comma-separated locations of AbsTopK.
        sink: a learned score per head that takes part in the softmax with a value of zero.
        d_pos_emb: width of positions that every sublayer reads beside the residual; None adds them to the embedding.
        sinusoidal_cat_pos_emb: these positions are fixed sines and cosines.
        dropout_cat_pos_emb: dropout acts on them too.
        tied_unembed: the unembedding is the embedding.
        grad_checkpointing: compute sublayers again in the backward pass instead of keeping what it needs of them.
        weight_blocks: side of the dense blocks that matrices consist of: one for all of them ("32"), or some by name
            ("mlp.c_fc=64,mlp.c_proj=64"); the others are unstructured.
    """

    vocab_size: int = 2048
    d_model: int = 256
    d_head: int = 16
    d_mlp: int | None = None
    dropout: float = 0.0
    rms_norm: bool = True
    ln_bias: bool = True
    activation_type: str = "gelu"
    residual_activation_type: str = "identity"
    afrac: float | None = 0.25
    afrac_loctypes: str = SUBLAYER_LOCATIONS
    sink: bool = False
    d_pos_emb: int | None = None
    sinusoidal_cat_pos_emb: bool = False
    dropout_cat_pos_emb: bool = False
    tied_unembed: bool = False
    grad_checkpointing: bool = False
    weight_blocks: str = ""


@dataclass(frozen=True)
class GPTConfig(GPTOptions):
    """The published field names; the defaults are those of the published training script, at a small width.

    Attributes:
        block_size: longest context; ``n_layer``: layers.
        n_head: None means ``d_model // d_head``.
        bias: whether the four matrices of a block have one.
        final_logits_bias: add a fixed vector (a buffer, zeros to begin with) to the logits.
        enable_bigram_table: add a dense (vocab, vocab) table, indexed by the current token, to the logits.
        learnable_bigram_table: whether that table is trained, or a buffer.

    Raises:
        ValueError: a field out of range; the message names it.
    """

    block_size: int = 256
    n_layer: int = 8
    n_head: int | None = None
    bias: bool = True
    final_logits_bias: bool = False
    enable_bigram_table: bool = True
    learnable_bigram_table: bool = True

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_locations()
        self._check_options()

    def _check_sizes(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "d_head", "d_model", "d_mlp", "d_pos_emb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.n_head is None and self.d_model % self.d_head:
            raise ValueError(f"d_model must be a multiple of d_head, got {self.d_model} and {self.d_head}")

    def _check_locations(self) -> None:
        if self.afrac is not None and not 0 < self.afrac <= 1:
            raise ValueError(f"afrac must be in (0, 1], got {self.afrac}")
        narrowest = min(self.d_model, self.heads * self.d_head, self.mlp_width)
        if self.afrac is not None and self.afrac * narrowest < 1:
            raise ValueError(f"afrac must keep at least one of {narrowest} channels, got {self.afrac}")
        unknown = set(self.locations) - set(LOCATIONS)
        if unknown:
            raise ValueError(f"afrac_loctypes must be among {','.join(LOCATIONS)}, got {', '.join(sorted(unknown))}")

    def _check_options(self) -> None:
        for name, known in (("activation_type", ACTIVATIONS), ("residual_activation_type", RESIDUAL_ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.sinusoidal_cat_pos_emb and (self.d_pos_emb is None or self.d_pos_emb % 2):
            raise ValueError(f"d_pos_emb must be even for sinusoidal_cat_pos_emb, got {self.d_pos_emb}")
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

    @property
    def width_read(self) -> int:
        """Channels that a sublayer reads: the residual, and positions where they are concatenated."""
        return self.d_model + (self.d_pos_emb or 0)

    def norm(self, width: int) -> RMSNorm | nn.LayerNorm:
        if self.rms_norm:
            return RMSNorm(width)
        return nn.LayerNorm(width, eps=LAYER_NORM_EPS, bias=self.ln_bias)

    def topk(self, location: str, width: int) -> nn.Module:
        """The AbsTopK of a location, or the identity where it is off."""
        if self.afrac is None or location not in self.locations:
            return nn.Identity()
        return AbsTopK(math.floor(self.afrac * width))

    def sinusoids(self) -> torch.Tensor:
        """(block_size, d_pos_emb): sines, then cosines; periods from 4 tokens to ``block_size``, evenly in the log."""
        assert self.d_pos_emb is not None
        ends = math.log(SHORTEST_PERIOD), math.log(max(SHORTEST_PERIOD, self.block_size))
        periods = torch.linspace(*ends, self.d_pos_emb // 2, dtype=torch.float64).exp()
        angles = 2 * math.pi * torch.arange(self.block_size, dtype=torch.float64)[:, None] / periods
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()
