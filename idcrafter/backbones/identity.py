"""An identity adapter on ComfyUI's video DiTs: who is in the conditioning is brought into the video's tokens.

The subjects ride in each conditioning (`attach_subjects`), so a prompt with people and one without may stand in one
batch; a row without subjects is left exactly as it is. What the hierarchy and the projections make of the subjects does
not depend on the noise and is computed once a run.

After each of its blocks the adapter adds to the video's tokens. A Wan model has a hook there, which VACE's side branch
does not fire: `patches["double_block"]`. CogVideoX has none: forward hooks sit on its blocks for the length of one
call, found through the running model, because a patch that kept the model would keep the wrong one after a deep clone.

All of it runs outside of torch.compile's graphs: core's compile node drops the guards on transformer_options, so a
graph need not notice that there are other people, or none any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.conds
import comfy.ldm.cogvideo.model as cogvideo
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch

from ..modules.hierarchy import Levels
from ..modules.identity_adapter import IdentityAdapter
from ..modules.insertion import BlockIdentity, insert
from . import references, relations, wan
from .schedule import SigmaRange

KEY = "idcrafter_identity"
# transformer_options key of a deque (core copies lists) that gets a `Routing` of each insertion: for router maps and
# the router's loss.
RECORD = "idcrafter_routing"
# Conditioning key: the names of the subjects that the adapter's rows of weights stand for.
IDENTITY_NAMES = "idcrafter_identity_names"
# The rows of a call in which there is no subject.
NOBODY = slice(0, 0)


@dataclass(frozen=True)
class Injection:
    """How an adapter is used.

    strength      of what is added to the video's tokens; 0 is off
    levels        of the hierarchy, see `Levels`
    temperature   of the router: below 1 decides harder, above 1 softer
    start, end    share of the schedule, 0..1, between which the adapter is on
    first, last   the DiT's blocks, from 0, after which it may add
    unconditional_residual  whether all rows get what the unconditional row would get, as the released Ingredients
                  pipeline does it; only in calls that have such a row
    """

    strength: float = 1.0
    levels: Levels = Levels()
    temperature: float = 1.0
    start: float = 0.0
    end: float = 1.0
    first: int = 0
    last: int = 10_000
    unconditional_residual: bool = False


@dataclass(frozen=True, eq=False)
class Routing:
    """What one insertion did.

    block    after which it came
    weights  [B, T * H * W, S] of the subjects; with an unconditional residual, B is that of its rows
    logits   the router's [B, T * H * W, S], one more with a null identity; None without a router
    grid     (T, H, W), the video's tokens
    key      the adapter's
    """

    block: int
    weights: torch.Tensor
    logits: torch.Tensor | None
    grid: tuple[int, int, int]
    key: str


class SubjectsCond(comfy.conds.CONDRegular):
    """[identity tokens [B, S, P, K, C], photos [B, S, P]] as one cond; a batch is padded to its most subjects.

    A list, because context windows cut tensors that happen to be as long as the video.
    """

    def process_cond(self, batch_size: int, **kwargs) -> SubjectsCond:
        return SubjectsCond([comfy.utils.repeat_to_batch_size(tensor, batch_size) for tensor in self.cond])

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return isinstance(other, SubjectsCond) and other.cond[0].shape[3:] == self.cond[0].shape[3:]

    def concat(self, others: Sequence[SubjectsCond]) -> list[torch.Tensor]:
        conds = [self.cond, *(other.cond for other in others)]
        subjects, photos = (max(cond[1].shape[axis] for cond in conds) for axis in (1, 2))

        def pad(tensor: torch.Tensor) -> torch.Tensor:
            padded = tensor.new_zeros(tensor.shape[0], subjects, photos, *tensor.shape[3:])
            padded[:, : tensor.shape[1], : tensor.shape[2]] = tensor
            return padded

        return [torch.cat([pad(cond[i]) for cond in conds]) for i in range(2)]

    def size(self) -> list[int]:
        return list(self.cond[0].shape)


def attach_subjects(
    conditioning: list, key: str, tokens: torch.Tensor, photos: torch.Tensor, names: Sequence[str] = ()
) -> list:
    """A copy of a CONDITIONING with these subjects: tokens [S, P, K, C] a photo, photos [S, P] 1, or 0 for padding.

    All conditionings of a sampler need the key, so that guidance stays one batched call; without people, `photos` is
    all zeros.
    names  of the S subjects, for who shows where they are
    """
    cond = SubjectsCond([tokens[None], photos[None]])
    named = {IDENTITY_NAMES: tuple(names)} if names else {}
    return [
        [embedding, {**values, **named, "model_conds": {**values.get("model_conds", {}), key: cond}}]
        for embedding, values in conditioning
    ]


def next_key(model) -> str:
    """A key for one more adapter on this MODEL."""
    wrappers = model.get_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY)
    return f"{KEY}_{len(wrappers)}"


def require_fit(model, adapter: IdentityAdapter) -> None:
    """ValueError unless the adapter was made for a DiT of this family and size."""
    config = adapter.config
    dit = model.get_model_object("diffusion_model")
    family = "cogvideox" if isinstance(dit, cogvideo.CogVideoXTransformer3DModel) else "wan"
    if family == "wan":
        wan.require_wan(model, "An identity adapter")
    width = dit.dim
    if (config.backbone, config.width, config.blocks) != (family, width, len(dit.blocks)):
        raise ValueError(
            f"This adapter is for a {config.backbone} model of width {config.width} with {config.blocks} blocks; the "
            f"MODEL is {family} of width {width} with {len(dit.blocks)} blocks. Connect the model that the adapter was "
            "trained on."
        )
    heads = getattr(dit, "num_heads", config.reference_heads)
    if config.reference_heads not in (0, heads):
        raise ValueError(
            f"This adapter has gates for {config.reference_heads} heads a block; the MODEL has {heads}. Connect the "
            "model that the adapter was trained on."
        )


def inject(model, key: str, patcher, injection: Injection, names: Sequence[str] = ()):
    """A clone of the MODEL with the adapter that `patcher` holds; its subjects come under `key` in the conditioning.

    patcher  a ModelPatcher of an IdentityAdapter, which is loaded together with the model
    names    of the subjects, by which an adapter with `reference_gates` or `on_references` knows whose reference is
             whose
    """
    require_fit(model, patcher.model)
    model = model.clone()
    adapter = patcher.model
    is_wan = adapter.config.backbone == "wan"
    types = comfy.patcher_extension.WrappersMP
    model.set_additional_models(key, [patcher])

    def outer_sample(executor, noise, latent_image, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        on = SigmaRange.of(sampling.percent_to_sigma, injection.start, injection.end)
        owners = {}
        if adapter.config.on_references:
            owners = references.owners_of(wan.run_of(guider, latent_image), names)
        guider.model_options["transformer_options"][key] = _Run(on, owners)
        try:
            return executor(noise, latent_image, *args, **kwargs)
        finally:
            guider.model_options = options

    def diffusion_model(executor, x, timestep, context, *rest, **kwargs):
        subjects = kwargs.pop(key, None)
        dit = executor.class_obj
        call = _begin_call(key, adapter, injection, dit, x, context, subjects, rest, kwargs)
        if call is None:
            return executor(x, timestep, context, *rest, **kwargs)
        options = {**rest[-1], f"{key}_call": call}
        handles = [] if is_wan else _add_hooks(dit, call)
        try:
            return executor(x, timestep, context, *rest[:-1], options, **kwargs)
        finally:
            _remove_hooks(handles)

    model.add_wrapper_with_key(types.OUTER_SAMPLE, KEY, outer_sample)
    model.add_wrapper_with_key(types.DIFFUSION_MODEL, KEY, diffusion_model)
    if is_wan:
        model.set_model_patch(_WanPatch(f"{key}_call"), "double_block")
        if adapter.reference_gates is not None and names:
            # Its wrapper comes after ours, so it sees the call that ours has put in.
            model = references.attend_within(model, f"{key}_references", _gates_of(f"{key}_call"), names)
    return model


@torch.compiler.disable
def _begin_call(
    key: str, adapter: IdentityAdapter, injection: Injection, dit, x, context, subjects, rest: tuple, kwargs: dict
) -> _Call | None:
    """What the blocks of one model call need, or None where the adapter is off or there is nobody."""
    options = rest[-1]
    run = options.get(key) or _Run()
    if subjects is None or not run.is_on(options, injection):
        return None
    # Not taken out of the arguments: every adapter on the MODEL reads them, and a DiT leaves them alone.
    told = kwargs.get(relations.KEY)
    identities, rows = run.identities(adapter, subjects, context, told, options, injection.levels)
    source = _unconditional_rows(options, len(x)) if injection.unconditional_residual else None
    if adapter.config.backbone == "wan":
        layout = wan.token_layout(dit, x, rest[1], options, kwargs)
        grid = (x.shape[2], -(-layout.rows // layout.patch[0]), -(-layout.columns // layout.patch[1]))
        known = _known(layout, run.owners.get(len(layout.references), ()), subjects[1].shape[1])
        tokens = slice(layout.video.start, layout.video.stop + len(known))
    else:
        patch = (dit.patch_size_t or 1, dit.patch_size, dit.patch_size)
        grid = tuple(-(-side // size) for side, size in zip(x.shape[2:], patch, strict=True))
        known, tokens = torch.empty(0), slice(None)
    record = options.get(RECORD)
    if record is not None or source is not None:
        rows = slice(None)
    elif rows == NOBODY:
        return None
    return _Call(key, adapter, identities, injection, tokens, known.to(x), grid, record, source, rows)


def _known(layout: wan.TokenLayout, owners: Sequence[int | None], subjects: int) -> torch.Tensor:
    """[R, subjects], whose the tokens behind the video are, up to the last that is anybody's."""
    known = torch.zeros(layout.total - layout.video.stop, subjects)
    end = 0
    for reference, owner in zip(layout.references, owners, strict=False):
        if owner is not None:
            start, end = reference.start - layout.video.stop, reference.stop - layout.video.stop
            known[start:end, owner] = 1
    return known[:end]


