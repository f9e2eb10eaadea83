"""What an adapter's training can be told, by a node or a command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from ..loop import OPTIMIZERS
from .stages import Stages

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NO_RULE = "none"
# Ours: the weight is not published (arXiv 2501.01790 has the loss, the training code is not released).
ROUTER_WEIGHT = 0.1


@dataclass(frozen=True)
class Settings:
    """All that a training depends on, beside models and data.

    size             of a new adapter, one of presets.PRESETS
    reference_attention  whether a subject's reference tokens get an attention of their own
    width, height, frames  to which clips are scaled and cut
    rule             how the model takes references: auto, none, or one of conditioning.rules.RULES
    wording          of the prompts, one of relations.compose.WORDINGS
    steps, batch     batch is clips a step and process; rate is the learning rate
    stages, router_weight  see `stages` and `objective`
    lora_rank        of a LoRA on the DiT that is trained along; 0 for none
    checkpoint       depth of gradient checkpointing
    drop_text, drop_people  how often a clip goes without them
    validate_every   steps between validations; 0 for none
    Raises ValueError for what makes no training.
    """

    size: str = "small"
    reference_attention: bool = False
    width: int = 832
    height: int = 480
    frames: int = 81
    rule: str = "auto"
    wording: str = "descriptions"
    steps: int = 2000
    batch: int = 1
    rate: float = 3e-4
    stages: Stages = field(default_factory=Stages)
    router_weight: float = ROUTER_WEIGHT
    lora_rank: int = 0
    checkpoint: int = 2
    seed: int = 0
    optimizer: str = OPTIMIZERS[0]
    dtype: str = "bf16"
    drop_text: float = 0.1
    drop_people: float = 0.1
    validate_every: int = 0

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"The type '{self.dtype}' is unknown; choose one of {', '.join(DTYPES)}.")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"{self.steps} steps of {self.batch} clips train nothing; use at least 1 of each.")

    def facts(self) -> dict[str, str]:
        """What a training that is resumed must have in common with the one that was stopped."""
        free = ("checkpoint", "validate_every")
        return {name: str(value) for name, value in asdict(self).items() if name not in free}
