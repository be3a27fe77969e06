"""What is known of a circuit: its nodes, edges and examples, as its JSON file and its page have them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Context:
    """A piece of the corpus in which a node is strongly active.

    Attributes:
        tokens: as text; ``activations``: of the node, at each of them.
        peak: index of the token for which it was chosen.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class Node:
    """A channel that the circuit keeps.

    Attributes:
        location, channel: where it is ("0.mlp.post_act", 17).
        mean: over the training corpus.
        effect: by how much the circuit's task loss rises, in nats, when this node is cut too.
        activations: in the circuit, for each of its prompts, at each token.
        contexts: where it is most active in the whole model.
    """

    location: str
    channel: int
    mean: float = 0.0
    effect: float = 0.0
    activations: tuple[tuple[float, ...], ...] = ()
    contexts: tuple[Context, ...] = ()


@dataclass(frozen=True)
class Edge:
    """A weight that the circuit keeps; ``source`` and ``target`` are location and channel of the nodes it joins."""

    matrix: str
    row: int
    column: int
    weight: float
    source: tuple[str, int]
    target: tuple[str, int]


@dataclass(frozen=True)
class Link:
    """How strongly the embedding writes, or the unembedding reads, a residual channel.

    Attributes:
        location, channel: of the node that reads the channel, or of the last residual.
        tokens: with the largest weights in that channel, and those weights.
    """

    location: str
    channel: int
    tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Prompt:
    """An example of the task: tokens as text, what is right, what not, and the circuit's margin."""

    tokens: tuple[str, ...]
    answer: str
    other: str
    margin: float


@dataclass(frozen=True)
class About:
    """What the circuit does, and what was measured when it was found.

    Attributes:
        task, between, cue: of the task.
        target: loss that it was searched for, in nats.
        checks: the fields of :class:`sparsekern.circuits.checks.Checks`, or empty.
        links: of the embedding and the unembedding.
    """

    task: str = ""
    between: str = ""
    cue: str = ""
    target: float = 0.0
    checks: Mapping[str, float | int | None] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = ()
    links: tuple[Link, ...] = ()
