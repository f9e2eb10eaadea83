"""Region binding as it is defined, by a mask of all pairs of tokens: what the real thing is compared with."""

import contextlib

import torch


def attend_with(heads, mask=None):
    """Attention over [B, L, C] by torch; mask [L, L] bool, True = is seen."""

    def attend(q, k, v):
        q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    return attend


def visibility(regions, bound, owners, video_start, references, total, outside_sees_all):
    """[L, L] bool from the rules as they are written down, one pair of tokens at a time.

    The arguments are those of `region_attention.query_groups`.
    """
    video = range(video_start, video_start + regions.shape[1])
    reference_of = {token: r for r, tokens in enumerate(references) for token in tokens}
    sees = torch.ones((total, total), dtype=torch.bool)
    for key, r in reference_of.items():
        if owners[r] not in bound:
            continue
        for query in video:
            inside = {s for row, s in zip(regions, bound, strict=True) if row[query - video_start]}
            sees[query, key] = owners[r] in inside if inside else outside_sees_all
    return sees


@contextlib.contextmanager
def dense_self_attention(dit, mask_of, strength=1.0):
    """The DiT's self-attention under a mask, without any of core's hooks.

    mask_of   (number of tokens, transformer_options) -> [L, L] bool, or None for a call that is not bound
    strength  a number, or transformer_options -> number
    """
    import comfy.ldm.wan.model as wan

    current, plain = [], wan.optimized_attention

    def enter(_module, args, kwargs):
        options = kwargs["transformer_options"]
        current.append((mask_of(args[0].shape[1], options), strength(options) if callable(strength) else strength))

    def leave(*_):
        current.pop()

    def attention(q, k, v, heads, **kwargs):
        free = plain(q, k, v, heads, **kwargs)
        mask, share = current[-1] if current else (None, 0.0)
        return free if mask is None else torch.lerp(free, attend_with(heads, mask)(q, k, v), share)

    modules = [module for module in dit.modules() if type(module) is wan.WanSelfAttention]
    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(leave) for module in modules]
    wan.optimized_attention = attention
    try:
        yield
    finally:
        wan.optimized_attention = plain
        for handle in handles:
            handle.remove()
