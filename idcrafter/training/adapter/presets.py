"""Sizes of a new adapter. Ours, all of them but `large`, which has the sizes of Ingredients' release."""

from __future__ import annotations

from ...modules.identity_adapter import AdapterConfig

# Faces are looked at through the VAE: a crop of 8 n px gives n x n places.
_COMMON = {"scales": 1, "visual": "vae", "router": True, "null": True, "hierarchy": 2, "order": 8}
PRESETS = {
    "nano": {
        "every": 1, "extractor_width": 128, "extractor_depth": 2, "extractor_heads": 4, "extractor_head_width": 32,
        "tokens": 16, "id_tokens": 4, "token_width": 128, "heads": 4, "head_width": 32, "hierarchy_heads": 4,
        "crop": 64,
    },
    "small": {
        "every": 2, "extractor_width": 512, "extractor_depth": 4, "extractor_heads": 8, "extractor_head_width": 64,
        "tokens": 16, "id_tokens": 4, "token_width": 512, "heads": 8, "head_width": 64, "hierarchy_heads": 8,
        "crop": 256,
    },
    "medium": {
        "every": 2, "extractor_width": 768, "extractor_depth": 6, "extractor_heads": 12, "extractor_head_width": 64,
        "tokens": 32, "id_tokens": 5, "token_width": 1024, "heads": 16, "head_width": 64, "hierarchy_heads": 16,
        "crop": 256,
    },
    "large": {
        "every": 2, "extractor_width": 1024, "extractor_depth": 10, "extractor_heads": 16, "extractor_head_width": 64,
        "tokens": 32, "id_tokens": 5, "token_width": 2048, "heads": 16, "head_width": 128, "hierarchy_heads": 16,
        "crop": 512,
    },
}  # fmt: skip


def crop_of(preset: str) -> int:
    """Side in px of a face's crop; ValueError for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"The size '{preset}' is unknown; choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]["crop"]


def adapter_config(
    preset: str, model, id_width: int, visual_width: int, context_width: int, gates: bool = False
) -> AdapterConfig:
    """A new adapter for this MODEL.

    id_width, visual_width, context_width  of the recogniser's embeddings, the VAE's latents, the prompt's tokens
    gates  whether a subject's reference tokens get an attention of their own (Wan only)
    """
    import comfy.ldm.cogvideo.model as cogvideo

    crop_of(preset)
    dit = model.get_model_object("diffusion_model")
    is_cog = isinstance(dit, cogvideo.CogVideoXTransformer3DModel)
    if gates and is_cog:
        raise ValueError("CogVideoX has no reference tokens, so there is nothing to gate; switch it off.")
    return AdapterConfig(
        "cogvideox" if is_cog else "wan",
        dit.dim,
        len(dit.blocks),
        **{**_COMMON, **PRESETS[preset]},
        id_width=id_width,
        visual_width=visual_width,
        context_width=context_width,
        reference_heads=dit.num_heads if gates else 0,
        on_references=not is_cog,
    )
