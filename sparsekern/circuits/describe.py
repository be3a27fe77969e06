"""What the nodes of a circuit do: their effect, their activations on prompts, and where they are most active."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .about import About, Context, Link, Node, Prompt
from .checks import Checks
from .circuit import Circuit
from .hooks import record
from .nodes import Layout
from .prune import Cut, Subject
from .tasks import Pairs, Task

PROMPTS = 4  # pairs that are shown
CONTEXTS = 5  # for each node
AROUND = 12  # tokens on each side of the peak
LINKS = 8  # tokens of a link

Decode = Callable[[int], str]


def describe(
    subject: Subject, task: Task, cut: Cut, text: Iterable[Tensor], decode: Decode, target: float, checks: Checks | None
) -> Circuit:
    """A circuit with everything a reader wants to know of its nodes.

    Args:
        text: batches of (B, T) ids in which the nodes' contexts are looked for.
        decode: the text of a token.
    """
    circuit = Circuit(subject.model, subject.means, cut)
    shown = task.test[torch.arange(min(PROMPTS, len(task.test)))]
    nodes = _with_contexts(subject, circuit.nodes, text, decode)
    nodes = _with_activations(subject, nodes, cut, shown)
    effects = _effects(subject, task.test, cut)
    layout = Layout.of(subject.model.config)
    means = layout.join(subject.means)[cut.nodes].tolist()
    nodes = [replace(n, mean=m, effect=e) for n, m, e in zip(nodes, means, effects, strict=True)]
    about = About(
        task=task.name,
        between=task.between,
        cue=task.cue,
        target=target,
        checks={} if checks is None else asdict(checks),
        prompts=_prompts(subject, cut, shown, decode),
        links=tuple(_links(subject, circuit.nodes, decode)),
    )
    return Circuit(subject.model, subject.means, cut, about, nodes)


def _effects(subject: Subject, pairs: Pairs, cut: Cut) -> list[float]:
    """By how much the loss rises when each of the nodes is cut too, with the calibration left as it is."""
    whole = subject.loss(pairs, cut)
    effects = []
    for node in cut.nodes.nonzero()[:, 0]:
        nodes = cut.nodes.clone()
        nodes[node] = False
        effects.append(subject.loss(pairs, replace(cut, nodes=nodes)) - whole)
    return effects


def _prompts(subject: Subject, cut: Cut, pairs: Pairs, decode: Decode) -> tuple[Prompt, ...]:
    with torch.no_grad():
        margins = subject.margins(pairs, cut).tolist()
    columns = (pairs.ids.tolist(), pairs.last.tolist(), pairs.targets.tolist(), pairs.others.tolist(), margins)
    return tuple(
        Prompt(tuple(decode(i) for i in ids[: last + 1]), decode(target), decode(other), margin)
        for ids, last, target, other, margin in zip(*columns, strict=True)
    )


@torch.no_grad()
def _with_activations(subject: Subject, nodes: Sequence[Node], cut: Cut, pairs: Pairs) -> list[Node]:
    with subject.cut(cut) as model, record(model, _names(nodes)) as acts:
        model(pairs.ids)
    lengths = (pairs.last + 1).tolist()

    def of(node: Node) -> tuple[tuple[float, ...], ...]:
        rows = acts[node.location][..., node.channel].tolist()
        return tuple(tuple(row[:length]) for row, length in zip(rows, lengths, strict=True))

    return [replace(node, activations=of(node)) for node in nodes]


@torch.no_grad()
def _with_contexts(subject: Subject, nodes: Sequence[Node], text: Iterable[Tensor], decode: Decode) -> list[Node]:
    """With the places of largest magnitude, one from each piece of text at most."""
    ids, found = [], []
    with record(subject.model, _names(nodes)) as acts:
        for batch in text:
            subject.model(batch)
            ids.append(batch.cpu())
            found.append(torch.stack([acts[n.location][..., n.channel] for n in nodes], -1).cpu() if nodes else None)
    if not nodes or not ids:
        return list(nodes)
    tokens, values = torch.cat(ids), torch.cat([x for x in found if x is not None])  # (B, T), (B, T, nodes)
    peaks, places = values.abs().max(1)
    described = []
    for n, node in enumerate(nodes):
        rows = peaks[:, n].topk(min(CONTEXTS, len(tokens))).indices.tolist()
        chosen = [(row, int(places[row, n])) for row in rows if peaks[row, n] > 0]
        contexts = tuple(_context(tokens[row], values[row, :, n], peak, decode) for row, peak in chosen)
        described.append(replace(node, contexts=contexts))
    return described


def _context(ids: Tensor, values: Tensor, peak: int, decode: Decode) -> Context:
    start, stop = max(0, peak - AROUND), peak + AROUND + 1
    tokens = tuple(decode(i) for i in ids[start:stop].tolist())
    return Context(tokens, tuple(values[start:stop].tolist()), peak - start)


def _links(subject: Subject, nodes: Sequence[Node], decode: Decode) -> Iterable[Link]:
    """What the embedding writes into channels that nodes read, and what the unembedding reads from the last ones."""
    wte, lm_head = (layer.weight.to_dense() for layer in (subject.model.wte, subject.model.lm_head))
    for node in nodes:
        is_read = node.location.endswith("act_in") and node.channel < wte.shape[1]  # channels after that are positions
        if is_read or node.location == "final_resid":
            column = (lm_head if node.location == "final_resid" else wte)[:, node.channel]
            top = column.abs().topk(min(LINKS, len(column))).indices.tolist()
            tokens = tuple((decode(i), float(column[i])) for i in top if column[i] != 0)
            if tokens:
                yield Link(node.location, node.channel, tokens)


def _names(nodes: Sequence[Node]) -> str:
    return "|".join({node.location.replace(".", r"\.") for node in nodes}) or "final_resid"
