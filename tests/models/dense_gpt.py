"""The published forward pass in plain torch, from a GPT's weights as dense matrices (Gao et al. 2025, appendix A.1)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models import GPT

Visit = Callable[[str, Tensor], None]


def dense(layer: nn.Module) -> Tensor:
    weight = layer.weight
    return weight if isinstance(weight, Tensor) else weight.to_dense()


def top(x: Tensor, k: int) -> Tensor:
    """The k largest magnitudes of each row."""
    return torch.zeros_like(x).scatter(-1, x.abs().topk(k).indices, 1) * x


def dense_logits(model: GPT, ids: Tensor, visit: Visit = lambda name, x: None) -> Tensor:
    """(B, T) -> (B, T, vocab), one head, one token's softmax, one location after the other."""
    config = model.config
    tokens, d_head = ids.shape[1], config.d_head

    def at(location: str, name: str, x: Tensor) -> Tensor:
        if config.afrac is not None and location in config.afrac_loctypes.split(","):
            x = top(x, math.floor(config.afrac * x.shape[-1]))
        visit(name, x)
        return x

    def norm(layer: nn.Module, x: Tensor) -> Tensor:
        if config.rms_norm:
            return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * layer.weight
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight
        return y + layer.bias if config.ln_bias else y

    def linear(layer: nn.Module, x: Tensor) -> Tensor:
        y = x @ dense(layer).T
        return y + layer.bias if config.bias else y

    def after(x: Tensor) -> Tensor:
        return x.relu() if config.residual_activation_type == "relu" else x

    def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        y = torch.zeros_like(q)
        for h in range(config.heads):
            part = slice(h * d_head, (h + 1) * d_head)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d_head)
            weights = scores.exp().tril()
            total = weights.sum(-1, keepdim=True)
            if sinks is not None:
                total = total + sinks[h].exp()
            y[..., part] = weights / total @ v[..., part]
        return y

    positions = dense(model.wpe)[:tokens]
    x = dense(model.wte)[ids]
    if config.d_pos_emb is None:
        x = x + positions
    for i, block in enumerate(model.blocks):

        def read(x: Tensor, ln: nn.Module, ln_p: str, block: nn.Module = block) -> Tensor:
            if config.d_pos_emb is None:
                return norm(ln, x)
            beside = norm(block.get_submodule(ln_p), positions).expand(len(ids), -1, -1)
            return torch.cat([norm(ln, x), beside], -1)

        visit(f"{i}.resid_in", x)
        seen = at("attn_in", f"{i}.attn.act_in", read(x, block.ln_1, "ln_p1"))
        q, k, v = linear(block.attn.c_attn, seen).chunk(3, -1)
        q, k, v = (at(f"attn_{n}", f"{i}.attn.{n}", t) for n, t in (("q", q), ("k", k), ("v", v)))
        y = at("", f"{i}.attn.y", attend(q, k, v, block.attn.attend.sink))
        delta = at("attn_out", f"{i}.attn.resid_delta", linear(block.attn.c_proj, y))
        x = at("resid_post_attn", f"{i}.resid_mid", after(x + delta))
        seen = at("mlp_in", f"{i}.mlp.act_in", read(x, block.ln_2, "ln_p2"))
        neurons = linear(block.mlp.c_fc, seen)
        neurons = neurons.relu() if config.activation_type == "relu" else F.gelu(neurons)
        neurons = at("mlp_neuron", f"{i}.mlp.post_act", neurons)
        delta = at("mlp_out", f"{i}.mlp.resid_delta", linear(block.mlp.c_proj, neurons))
        x = at("resid_post_mlp", "", after(x + delta))
    visit("final_resid", x)
    logits = norm(model.ln_f, x) @ dense(model.lm_head).T
    if config.final_logits_bias:
        logits = logits + model.final_logits_bias
    return logits + model.bigram_table[ids] if config.enable_bigram_table else logits
