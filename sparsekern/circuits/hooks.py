"""Record and change activations inside of a GPT, at the points that :meth:`sparsekern.models.GPT.hook_points` names."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, is_grad_enabled, nn

from ..models import GPT

Change = Callable[[Tensor], Tensor]


@contextmanager
def record(model: GPT, names: str = ".*", *, gradients: bool = False) -> Iterator[dict[str, Tensor]]:
    """Keep what passes through hook points, after any :func:`intervene`.

    Args:
        model: whose forward passes are recorded; each overwrites what the one before it left.
        names: regular expression that the whole name of a point has to match.
        gradients: add the gradient of each tensor under its name + ".grad" once a backward pass reaches it.

    Yields:
        A dict, filled as the model runs: name -> (B, T, channels), part of the graph of autograd if there is one.

    Raises:
        ValueError: no point has such a name.

    Example::

        with record(model, r"\\d+\\.mlp\\.post_act") as acts:
            model(ids)
        acts["0.mlp.post_act"]
    """
    points = {name: module for name, module in model.hook_points().items() if re.fullmatch(names, name)}
    if not points:
        raise ValueError(f"names must match one of {', '.join(model.hook_points())}; got {names!r}")
    recorded: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        recorded[name] = x
        if gradients and is_grad_enabled():
            if not x.requires_grad:  # a model whose parameters are frozen
                x.requires_grad_()
            x.register_hook(lambda gradient: recorded.__setitem__(f"{name}.grad", gradient))

    with ExitStack() as hooks:
        for name, module in points.items():
            hooks.enter_context(_hooked(module, partial(keep, name)))
        yield recorded


@contextmanager
def intervene(model: GPT, changes: Mapping[str, Change]) -> Iterator[None]:
    """Let functions change what passes through hook points.

    Args:
        model: whose forward passes are changed.
        changes: name of a point -> function of the tensor there, (B, T, channels), to one of the same shape. Where
            several contexts change one point, the innermost acts first.

    Raises:
        ValueError: a point that the model has not.
    """
    points = model.hook_points()
    unknown = sorted(set(changes) - set(points))
    if unknown:
        raise ValueError(f"changes must be of {', '.join(points)}; got {', '.join(unknown)}")
    with ExitStack() as hooks:
        for name, change in changes.items():
            hooks.enter_context(_hooked(points[name], change, prepend=True))  # so that records come after
        yield


@contextmanager
def _hooked(module: nn.Module, function: Callable[[Tensor], Any], prepend: bool = False) -> Iterator[None]:
    """``function`` of the module's output; what it returns, unless None, takes its place."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: function(output), prepend=prepend)
    try:
        yield
    finally:
        handle.remove()
