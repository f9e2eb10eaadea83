"""The SkyReels-V3 rule: Phantom's, but the model has always seen exactly four references.

Fewer are filled up with zero references behind them; the released pipeline does so before every run
(SkyworkAI/SkyReels-V3, skyreels_v3/pipelines/reference_to_video_pipeline.py). The release is distilled: 8 steps,
shift 5, and no guidance, so only `positive` is needed. Its two guidance scales, where wanted, are Phantom's formula.
"""

from __future__ import annotations

from .phantom import append_in_time
from .shot import Conditioned, Rule, Shot

SLOTS = 4


def condition(shot: Shot) -> Conditioned:
    """As Phantom's, with zero references up to four."""
    return append_in_time(shot, RULE, slots=SLOTS)


RULE = Rule("skyreels-v3", "SkyReels-V3", limit=SLOTS, kind="t2v", condition=condition)
