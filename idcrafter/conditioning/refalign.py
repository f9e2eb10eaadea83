"""The RefAlign rule: Phantom's references, which take no part in the cross-attention to the text.

The tokens of the references join the self-attention and the feed-forward layers as any others do, but the text adds
nothing to them (gudaochangsheng/RefAlign, diffsynth/models/wan_video_dit.py, `DiTBlock`), so the MODEL is patched:
`backbones.refalign`. The released pipeline guides with Phantom's formula and scales (5.0 images, 7.5 text, shift 5),
cuts the subjects out onto white, and takes zeros in the model's space for "no references".
"""

from __future__ import annotations

import dataclasses

from ..backbones.refalign import skip_text_for_references
from .phantom import append_in_time
from .shot import Conditioned, Rule, Shot


def condition(shot: Shot) -> Conditioned:
    """As Phantom's, with a MODEL whose references do not read the text."""
    conditioned = append_in_time(shot, RULE)
    return dataclasses.replace(conditioned, model=skip_text_for_references(shot.model))


RULE = Rule("refalign", "RefAlign", limit=4, kind="t2v", condition=condition, patches=True)
