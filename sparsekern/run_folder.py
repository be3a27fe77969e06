"""What a run folder holds, and how it is read.

``config.json``, ``metrics.jsonl`` (a line per step), ``loss.png``, ``last.safetensors`` (everything, to go on from),
``best.safetensors`` (the model alone, at its best held-out loss since the target density was reached),
``tokenizer.json``; once circuits were looked for, ``means.safetensors`` and the folder ``circuits``.
"""

import json
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .models import GPT, GPTConfig
from .recipe import TrainConfig

CONFIG, METRICS, LAST, BEST, TOKENIZER, PLOT = (
    "config.json",
    "metrics.jsonl",
    "last.safetensors",
    "best.safetensors",
    "tokenizer.json",
    "loss.png",
)
MEANS, CIRCUITS = "means.safetensors", "circuits"


def read_config(folder: Path) -> TrainConfig:
    """How the run was trained.

    Raises:
        ValueError: the file is missing, or is no configuration.
    """
    try:
        return TrainConfig.from_json((folder / CONFIG).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"could not read {folder / CONFIG}: {error}") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics; a line that a kill cut short is left out."""
    lines = (folder / METRICS).read_text().splitlines()
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return steps


def load_model(folder: Path, device: str | torch.device = "cpu") -> GPT:
    """The best model of a run, with its sparse weights as their nonzeros; before there is one, the last.

    Raises:
        CheckpointError: the folder has no readable checkpoint, or one of a version with other settings.
    """
    path = folder / BEST if (folder / BEST).exists() else folder / LAST
    meta = checkpoint.read_meta(path)
    try:
        config = GPTConfig(**meta["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is of another version: {type(error).__name__}: {error}") from error
    model = GPT(config, density=0.0)
    checkpoint.load(path, model)
    return model.to(device).eval()
