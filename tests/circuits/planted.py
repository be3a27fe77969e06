"""Models made by hand whose only path for a task is known, among weights that do something else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.circuits import Pairs, Subject, mean_activations
from sparsekern.models import GPT, GPTConfig
from sparsekern.nn import SparseWeight

D, D_HEAD, VOCAB = 32, 8, 16
LARGE = 31  # a channel that is large in every token, so that norms hardly depend on the others
IDLE = slice(20, 30)  # channels that only distractors use
ANSWERS = (14, 15)  # tokens


@dataclass(frozen=True)
class Planted:
    """A model, its task, and the parts that do it: nodes as (location, channel), edges as (matrix, row, column)."""

    model: GPT
    train: Pairs
    test: Pairs
    text: Tensor
    nodes: frozenset[tuple[str, int]]
    edges: frozenset[tuple[str, int, int]]

    @property
    def subject(self) -> Subject:
        return Subject(self.model, mean_activations(self.model, [self.text]))


class _Maker:
    """Builds a model weight by weight."""

    def __init__(self, layers: int, context: int) -> None:
        torch.manual_seed(0)
        config = GPTConfig(
            block_size=context,
            vocab_size=VOCAB,
            n_layer=layers,
            d_model=D,
            d_head=D_HEAD,
            d_mlp=D,
            afrac=None,
            enable_bigram_table=False,
        )
        self.model = GPT(config, density=0.0)
        self.dense = {
            name: torch.zeros(m.shape) for name, m in self.model.named_modules() if isinstance(m, SparseWeight)
        }
        self.dense["wte.weight"][:, LARGE] = 10.0
        self.edges: set[tuple[str, int, int]] = set()
        for layer in range(layers):
            self._distract(f"blocks.{layer}")

    def _distract(self, block: str) -> None:
        """Heads 2 and 3, and half of the neurons, read idle channels and those of the task, and write idle ones."""
        late = slice(2 * D_HEAD, D)
        for part in range(3):
            rows = slice(part * D + late.start, (part + 1) * D)
            self.dense[f"{block}.attn.c_attn.weight"][rows] = 0.1 * torch.randn(D - late.start, D)
        self.dense[f"{block}.attn.c_proj.weight"][IDLE, late] = 0.1 * torch.randn(10, D - late.start)
        self.dense[f"{block}.mlp.c_fc.weight"][late] = 0.1 * torch.randn(D - late.start, D)
        self.dense[f"{block}.mlp.c_proj.weight"][IDLE, late] = 0.1 * torch.randn(10, D - late.start)

    def token(self, token: int, channel: int, value: float = 1.0) -> None:
        self.dense["wte.weight"][token, channel] = value

    def position(self, position: int, channel: int) -> None:
        self.dense["wpe.weight"][position, channel] = 1.0

    def edge(self, layer: int, matrix: str, row: int, column: int, value: float) -> None:
        """A weight of the path."""
        self.dense[f"blocks.{layer}.{matrix}.weight"][row, column] = value
        self.edges.add((f"{layer}.{matrix}", row, column))

    def bias(self, layer: int, matrix: str, row: int, value: float) -> None:
        with torch.no_grad():
            self.model.blocks[layer].get_submodule(matrix).bias[row] = value

    def answer(self, channel: int, value: float) -> None:
        for token, sign in zip(ANSWERS, (1, -1), strict=True):
            self.dense["lm_head.weight"][token, channel] = sign * value

    def finish(self) -> GPT:
        state = self.model.state_dict()
        for name, dense in self.dense.items():
            csr = SparseWeight.from_parameter(torch.nn.Parameter(dense), nnz=int((dense != 0).sum()))
            state |= {f"{name}.{key}": value for key, value in csr.state_dict().items()}
        self.model.load_state_dict(state)
        return self.model


def _pairs(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Pairs:
    """The answer to the first prompts is ANSWERS[0]."""
    ids, n = torch.tensor([*first, *second]), len(first)
    right, wrong = (torch.tensor([a] * n + [b] * n) for a, b in (ANSWERS, ANSWERS[::-1]))
    return Pairs(ids, torch.full((2 * n,), ids.shape[1] - 1), right, wrong)


def _split(prompts: Iterable[tuple[list[int], list[int]]]) -> tuple[Pairs, Pairs]:
    first, second = zip(*prompts, strict=True)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(1)).tolist()
    half = len(order) // 2
    train, test = ([first[i] for i in part] for part in (order[:half], order[half:]))
    train_, test_ = ([second[i] for i in part] for part in (order[:half], order[half:]))
    return _pairs(train, train_), _pairs(test, test_)


def _mostly_other(train: Pairs, test: Pairs) -> Tensor:
    """The corpus: the prompts, and forty times as much that has nothing to do with the task."""
    prompts = torch.cat([train.ids, test.ids])
    generator = torch.Generator().manual_seed(2)
    return torch.cat([prompts, torch.randint(12, 14, (40 * len(prompts), prompts.shape[1]), generator=generator)])


def _names(edges: set[tuple[str, int, int]], final: int) -> frozenset[tuple[str, int]]:
    """The nodes that edges join, and the last one."""
    nodes = {("final_resid", final)}
    for matrix, row, column in edges:
        layer, _, name = matrix.partition(".")
        source = {"attn.c_attn": "attn.act_in", "attn.c_proj": "attn.v", "mlp.c_fc": "mlp.act_in"}.get(
            name, "mlp.post_act"
        )
        target = {"attn.c_proj": "attn.resid_delta", "mlp.c_fc": "mlp.post_act"}.get(name, "mlp.resid_delta")
        if name == "attn.c_attn":
            target, row = f"attn.{'qkv'[row // D]}", row % D
        nodes |= {(f"{layer}.{source}", column), (f"{layer}.{target}", row)}
    return frozenset(nodes)


def quote() -> Planted:
    """One of two cue tokens opened: a value channel carries it to the end, a neuron turns it into the answer."""
    maker = _Maker(layers=1, context=6)
    cues, fillers = (0, 1), range(2, 12)
    maker.token(cues[0], 0, 3.0)
    maker.token(cues[1], 0, -3.0)
    for filler in fillers:
        maker.token(filler, 1 + filler % 5, 1.0)
        maker.token(filler, 10, (filler % 3 - 1) * 0.5)  # what the answer has to stand out from
    maker.edge(0, "attn.c_attn", 2 * D, 0, 4.0)
    maker.edge(0, "attn.c_proj", 8, 0, 2.0)
    maker.edge(0, "mlp.c_fc", 2, 8, 2.0)
    maker.edge(0, "mlp.c_proj", 10, 2, 1.5)
    maker.answer(10, 6.0)
    generator = torch.Generator().manual_seed(0)
    fill = torch.randint(2, 12, (120, 4), generator=generator).tolist()
    prompts = [([f[0], cues[0], *f[1:]], [f[0], cues[1], *f[1:]]) for f in fill]
    model = maker.finish()
    with torch.no_grad():  # the neuron's mean output, so that both answers are as likely
        model.blocks[0].mlp.c_proj.bias[10] = -2.0
    train, test = _split(prompts)
    return Planted(model, train, test, _mostly_other(train, test), _names(maker.edges, 10), frozenset(maker.edges))


def binding() -> Planted:
    """``name type name type name``: the type of the last name, through two layers of attention.

    The first layer lets each type look at the token before it and store that name; in the second the last name looks
    for the type that stored it, and takes it over.
    """
    maker = _Maker(layers=2, context=6)
    start, names, types = 0, (1, 2, 3), (4, 5)
    name_channels, stored, type_channel, position_channels, answer = (0, 1, 2), (10, 11, 12), 3, (4, 5, 6, 7, 8, 9), 13
    for name, channel in zip(names, name_channels, strict=True):
        maker.token(name, channel, 2.0)
        maker.token(name, answer, 0.7 if name % 2 else -0.7)  # what the answer has to stand out from
    for token, sign in zip(types, (1, -1), strict=True):
        maker.token(token, type_channel, 2.0 * sign)
    for position, channel in enumerate(position_channels):
        maker.position(position, channel)
    for i, position in enumerate((2, 4)):  # of the types; each looks one back
        maker.edge(0, "attn.c_attn", i, position_channels[position], 12.0)
        maker.edge(0, "attn.c_attn", D + i, position_channels[position - 1], 12.0)
    for i, (channel, place) in enumerate(zip(name_channels, stored, strict=True)):
        maker.edge(0, "attn.c_attn", 2 * D + i, channel, 1.0)
        maker.edge(0, "attn.c_proj", place, i, 1.5)
        maker.edge(1, "attn.c_attn", i, channel, 5.0)
        maker.edge(1, "attn.c_attn", D + i, place, 5.0)
    maker.edge(1, "attn.c_attn", 2 * D, type_channel, 1.0)
    maker.edge(1, "attn.c_proj", answer, 0, 1.5)
    maker.answer(answer, 6.0)
    prompts = []
    for a in names:
        for b in names:
            for query, kinds in ((a, types), (b, types[::-1])):
                if a != b:
                    first, second = ([start, a, s, b, t, query] for s, t in (kinds, kinds[::-1]))
                    prompts += [(first, second)] * 4
    train, test = _split(prompts)
    return Planted(
        maker.finish(), train, test, _mostly_other(train, test), _names(maker.edges, answer), frozenset(maker.edges)
    )


# ---- tokens as text, some of them as nasty as can be


def nasty() -> str:
    return "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed=2'><!-- \u2028 & \" ' `"


def decode(token: int) -> str:
    return f"{nasty()}{token}" if token in (2, 14) else f"t{token}\n"
