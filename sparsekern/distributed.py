"""Data parallel training: what processes started by ``torchrun`` agree on, and what they exchange."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ._native import build_info, cpu_isa, set_cpu_isa
from .nn import SparseWeight
from .optim.parallel import world_size


def rank() -> int:
    """Of this process among those that train together; the first one, 0, writes files and messages."""
    return dist.get_rank() if world_size() > 1 else 0


def local_device(device: str) -> str:
    """ "cuda" as the GPU that ``torchrun`` means for this process."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def start(device: torch.device) -> None:
    """Join the processes that ``torchrun`` started, if it did, and agree on the lowest instruction set among them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    isas = build_info()["cpu_isas"]
    lowest = torch.tensor(isas.index(cpu_isa()), device=device)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    set_cpu_isa(isas[int(lowest)])


def mean(number: Tensor) -> Tensor:
    """Over all processes."""
    if world_size() > 1:
        number = number.clone()
        dist.all_reduce(number)
        number /= world_size()
    return number


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether it is true in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block while the others wait: to fill a cache that all of them read."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


class _Loss(nn.Module):
    """``model.loss`` as a forward pass, which is what DistributedDataParallel watches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        return self.model.loss(*batch)  # type: ignore[operator,no-any-return]


def parallel_loss(model: nn.Module) -> nn.Module:
    """``model.loss`` whose backward pass averages the dense gradients over all processes.

    Those of sparse weights are left to :class:`sparsekern.optim.SparseAdamW`, whose Parameters change their lengths.
    """
    loss = _Loss(model)
    if world_size() == 1:
        return loss
    ignored = [name for name, _ in _named(loss)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, ignored)
    return DistributedDataParallel(loss, broadcast_buffers=False)


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of sparse weights."""
    owners = {name for name, m in module.named_modules() if isinstance(m, SparseWeight)}
    everything = [*module.named_parameters(), *module.named_buffers()]
    return [(name, t) for name, t in everything if name.rpartition(".")[0] in owners]
