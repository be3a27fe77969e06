"""Payloads of the released viewer: out and in again, and theirs in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Planted

from sparsekern.circuits import Circuit, CircuitError, load_viz_data, save_viz_data
from sparsekern.circuits.released import OURS


@pytest.fixture(scope="module")
def saved(planted: Planted, circuit: Circuit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viz") / "viz_data.pt"
    save_viz_data(circuit, path, planted.test)
    return path


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_it_comes_back_as_it_was(planted: Planted, circuit: Circuit, saved: Path) -> None:
    loaded = load_viz_data(saved, planted.model, planted.subject.means)
    assert loaded(planted.test.ids).equal(circuit(planted.test.ids))
    assert loaded.edges == circuit.edges
    assert [(n.location, n.channel) for n in loaded.nodes] == [(n.location, n.channel) for n in circuit.nodes]
    assert loaded.about.task == "binding"


def test_losses_are_doubled_there_and_halved_here(planted: Planted, circuit: Circuit, saved: Path) -> None:
    subject, pairs = planted.subject, planted.test
    stated = read(saved)["importances"]
    assert stated["interv_loss"] == pytest.approx(2 * subject.loss(pairs, circuit.cut))
    assert stated["loss"] == pytest.approx(2 * subject.loss(pairs))
    checks = load_viz_data(saved, planted.model, subject.means).about.checks
    assert checks["circuit_loss"] == pytest.approx(subject.loss(pairs, circuit.cut))
    assert checks["model_loss"] == pytest.approx(subject.loss(pairs))


def test_the_published_schema(planted: Planted, circuit: Circuit, saved: Path) -> None:
    payload = read(saved)
    layout = planted.subject.layout
    assert set(payload) - {OURS} == {
        *("circuit_data", "samples", "importances", "num_total_nodes", "all_loss", "prune_config")
    }
    assert payload["num_total_nodes"] == layout.size
    assert list(payload["circuit_data"]) == list(layout.slices)
    nodes = {(loc, c) for loc, channels in payload["circuit_data"].items() for c in channels.tolist()}
    assert nodes == planted.nodes
    stated = payload["importances"]
    assert {loc: len(losses) for loc, losses in stated["ch_interv_losses"].items()} == {
        loc: len(channels) for loc, channels in payload["circuit_data"].items()
    }
    assert set(stated["layer_interv_losses"]) == {"0.attn", "0.mlp", "1.attn", "1.mlp", "final_resid"}
    ids, activations = stated["task_samples"]
    assert ids.shape == (32, planted.test.ids.shape[1])
    assert {(loc, c) for loc, channels in activations.items() for c in channels} == planted.nodes
    assert all(x.shape == ids.shape for channels in activations.values() for x in channels.values())


def test_effects_are_losses_without_the_nodes(circuit: Circuit, saved: Path) -> None:
    stated = read(saved)["importances"]
    by_name = {(n.location, n.channel): n.effect for n in circuit.nodes}
    answer = stated["ch_interv_losses"]["final_resid"][0]
    assert answer > stated["interv_loss"] + 0.5
    assert by_name["final_resid", 13] > 0.3
    assert stated["layer_interv_losses"]["0.mlp"] == pytest.approx(stated["interv_loss"] / 2)  # it has no node
    assert stated["layer_interv_losses"]["1.attn"] > stated["interv_loss"] / 2 + 0.3


def test_connections_are_the_weights(circuit: Circuit, saved: Path) -> None:
    found = {}
    for matrix, sources, targets, (source, target) in read(saved)["importances"]["pair_data_connections"]:
        for i, j in matrix.nonzero().tolist():
            found[(source, sources[i]), (target, targets[j])] = matrix[i, j].item()
    assert found == {(edge.source, edge.target): pytest.approx(edge.weight) for edge in circuit.edges}


def test_a_payload_of_theirs_has_nodes_alone(planted: Planted, circuit: Circuit, saved: Path, tmp_path: Path) -> None:
    payload = read(saved)
    del payload[OURS]
    payload["importances"] = {"loss": torch.tensor(0.02), "interv_loss": torch.tensor(0.3)}
    torch.save(payload, tmp_path / "theirs.pt")
    loaded = load_viz_data(tmp_path / "theirs.pt", planted.model, planted.subject.means)
    assert {(n.location, n.channel) for n in loaded.nodes} == planted.nodes
    assert len(loaded.edges) >= len(circuit.edges)  # all between the nodes
    assert loaded.about.checks == {"model_loss": pytest.approx(0.01), "circuit_loss": pytest.approx(0.15)}
    assert loaded(planted.test.ids).shape[:2] == planted.test.ids.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("circuit_data"), "KeyError: 'circuit_data'"),
        (lambda d: d["circuit_data"].update({"9.attn.q": torch.tensor([1])}), "KeyError: '9.attn.q'"),
        (lambda d: d["circuit_data"].update({"0.attn.q": torch.tensor([99])}), "0.attn.q has 32 channels"),
        (lambda d: d["circuit_data"].update({"0.attn.q": torch.tensor([-1])}), "0.attn.q has 32 channels"),
        (lambda d: d["circuit_data"].update({"0.attn.q": torch.ones(2, 2)}), "0.attn.q has 32 channels"),
        (lambda d: d[OURS]["edges"].append(("0.attn.c_attn", 5, 5)), "edges that the model has not"),
        (lambda d: d[OURS].update(calibration={"code": 1}), "TypeError"),
        (lambda d: d["importances"].update(loss="low"), "ValueError"),
    ],
)
def test_payloads_that_cannot_be(
    planted: Planted, saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    payload = read(saved)
    change(payload)
    torch.save(payload, tmp_path / "bad.pt")
    with pytest.raises(CircuitError, match=f"could not read .*{message}"):
        load_viz_data(tmp_path / "bad.pt", planted.model, planted.subject.means)


def test_damaged_and_missing_payloads(planted: Planted, saved: Path, tmp_path: Path) -> None:
    for data in (b"", saved.read_bytes()[:-100], b"PK\x03\x04"):
        (tmp_path / "bad.pt").write_bytes(data)
        with pytest.raises(CircuitError, match="could not read"):
            load_viz_data(tmp_path / "bad.pt", planted.model, planted.subject.means)
    with pytest.raises(CircuitError, match="No such file"):
        load_viz_data(tmp_path / "nothing.pt", planted.model, planted.subject.means)
