"""From what is connected to the guider that core would use for it."""

from __future__ import annotations

import comfy.samplers
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG


def make_guider(
    model,
    positive: list,
    negative_text: list | None = None,
    negative_images: list | None = None,
    cfg_text: float = 7.5,
    cfg_images: float = 5.0,
) -> comfy.samplers.CFGGuider:
    """The guider for one MODEL, which stays unmodified.

    positive only            no guidance, one model pass a step (distilled models)
    + negative_text          plain CFG at `cfg_text`, two passes
    + negative_images        `images + text` guidance, three passes (formula in `conditioning.phantom`):
                             core's dual CFG, "regular", cfg_conds = cfg_text, cfg_cond2_negative = cfg_images

    Raises ValueError when negative_images comes without negative_text.
    """
    if negative_images is not None:
        if negative_text is None:
            raise ValueError(
                "negative_images is connected but negative_text is not; connect both outputs of Cast to Video."
            )
        guider = Guider_DualCFG(model)
        guider.set_conds(positive, negative_text, negative_images)
        guider.set_cfg(cfg_text, cfg_images, nested=False)
    elif negative_text is not None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative_text)
        guider.set_cfg(cfg_text)
    else:
        guider = Guider_Basic(model)
        guider.set_conds(positive)
    return guider
