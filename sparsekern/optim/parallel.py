"""What processes that train the same model exchange about its sparse weights: gradients, and proof of equality."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..nn.weight import SparseWeight


def world_size() -> int:
    """Processes that train together (``torch.distributed``); 1 where there is only this one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients_(weights: Sequence[SparseWeight]) -> None:
    """Let every process have the mean of all gradients: one message for what is active, one for each dense master.

    A gradient that is missing here counts as zero. What observed weights have measured is averaged along.
    """
    sent: list[Tensor] = []
    for weight in weights:
        if not weight.parameter.requires_grad:
            continue
        grad = weight.parameter.grad
        if grad is None:
            grad = weight.parameter.grad = torch.zeros_like(weight.parameter)
        if weight.form == "master":
            dist.all_reduce(grad)
            grad.div_(world_size())
            continue
        sent.append(grad.view(-1))
        for leaf in weight.observed or ():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            sent.append(leaf.grad)
    if sent:
        flat = torch.cat(sent)
        dist.all_reduce(flat)
        flat.div_(world_size())
        torch._foreach_copy_(sent, list(flat.split([len(t) for t in sent])))


def gradient_bytes(weights: Sequence[SparseWeight]) -> int:
    """Bytes of gradient that each process gives away per step (without those measured at a refresh)."""
    return sum(weight.parameter.numel() * weight.parameter.itemsize for weight in weights)


def require_equal(weights: Mapping[str, SparseWeight]) -> None:
    """Compare checksums of values and active positions over all processes.

    Raises:
        RuntimeError: naming the first weight that differs.
    """
    if not weights:
        return
    mine = torch.stack([checksum(weight) for weight in weights.values()])
    everyones = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyones, mine)
    for i, name in enumerate(weights):
        sums = [int(theirs[i]) for theirs in everyones]
        if len(set(sums)) > 1:
            raise RuntimeError(f"processes have diverged: {name} has checksums {sums} on ranks 0 to {len(sums) - 1}")


def checksum(weight: SparseWeight) -> Tensor:
    """int64 scalar over the bits of the Parameter and of the pattern; equal ones mean equal weights."""
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    where = weight.active_pattern if weight.form == "active" else weight.pattern
    support = (weight.crow_indices, weight.col_indices)
    for t in (weight.parameter.detach(), *support, where.crow_indices, where.col_indices):
        bits = t.contiguous().view(torch.int32).flatten().long()
        # odd multipliers, so that a change of any element shows, and one of the order too
        total = total * 31 + (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()
    return total
