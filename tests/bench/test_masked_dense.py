"""The baseline computes the same model and takes the same steps, so that timing it is fair."""

import pytest
import torch

import sparsekern as sk
from sparsekern.bench.masked_dense import MaskedDenseStep, masked_dense_copy
from sparsekern.train import set_budgets

CONFIG = sk.models.GPTConfig(block_size=16, vocab_size=50, n_layer=2, d_head=8, d_model=32)


def test_five_steps_of_both_models_give_the_same_losses_and_supports() -> None:
    torch.manual_seed(0)
    model = sk.models.GPT(CONFIG).double()
    model.set_floor(2)
    optimizer = sk.optim.SparseAdamW(sk.optim.param_groups(model), lr=0.05)
    set_budgets(model.matrices() + model.embeddings(), 0.2)
    dense = MaskedDenseStep(model, masked_dense_copy(model), lr=0.05)
    for step in range(5):
        ids = torch.randint(CONFIG.vocab_size, (4, 17), generator=torch.Generator().manual_seed(step))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # not bit for bit: torch.topk decides ties between zeros, and so some gradients, as it likes
        assert dense(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(loss.item(), abs=1e-3)
    for projected, weight in dense.projected:
        assert int((projected != 0).sum()) <= weight.nnz
        assert torch.equal(projected != 0, weight.master != 0)