@torch.compiler.disable
def _add_hooks(dit, call: _Call) -> list:
    def hook(i: int):
        return torch.compiler.disable(lambda module, inputs, output: (call.after_block(i, output[0]), *output[1:]))

    return [dit.blocks[i].register_forward_hook(hook(i)) for i in call.adapter.config.after]


@torch.compiler.disable
def _remove_hooks(handles: list) -> None:
    for handle in handles:
        handle.remove()


def _gates_of(key: str):
    """transformer_options of a block -> what its references' attention among themselves adds; see `references`."""

    def gates(options: dict) -> references.Gates | None:
        call = options.get(key)
        block = options.get("block_index", -1)
        return None if call is None else call.reference_gates(block)

    return gates


class _WanPatch:
    """`patches["double_block"]`: hands the tokens after a block to the current call's insertion."""

    def __init__(self, key: str):
        self.key = key

    @torch.compiler.disable
    def __call__(self, args: dict) -> dict:
        call = args["transformer_options"].get(self.key)
        if call is not None:
            args["img"] = call.after_block(args["block_index"], args["img"])
        return args


@dataclass
class _Run:
    """What lasts for one run of a sampler: when the adapter is on (None: always), whose references are whose (see
    `references.owners_of`), and the subjects for the blocks.
    """

    on: SigmaRange | None = None
    owners: dict[int, tuple[int | None, ...]] = field(default_factory=dict)
    cache: dict[tuple, tuple[tuple[BlockIdentity, ...], slice]] = field(default_factory=dict)

    def is_on(self, options: dict, injection: Injection) -> bool:
        if injection.strength == 0.0:
            return False
        return self.on is None or float(options["sigmas"].max()) in self.on

    def identities(
        self,
        adapter: IdentityAdapter,
        subjects: list[torch.Tensor],
        context: torch.Tensor,
        told: list[torch.Tensor] | None,
        options: dict,
        levels: Levels,
    ) -> tuple[tuple[BlockIdentity, ...], slice]:
        """Of all rows of a call, for each insertion, and the part of the rows in which there is anybody."""
        tokens, photos = subjects
        uuids = options.get("uuids")
        key = None if uuids is None or torch.is_grad_enabled() else (*uuids, tokens.device, tokens.dtype, len(tokens))
        if key is None or key not in self.cache:
            words = None
            if adapter.hierarchy is not None:
                context, words = relations.readable(context.to(tokens.dtype), told, adapter.config.context_width)
            found = adapter.identities(tokens, photos, context, words, levels)
            if key is None:
                return found, slice(None)
            self.cache[key] = found, _rows_with_people(photos)
        return self.cache[key]


