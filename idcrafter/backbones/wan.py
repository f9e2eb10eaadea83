"""Where the hooks of ComfyUI's Wan models are, and which of their tokens are what.

Token layout (comfy/ldm/wan/model.py of ComfyUI 0.30): [one leading frame of a Fun reference] [the video, T x H x W]
[the frames of `time_dim_concat`: Phantom and its relatives] [HuMo's `reference_latent` frames, or Bernini's
`context_latents` streams, which may have sizes of their own]. VACE keeps its references inside of the video as its
first frames, so they have no tokens of their own.

Self-attention is replaced through `transformer_options["optimized_attention_override"]`, core's one hook that sees q,
k and v before the kernel. `attn1_patch` comes after the kernel and without v, and replacing blocks or their modules
would collide with LoRA keys, SLG and block swapping. A DIFFUSION_MODEL wrapper puts the override in on each call of
the model, around whatever other nodes have set there (sage, sparse attention), so the order of nodes does not matter.
It is also put in while there is nothing to do, and its Python is kept out of torch.compile, because core's compile
node drops all guards on transformer_options: a compiled graph would not notice that it came or went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import comfy.ldm.wan.model as wan
import comfy.model_patcher
import comfy.patcher_extension
import torch

# Conditioning key: the name of each reference's subject, in token order. A cond without it follows the cast's order.
REFERENCE_NAMES = "idcrafter_reference_names"

Attention = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens of a model call are what.

    frames       the video's latent frames that this call has, in order (a context window has some of them)
    total_frames of the whole video, in latent frames
    rows, columns  of the latent, before it is padded to whole patches
    patch        rows and columns of a patch
    video        the tokens of the video, in T, H, W order
    references   the tokens of each reference, behind each other after the video
    """

    frames: tuple[int, ...]
    total_frames: int
    rows: int
    columns: int
    patch: tuple[int, int]
    video: range
    references: tuple[range, ...]

    @property
    def total(self) -> int:
        """All tokens."""
        return self.references[-1].stop if self.references else self.video.stop


@dataclass(frozen=True)
class Run:
    """What is known before the first step of a sampler's run.

    kind        the diffusion model's class name
    frames, rows, columns  of the video's latent
    references  for each cond, the subjects' names of its references, or None for one not named
    to_sigma    percent of the schedule in 0..1 -> sigma, with the model's own shift
    """

    kind: str
    frames: int
    rows: int
    columns: int
    references: tuple[tuple[str | None, ...], ...]
    to_sigma: Callable[[float], float]


# (layout, sigma) -> (attend, q, k, v, transformer_options) -> result, or None where the model's own attention shall be
# used.
BeginCall = Callable[[TokenLayout, float], Attention | None]


def require_wan(model, what: str) -> None:
    """ValueError unless the MODEL is of a Wan kind whose hooks and token layout are known here."""
    dit = model.get_model_object("diffusion_model")
    if type(dit) not in (wan.WanModel, wan.VaceWanModel, wan.HumoWanModel):
        raise ValueError(
            f"{what} needs a Wan model that takes references as tokens (Phantom, SkyReels-V3, RefAlign, HuMo, "
            f"Bernini); this MODEL is a {type(dit).__name__}. Connect such a model, or leave this node out."
        )


