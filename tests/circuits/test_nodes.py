"""Nodes and edges: how they are counted, and what a model computes without them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpt_options import EVERY_OPTION
from torch import Tensor

from sparsekern.circuits import (
    Circuit,
    Cut,
    Layout,
    Subject,
    edges_between,
    locations,
    mean_activations,
    record,
    with_nodes,
    without_edges,
)
from sparsekern.circuits.nodes import count_edges, edges_without
from sparsekern.models import GPT, GPTConfig

CONFIG = GPTConfig(block_size=8, vocab_size=20, n_layer=2, d_model=16, d_head=4)
IDS = torch.randint(20, (6, 8), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG, density=0.5).requires_grad_(False)


@pytest.fixture
def means(model: GPT) -> dict[str, Tensor]:
    return mean_activations(model, [IDS[:2], IDS[2:]])


def test_the_published_number_of_nodes() -> None:
    config = GPTConfig(n_layer=12, d_model=1024, d_head=8, d_mlp=4096)  # csp_yolo1
    assert Layout.of(config).size == 136_192
    assert len(locations(config)) == 97


def test_layout_splits_joins_and_names(model: GPT) -> None:
    layout = Layout.of(model.config)
    row = torch.arange(layout.size)
    parts = layout.split(row)
    assert layout.join(parts).equal(row)
    assert list(parts) == list(locations(model.config))
    assert [layout.name(i) for i in (0, 15, 16, layout.size - 1)] == [
        ("0.attn.act_in", 0),
        ("0.attn.act_in", 15),
        ("0.attn.q", 0),
        ("final_resid", 15),
    ]


def test_means_are_over_all_tokens(model: GPT, means: dict[str, Tensor]) -> None:
    with record(model) as acts:
        model(IDS)
    assert set(means) == set(locations(model.config)) | {"0.attn.y", "1.attn.y"}
    for name, mean in means.items():
        torch.testing.assert_close(mean, acts[name].mean((0, 1)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        mean_activations(model, [])


def test_a_cut_node_has_its_mean_and_the_others_do_not(model: GPT, means: dict[str, Tensor]) -> None:
    layout = Layout.of(model.config)
    gates = torch.ones(layout.size)
    gates[layout.slices["0.mlp.post_act"].start + 5] = 0
    with with_nodes(model, gates, means), record(model) as acts:
        model(IDS)
    with record(model) as whole:
        model(IDS)
    x = acts["0.mlp.post_act"]
    assert (x[..., 5] == means["0.mlp.post_act"][5]).all()
    keep = torch.arange(64) != 5
    torch.testing.assert_close(x[..., keep], whole["0.mlp.post_act"][..., keep], rtol=0, atol=0)


def test_all_nodes_kept_is_the_model_and_none_a_constant(model: GPT, means: dict[str, Tensor]) -> None:
    subject = Subject(model, means)
    size = subject.layout.size
    with subject.cut(subject.all()):
        torch.testing.assert_close(model(IDS), subject.model(IDS), rtol=0, atol=0)
    with subject.cut(Cut(torch.zeros(size, dtype=torch.bool))), record(model, "final_resid") as acts:
        model(IDS)
    assert (acts["final_resid"] == means["final_resid"]).all()


def test_skipping_a_sublayer_changes_nothing(model: GPT, means: dict[str, Tensor]) -> None:
    """Of one without a kept node, only the means are used; a gate per node computes it all the same."""
    torch.manual_seed(1)
    layout = Layout.of(model.config)
    nodes = torch.rand(layout.size) < 0.5
    for place in ("0.mlp.act_in", "0.mlp.post_act", "0.mlp.resid_delta"):
        nodes[layout.slices[place]] = False
    subject = Subject(model, means)
    with subject.cut(Cut(nodes)):
        skipped = model(IDS)
    with subject.cut(Cut(nodes), nodes.float()):
        computed = model(IDS)
    torch.testing.assert_close(skipped, computed, rtol=0, atol=0)
    assert "forward" not in vars(model.blocks[0].mlp)


def test_edges_are_the_weights_between_kept_nodes(model: GPT) -> None:
    layout = Layout.of(model.config)
    every = edges_between(model, torch.ones(layout.size, dtype=torch.bool))
    assert sum(map(len, every)) == sum(w.nnz for w in model.matrices())
    torch.manual_seed(2)
    nodes = torch.rand(layout.size) < 0.3
    kept = layout.split(nodes)
    expected = set()
    for i, block in enumerate(model.blocks):
        dense = {
            name: block.get_submodule(name).weight.to_dense() for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")
        }
        dense["mlp.c_proj"] = block.mlp.c_proj.weight.to_dense()
        ends = [
            (f"attn.{part}", "attn.act_in", dense["attn.c_attn"][16 * n : 16 * n + 16]) for n, part in enumerate("qkv")
        ]
        ends += [
            ("attn.resid_delta", "attn.v", dense["attn.c_proj"]),
            ("mlp.post_act", "mlp.act_in", dense["mlp.c_fc"]),
        ]
        ends += [("mlp.resid_delta", "mlp.post_act", dense["mlp.c_proj"])]
        for target, source, weight in ends:
            for row, column in weight.nonzero().tolist():
                if kept[f"{i}.{target}"][row] and kept[f"{i}.{source}"][column]:
                    expected.add(((f"{i}.{source}", column), (f"{i}.{target}", row), weight[row, column].item()))
    groups = edges_between(model, nodes)
    found = {
        (layout.name(s), layout.name(t), w)
        for g in groups
        for s, t, w in zip(g.sources.tolist(), g.targets.tolist(), g.weights.tolist(), strict=True)
    }
    assert found == expected
    half = {(g.matrix, *place) for g in groups for place in g.places[::2]}
    assert sum(map(len, edges_without(groups, half))) == sum(len(g) // 2 for g in groups)


@pytest.mark.parametrize("matrix", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_a_cut_edge_passes_on_the_mean_of_its_input(model: GPT, means: dict[str, Tensor], matrix: str) -> None:
    (group,) = [g for g in edges_between(model, Subject(model, means).all().nodes) if g.matrix == f"1.{matrix}"]
    cut = group[torch.arange(len(group)) % 3 == 0]
    module = model.blocks[1].get_submodule(matrix)
    seen = {}
    handle = module.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], y=output))
    model(IDS)
    plain = dict(seen)
    handle.remove()
    with without_edges(model, [cut], means):
        handle = module.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], y=output))
        model(IDS)
        handle.remove()
    name = {"attn.c_attn": "attn.act_in", "attn.c_proj": "attn.y", "mlp.c_fc": "mlp.act_in"}.get(matrix, "mlp.post_act")
    weights = torch.zeros(module.weight.shape)
    weights[cut.rows, cut.columns] = cut.weights
    expected = plain["y"] - (plain["x"] - means[f"1.{name}"]) @ weights.T
    torch.testing.assert_close(seen["y"], expected, rtol=1e-5, atol=1e-6)


def test_removing_every_edge_of_a_matrix_makes_its_output_constant(model: GPT, means: dict[str, Tensor]) -> None:
    everything = Subject(model, means).all().nodes
    (group,) = [g for g in edges_between(model, everything) if g.matrix == "0.mlp.c_fc"]
    with without_edges(model, [group], means), record(model, r"0\.mlp\.post_act") as acts:
        model(IDS)
    torch.testing.assert_close(
        acts["0.mlp.post_act"], acts["0.mlp.post_act"][:1, :1].expand(6, 8, 64), rtol=0, atol=1e-6
    )


@pytest.fixture
def optioned() -> GPT:
    """A model with every option, whose sublayers read 20 channels and write 16."""
    torch.manual_seed(0)
    config = replace(CONFIG, **EVERY_OPTION, grad_checkpointing=True)
    return GPT(config, density=0.5).requires_grad_(False)


def test_nodes_and_edges_of_a_model_with_every_option(optioned: GPT) -> None:
    layout = Layout.of(optioned.config)
    assert layout.slices["0.attn.act_in"] == slice(0, 20)
    assert layout.size == 2 * (2 * 20 + 2 * 16 + 3 * 16 + 64) + 16
    nodes = torch.ones(layout.size, dtype=torch.bool)
    assert count_edges(edges_between(optioned, nodes)) == sum(w.nnz for w in optioned.matrices())


def test_a_circuit_of_a_model_with_every_option_is_saved_and_loaded(optioned: GPT, tmp_path: Path) -> None:
    means = mean_activations(optioned, [IDS])
    nodes = torch.rand(Layout.of(optioned.config).size, generator=torch.Generator().manual_seed(1)) < 0.7
    for name, part in Layout.of(optioned.config).slices.items():
        if name.startswith("0.mlp"):
            nodes[part] = False  # a sublayer that is not computed, and reads more channels than it writes
    gates = nodes.float().requires_grad_()
    with with_nodes(optioned, gates, means):
        expected = optioned(IDS)  # with every sublayer computed
    circuit = Circuit(optioned, means, Cut(nodes))
    torch.testing.assert_close(circuit(IDS), expected)
    assert (circuit(IDS) - optioned(IDS)).abs().max() > 0.01
    circuit.save(tmp_path)
    loaded = Circuit.load(tmp_path)
    assert loaded(IDS).equal(circuit(IDS))
    assert loaded.edges == circuit.edges