def _rows_with_people(photos: torch.Tensor) -> slice:
    """From the first to the last row of photos [B, S, P] that has any: guidance by images has a branch of nobody."""
    rows = (photos > 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
    return slice(rows[0], rows[-1] + 1) if rows else NOBODY


def _unconditional_rows(options: dict, batch: int) -> slice | None:
    """The rows of a call that are the unconditional prompt's (cond_or_uncond 1), if it has any."""
    kinds = options.get("cond_or_uncond") or []
    if 1 not in kinds:
        return None
    each = batch // len(kinds)
    return slice(kinds.index(1) * each, (kinds.index(1) + 1) * each)


@dataclass
class _Call:
    """One model call: adds to the video's tokens after a block, and to those behind them that are `known`."""

    key: str
    adapter: IdentityAdapter
    identities: tuple[BlockIdentity, ...]
    injection: Injection
    tokens: slice
    known: torch.Tensor
    grid: tuple[int, int, int]
    record: deque[Routing] | None
    source: slice | None
    rows: slice

    def after_block(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, C] after this block -> the same with the identities added."""
        after = self.adapter.config.after
        if block not in after or not self.injection.first <= block <= self.injection.last:
            return hidden
        i = after.index(block)
        router = self.adapter.router
        seen = hidden[self.rows, self.tokens]
        asked, rows = (seen, self.rows) if self.source is None else (seen[self.source], self.source)
        residual, weights, logits = insert(
            self.adapter.perceiver_cross_attention[i],
            None if router is None else router[i],
            asked,
            self.identities[i].rows(rows),
            self.injection.temperature,
            self.known if len(self.known) else None,
        )
        if self.record is not None:
            self.record.append(Routing(block, weights, logits, self.grid, self.key))
        if self.source is not None:
            residual = residual.repeat(len(seen) // len(residual), 1, 1)
        if seen.shape == hidden.shape:
            return torch.add(hidden, residual, alpha=self.injection.strength)
        # Others may still hold what came in.
        hidden = hidden.clone()
        hidden[self.rows, self.tokens].add_(residual, alpha=self.injection.strength)
        return hidden

    def reference_gates(self, block: int) -> references.Gates | None:
        """What a block's references get of their attention among themselves."""
        if not self.injection.first <= block <= self.injection.last:
            return None
        gate = self.adapter.reference_gates[block]
        share = self.injection.strength * self.injection.levels.intra * self.identities[0].present
        return references.Gates(gate, share)