def replace_self_attention(model, key: str, begin_run: Callable[[Run], BeginCall], adds: bool = False):
    """A clone of the MODEL whose self-attention may be computed by another function.

    key        names the replacement; a second one under the same key takes its place
    begin_run  called once a run before the model is loaded, so it is the place for errors; its result is called once a
               model call
    adds       whether it adds to what the attention gives, so that it must stay around replacements that split it
    """
    model = model.clone()
    types = comfy.patcher_extension.WrappersMP

    def outer_sample(executor, noise, latent_image, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        guider.model_options["transformer_options"][key] = begin_run(run_of(guider, latent_image))
        try:
            return executor(noise, latent_image, *args, **kwargs)
        finally:
            guider.model_options = options

    def diffusion_model(executor, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        transformer_options = _with_override(
            key, executor.class_obj, x, context, clip_fea, time_dim_concat, transformer_options, kwargs, adds
        )
        return executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)

    for kind, wrapper in ((types.OUTER_SAMPLE, outer_sample), (types.DIFFUSION_MODEL, diffusion_model)):
        model.remove_wrappers_with_key(kind, key)
        model.add_wrapper_with_key(kind, key, wrapper)
    return model


def token_layout(
    dit, x: torch.Tensor, time_dim_concat: torch.Tensor | None, transformer_options: dict, kwargs: dict
) -> TokenLayout:
    """The layout of one call of a Wan DiT, from the arguments that a DIFFUSION_MODEL wrapper gets.

    x [B, C, T, H, W], time_dim_concat [B, C, N, H, W], kwargs: reference_latent, context_latents
    """
    frames, rows, columns = x.shape[2:]
    size = _tokens(dit, rows, columns)
    has_lead = dit.ref_conv is not None and kwargs.get("reference_latent") is not None
    video = range(size * has_lead, size * (frames + has_lead))
    references, end = [], video.stop
    for length in _reference_lengths(dit, size, time_dim_concat, kwargs):
        references.append(range(end, end + length))
        end += length
    window = transformer_options.get("context_window")
    return TokenLayout(
        frames=tuple(range(frames)) if window is None else _window_frames(window),
        total_frames=frames if window is None else window.total_frames,
        rows=rows,
        columns=columns,
        patch=tuple(dit.patch_size[1:]),
        video=video,
        references=tuple(references),
    )


@torch.compiler.disable
def _with_override(
    key: str, dit, x, context, clip_fea, time_dim_concat, transformer_options: dict, kwargs: dict, adds: bool
) -> dict:
    """The transformer_options of one model call with the override of the run that is under `key`."""
    begin_call = transformer_options.get(key)
    if begin_call is None:
        return transformer_options
    layout = token_layout(dit, x, time_dim_concat, transformer_options, kwargs)
    # The rows of a model call are conds of the same step, so there is one sigma.
    attention = begin_call(layout, float(transformer_options["sigmas"].max())) if layout.references else None
    # What cross-attention has on its other side: the prompt and, in an image-to-video model, the image's features.
    others = [context.shape[1]]
    if clip_fea is not None and dit.img_emb is not None:
        others.append(clip_fea.shape[-2])
    outer = transformer_options.get("optimized_attention_override")
    if isinstance(outer, _Override) and outer.adds and not adds:
        outer.outer = _Override(attention, layout.total, others, outer.outer)
        return transformer_options
    override = _Override(attention, layout.total, others, outer, adds)
    return {**transformer_options, "optimized_attention_override": override}


class _Override:
    """`optimized_attention_override` of one model call: self-attention goes to `attention`, the rest on as before."""

    def __init__(
        self,
        attention: Attention | None,
        total: int,
        others: Sequence[int],
        outer: Callable | None,
        adds: bool = False,
    ):
        self.attention = attention
        self.adds = adds
        self.total = total
        self.outer = outer
        # Self-attention is the call with all tokens on both sides. A prompt may have just as many; then each block
        # makes several such calls, of which self-attention is the first.
        self.calls_a_block = 1 + list(others).count(total)
        self.calls = 0

    @torch.compiler.disable
    def __call__(self, kernel, q, k, v, *args, **kwargs):
        def attend(q, k, v):
            if self.outer is not None:
                return self.outer(kernel, q, k, v, *args, **kwargs)
            return kernel(q, k, v, *args, **kwargs)

        if self.attention is None or q.ndim != 3 or not q.shape[1] == k.shape[1] == self.total:
            return attend(q, k, v)
        self.calls += 1
        if (self.calls - 1) % self.calls_a_block:
            return attend(q, k, v)
        return self.attention(attend, q, k, v, kwargs.get("transformer_options") or {})


def _tokens(dit, rows: int, columns: int) -> int:
    """Tokens of a latent frame, padded to whole patches (Wan's patches are one frame deep)."""
    return -(-rows // dit.patch_size[1]) * -(-columns // dit.patch_size[2])


def _reference_lengths(dit, size: int, time_dim_concat: torch.Tensor | None, kwargs: dict) -> Iterator[int]:
    """Tokens of each reference, in token order."""
    if time_dim_concat is not None:
        yield from [size] * time_dim_concat.shape[2]
    if isinstance(dit, wan.HumoWanModel):
        latent = kwargs.get("reference_latent")
        if latent is not None:
            # Not padded: what is no whole patch is cut off.
            rows, columns = (side // patch for side, patch in zip(latent.shape[3:], dit.patch_size[1:], strict=True))
            yield from [rows * columns] * latent.shape[2]
    for latent in kwargs.get("context_latents") or ():
        yield latent.shape[2] * _tokens(dit, *latent.shape[3:])


def _window_frames(window) -> tuple[int, ...]:
    """The latent frames of a context window, with the frame before it that core may put in front."""
    anchor = getattr(window, "causal_anchor_index", None)
    return (*([] if anchor is None or anchor < 0 else [anchor]), *window.index_list)


def run_of(guider, latent_image: torch.Tensor) -> Run:
    """What an OUTER_SAMPLE wrapper knows of the run that it begins."""
    patcher = guider.model_patcher
    dit = patcher.get_model_object("diffusion_model")
    conds = [cond for group in guider.conds.values() for cond in group or ()]
    frames, rows, columns = latent_image.shape[2:]
    return Run(
        kind=type(dit).__name__,
        frames=frames,
        rows=rows,
        columns=columns,
        references=tuple(_reference_names(dit, cond) for cond in conds),
        to_sigma=patcher.get_model_object("model_sampling").percent_to_sigma,
    )


def _reference_names(dit, cond: dict) -> tuple[str | None, ...]:
    """The names of one cond's references, as `_reference_lengths` will count them."""
    count = 0 if cond.get("time_dim_concat") is None else cond["time_dim_concat"].shape[2]
    if isinstance(dit, wan.HumoWanModel) and cond.get("reference_latents"):
        count += cond["reference_latents"][-1].shape[2]
    count += len(cond.get("context_latents") or ())
    names = tuple(cond.get(REFERENCE_NAMES) or ())
    # Another node may have exchanged the references after they were named.
    return names if len(names) == count else (None,) * count
