"""Models as folders of the Hugging Face Hub: ``config.json`` and ``model.safetensors``.

Needs huggingface_hub (of the extra "train"); ``import sparsekern`` alone does not import this module.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

from .. import checkpoint
from .config import GPTConfig
from .gpt import GPT

WEIGHTS = "model.safetensors"


class HubGPT(GPT, PyTorchModelHubMixin, library_name="sparsekern", tags=["sparsekern", "weight-sparse"]):
    """A GPT with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Weights are saved as their nonzeros and positions, so that files are as small as the model is sparse::

        HubGPT.of(model).save_pretrained("folder")
        model = HubGPT.from_pretrained("folder")  # or the name of a repository on the Hub

    ``from_pretrained`` raises :class:`sparsekern.checkpoint.CheckpointError` for a file that is damaged or unfit.
    """

    def __init__(self, config: GPTConfig, density: float | None = 0.0) -> None:
        super().__init__(config, density=density)

    @classmethod
    def of(cls, model: GPT) -> "HubGPT":
        """A copy of any GPT."""
        hub = cls(model.config)
        hub.load_state_dict(model.state_dict())
        return hub.train(model.training)

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.save_weights(save_directory / WEIGHTS, self, {})

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: GPTConfig,
        map_location: str = "cpu",
        **_: Any,
    ) -> "HubGPT":
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            options = {"cache_dir": cache_dir, "force_download": force_download, "token": token}
            path = Path(
                hf_hub_download(model_id, WEIGHTS, revision=revision, local_files_only=local_files_only, **options)  # type: ignore[arg-type]
            )
        model = cls(config)
        checkpoint.load(path, model)
        return model.to(map_location).eval()
