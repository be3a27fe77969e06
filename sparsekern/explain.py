"""The recipe of a run beside the paper's and the published script's, which differ (Gao et al. 2025, appendix A)."""

from typing import NamedTuple

from .recipe import TrainConfig


class Rule(NamedTuple):
    """One rule of training: as the paper has it, as its script has it, and in this run."""

    about: str
    paper: str
    script: str
    ours: str


def explain(config: TrainConfig) -> list[Rule]:
    """Every rule, with the settings that change it in brackets."""
    return [*_optimizer(config), *_sparsity(config), *_model(config), *_scale(config)]


def _optimizer(c: TrainConfig) -> list[Rule]:
    adam = "Adam, beta 0.9 and 0.95, eps 0.1"
    clipped, normalised = "clipped to a root mean square of 1", "divided by their root mean square, always"
    return [
        Rule("optimizer", adam, adam, adam),
        Rule("gradients [gradients]", clipped, normalised, clipped if c.gradients == "clipped" else normalised),
        Rule("order of a step", "Adam, projection, decay", "Adam, projection, decay", "Adam, projection, decay"),
        Rule("weight decay [weight_decay]", "0.1", "0.1, not on vectors and the bigram table", f"{c.weight_decay:g}"),
        Rule("learning rate [lr]", "swept", "0.0128", f"{c.lr:g}"),
        Rule("its warmup [warmup]", "1 % of the steps, then linearly to 0", "the same", f"{c.warmup:.0%}"),
        Rule("its factor", "1 / sqrt(nonzeros), 1 at the end", "the same", "the same"),
        Rule("precision [dtype]", "not said", "float16 with a gradient scaler", c.dtype),
    ]


def _sparsity(c: TrainConfig) -> list[Rule]:
    anneal = f"{c.anneal}, from {c.anneal_start:.0%} to {c.anneal_end:.0%} of the steps"
    own, published = "their own, linear over the same window", "that of the matrices, scaled: dense until late"
    ours = published if c.embedding_schedule == "published" else f"their own, {c.anneal} over the same window"
    sparse = f"the largest of the support and {c.candidates:g} times as many candidates ({c.switch})"
    largest = "the largest of the whole matrix"
    return [
        Rule("what stays after a step [mode]", largest, largest, sparse if c.mode == "sparse" else largest),
        Rule(
            "density [anneal, anneal_start, anneal_end]",
            "linear, over the first half (0.8 for the sparsest)",
            "linear, from 1 % to 50 % of the steps",
            anneal,
        ),
        Rule("of embeddings [embedding_schedule]", published, own, ours),
        Rule("biases [biases]", "sparse", "dense: their budget is computed, not used", c.biases),
        Rule("nonzeros that a neuron keeps [min_alive]", "4, of unclear benefit", "4", str(c.min_alive)),
    ]


def _model(c: TrainConfig) -> list[Rule]:
    positions = "at zero" if c.positions == "none" else "learned from zero"
    if c.d_pos_emb is not None:
        positions = f"{'sines' if c.sinusoidal_cat_pos_emb else 'learned'}, {c.d_pos_emb} wide, concatenated"
    eight = TrainConfig.afrac_loctypes
    where = "eight locations" if c.afrac_loctypes == eight else c.afrac_loctypes
    topk = "off" if c.afrac is None else f"{c.afrac:g} at {where}"
    bigram = "trained from small random numbers" if c.bigram == "learned" else "log-probabilities that were counted"
    return [
        Rule("positions [positions, d_pos_emb]", "at zero", "meant to stay at zero, but trained", positions),
        Rule("AbsTopK [afrac, afrac_loctypes]", "0.25 at every node", "0.25 at eight locations", topk),
        Rule("bigram table [bigram]", "trained", "trained but for its last row", bigram),
        Rule("attention sink [sink]", "in some models", "off", "on" if c.sink else "off"),
        Rule("dropout [dropout]", "0", "0", f"{c.dropout:g}"),
    ]


def _scale(c: TrainConfig) -> list[Rule]:
    tokens = c.batch * c.context
    return [
        Rule("layers, width [n_layer, d_model]", "8, 2048", "8, 1024", f"{c.n_layer}, {c.d_model}"),
        Rule("density of the matrices [density]", "down to 1/1024", "1/64", f"{c.density:g}"),
        Rule("tokens per step [batch, context]", "131,072", "512 x 256", f"{c.batch} x {c.context}"),
        Rule("tokens [steps]", "32e9 and more", "32e9", f"{c.steps * tokens:,}"),
    ]
