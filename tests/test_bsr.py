"""What blocks have beside the tests of every op."""

import pytest
import torch
from opcases import BLOCKS, Blocks, Draw, build_bsr_linear


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_blocks_are_not_rounded_on_the_cpu(shape: Blocks, isa: str) -> None:
    problem = build_bsr_linear(shape, Draw(torch.bfloat16), with_bias=True)
    x, *rest = problem.inputs
    assert torch.equal(problem.op(x, *rest), problem.op(x.float(), *rest).bfloat16())
