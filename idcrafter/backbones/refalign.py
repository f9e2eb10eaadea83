"""A Wan model whose references do not read the text: RefAlign's block on core's weights.

    x      = x + gate * self_attention(modulated norm of x)          all tokens
    video  = video + cross_attention(norm of video, text)            the video's tokens only
    x      = x + gate * feed_forward(modulated norm of x)            all tokens

(gudaochangsheng/RefAlign, diffsynth/models/wan_video_dit.py, `DiTBlock`.) Core has a hook after the cross-attention but
none for it, and its output projection has a bias, so nothing short of the block tells the two kinds of tokens apart.
It is replaced through `patches_replace["dit"][("double_block", i)]`; whoever sits there already is called with this
block as the original one. Weights are used where core keeps them, so LoRAs, fp8 and offloading work as before.
"""

from __future__ import annotations

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.patcher_extension
import torch

KEY = "idcrafter_refalign"


def skip_text_for_references(model):
    """A clone of the MODEL in which the frames of `time_dim_concat` take no part in text cross-attention.

    A call without such frames is the model's own. Raises ValueError unless the MODEL is a plain Wan text-to-video one.
    """
    dit = model.get_model_object("diffusion_model")
    if type(dit) is not wan.WanModel:
        raise ValueError(
            f"RefAlign's blocks exist in a plain Wan text-to-video model, but this MODEL is a {type(dit).__name__}. "
            "Connect the RefAlign model."
        )
    model = model.clone()
    wrappers = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.remove_wrappers_with_key(wrappers, KEY)
    model.add_wrapper_with_key(wrappers, KEY, _tell_blocks)
    others = model.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    for i in range(len(dit.blocks)):
        other = others.get(("double_block", i))
        while isinstance(other, _Block):
            other = other.other
        model.set_model_patch_replace(_Block(other), "dit", "double_block", i)
    return model


def _tell_blocks(executor, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
    """The blocks learn from the call which model's they are, and how many of its frames are references.

    A patch that kept the model would keep the wrong one once core has cloned it deeply.
    """
    if time_dim_concat is not None:
        transformer_options = {
            **transformer_options,
            KEY: {"blocks": executor.class_obj.blocks, "references": time_dim_concat.shape[2]},
        }
    return executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)


class _Block:
    """What stands in for one block; `other` is the replacement that was there before, or None."""

    def __init__(self, other=None):
        self.other = other

    def __call__(self, args: dict, extra: dict) -> dict:
        if self.other is not None:
            return self.other(args, {**extra, "original_block": lambda inner: _run(inner, extra["original_block"])})
        return _run(args, extra["original_block"])


def _run(args: dict, original) -> dict:
    options = args["transformer_options"]
    call = options.get(KEY)
    if call is None:
        return original(args)
    frames = options["grid_sizes"][0]
    video = args["img"].shape[1] // frames * (frames - call["references"])
    return {"img": block_forward(call["blocks"][options["block_index"]], args, video)}


def block_forward(block, args: dict, video: int) -> torch.Tensor:
    """One Wan block on [B, L, C], of whose L tokens the first `video` read the text."""
    x, modulation, options = args["img"], args["vec"], args["transformer_options"]
    own = comfy.model_management.cast_to(block.modulation, dtype=x.dtype, device=x.device)
    shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (
        wan.repeat_e(part, x) for part in (own.unsqueeze(0) + modulation).unbind(2)
    )
    x = x.contiguous()
    attended = block.self_attn(torch.addcmul(shift, block.norm1(x), 1 + scale), args["pe"], transformer_options=options)
    x = torch.addcmul(x, attended, gate)
    seeing = x[:, :video]
    seeing = seeing + block.cross_attn(block.norm3(seeing), args["txt"], transformer_options=options)
    x = torch.cat([seeing, x[:, video:]], dim=1)
    for patch in options.get("patches", {}).get("attn2_patch", ()):
        x = patch({"x": x, "transformer_options": options})
    forward = block.ffn(torch.addcmul(shift_ffn, block.norm2(x), 1 + scale_ffn))
    return torch.addcmul(x, forward, gate_ffn)
