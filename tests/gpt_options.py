"""Every option of the GPT at once, for tests that want a model as far from the default as can be."""

from typing import Any

from sparsekern.models.config import LOCATIONS

EVERY_OPTION: dict[str, Any] = {
    "d_pos_emb": 4,
    "sink": True,
    "activation_type": "relu",
    "residual_activation_type": "relu",
    "afrac_loctypes": ",".join(LOCATIONS),
    "afrac": 0.5,
    "tied_unembed": True,
    "rms_norm": False,
    "final_logits_bias": True,
}
