"""A tiny run as one of several processes: ``torchrun distributed_run.py SOURCES FOLDER [diverge | kill STEP]``.

Every process leaves its last weights in FOLDER; the first one the losses of all steps.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_run import tiny

from sparsekern import train
from sparsekern.train import Trainer

CHANGES = {"refresh_every": 4, "switch_density": 0.4, "switch": "density", "save_every": 2}


def main(sources: Path, folder: Path, what: str = "", step: str = "-1") -> None:
    torch.set_num_threads(1)
    train.plot_losses = lambda folder: None
    run = folder / "run"
    resume = (run / "last.safetensors").exists()
    trainer = Trainer.resume(run) if resume else Trainer(tiny(sources, **CHANGES), run)
    rank = int(os.environ.get("RANK", "0"))
    for done in trainer.run():
        if what == "kill" and done.step == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "diverge" and rank == 1 and done.step == 6:
            weight = trainer.model.blocks[0].mlp.c_proj.weight
            weight.active.data[weight.active_pattern.slots[7]] *= 1.001
        if rank == 0:
            with open(folder / "losses.jsonl", "a") as file:
                file.write(json.dumps([done.step, done.loss, done.held_out]) + "\n")
    state = {name: t.contiguous().clone() for name, t in trainer.model.state_dict().items()}
    save_file(state, folder / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
