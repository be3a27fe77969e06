"""A circuit as a program: it runs, is saved, is read again, and is drawn."""

import json
from pathlib import Path

import pytest
import torch
from planted import VOCAB, Planted, decode

from sparsekern.checkpoint import CheckpointError
from sparsekern.circuits import Circuit, CircuitError, margins, task_loss
from sparsekern.circuits.circuit import DESCRIPTION, WEIGHTS


def test_it_runs_by_itself_as_the_pruned_model_does(planted: Planted, circuit: Circuit) -> None:
    pairs = planted.test
    found = margins(circuit, pairs)
    torch.testing.assert_close(found, planted.subject.margins(pairs, circuit.cut))
    assert task_loss(found) < 0.01
    assert circuit(pairs.ids).shape == (*pairs.ids.shape, VOCAB)


def test_it_is_not_the_whole_model(planted: Planted, circuit: Circuit) -> None:
    assert (circuit(planted.test.ids) - planted.model(planted.test.ids)).abs().max() > 1


def test_saved_and_loaded_it_gives_the_same_logits(planted: Planted, circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c")
    loaded = Circuit.load(tmp_path / "c")
    assert loaded(planted.test.ids).equal(circuit(planted.test.ids))
    assert loaded.nodes == circuit.nodes
    assert loaded.edges == circuit.edges
    assert loaded.about == circuit.about
    loaded.save(tmp_path / "d")
    assert (tmp_path / "c" / DESCRIPTION).read_text() == (tmp_path / "d" / DESCRIPTION).read_text()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [DESCRIPTION, WEIGHTS]


def test_nodes_say_what_they_do(planted: Planted, circuit: Circuit) -> None:
    by_name = {(n.location, n.channel): n for n in circuit.nodes}
    answer = by_name["final_resid", 13]
    assert answer.effect > 0.3
    means = planted.subject.means
    for (location, channel), node in by_name.items():
        assert node.mean == pytest.approx(means[location][channel].item())
        assert len(node.activations) == len(circuit.about.prompts) == 8
        assert all(len(a) == len(p.tokens) for a, p in zip(node.activations, circuit.about.prompts, strict=True))
        sizes = [max(map(abs, c.activations)) for c in node.contexts]
        assert sizes == sorted(sizes, reverse=True)
        assert all(abs(c.activations[c.peak]) == size for c, size in zip(node.contexts, sizes, strict=True))
        assert all(len(c.tokens) == len(c.activations) for c in node.contexts)
    peak = by_name["1.attn.act_in", 3].contexts[0]  # the channel of the types
    assert peak.tokens[peak.peak] in ("t4\n", "t5\n")
    links = {(k.location, k.channel): dict(k.tokens) for k in circuit.about.links}
    assert set(links["final_resid", 13]) == {decode(14), decode(15)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("nodes"), "KeyError: 'nodes'"),
        (lambda d: d.update(format=2), "format must be 1, got 2"),
        (lambda d: d["nodes"][0].update(location="9.attn.q"), "KeyError: '9.attn.q'"),
        (lambda d: d["nodes"][0].update(channel=99), "0.attn.act_in has no channel 99"),
        (lambda d: d["nodes"][0].update(channel=-1), "0.attn.act_in has no channel -1"),
        (lambda d: d["model"].update(d_head=7), "d_model must be a multiple of d_head"),
        (lambda d: d["edges"][0].update(row=31), "edges that the model has not"),
        (lambda d: d.update(calibration={"scale": 1, "code": "x"}), "TypeError"),
        (lambda d: d.update(nodes=[1]), "TypeError"),
        (lambda d: d["model"].update(vocab_size=2**31), "circuit.safetensors is too small, .* bytes, for a model of"),
        (lambda d: d["model"].update(n_layer=2**40), "is too small"),
        (lambda d: d["model"].update(d_pos_emb=2**40), "is too small"),
        (lambda d: d["model"].update(enable_bigram_table=True, vocab_size=5000), "is too small"),
    ],
)
def test_a_description_that_cannot_be_is_a_clear_error(circuit: Circuit, tmp_path: Path, change, message: str) -> None:
    circuit.save(tmp_path)
    data = json.loads((tmp_path / DESCRIPTION).read_text())
    change(data)
    (tmp_path / DESCRIPTION).write_text(json.dumps(data))
    with pytest.raises(CircuitError, match=f"could not read .*{DESCRIPTION}: .*{message}"):
        Circuit.load(tmp_path)


def test_a_damaged_or_missing_file_is_a_clear_error(circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match="could not read .*No such file"):
        Circuit.load(tmp_path)
    circuit.save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="could not read"):
        Circuit.load(tmp_path)
    (tmp_path / DESCRIPTION).write_bytes(b"\xff{")
    with pytest.raises(CircuitError, match="UnicodeDecodeError"):
        Circuit.load(tmp_path)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures(circuit: Circuit, tmp_path: Path, kind: str, start: bytes) -> None:
    circuit.to_picture(tmp_path / f"c.{kind}")
    assert (tmp_path / f"c.{kind}").read_bytes().startswith(start)
