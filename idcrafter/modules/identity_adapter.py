"""An identity adapter: everything that is trained to bring subjects into a video DiT, as one module.

    faces -> extractor -> identity tokens -> hierarchy -> stages -> cross-attention and router after every n-th block

The released Ingredients checkpoint is such an adapter without a hierarchy (`INGREDIENTS`), and its tensors have the
names of this module's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from .facial_extractor import FacialExtractor
from .hierarchy import IdentityHierarchy, Levels, photo_mean
from .id_router import IDRouter
from .insertion import BlockIdentity, PerceiverCrossAttention, block_identity

BACKBONES = ("wan", "cogvideox")
# What looks at a face's crop: EVA02-CLIP-L/14 at 336 px, or the VAE of the video model.
VISUALS = ("eva02-clip-l-336", "vae")
# How the names of an adapter's tensors begin.
PARTS = ("local_facial_extractor.", "perceiver_cross_attention.", "router.", "hierarchy.", "reference_gates", "order")


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's file says of itself: which DiT it fits, and the sizes of its modules.

    backbone, width, blocks          family, width and number of blocks of the DiT
    every                            an insertion comes after the blocks 0, every, 2 * every, ...
    id_width, visual_width, scales   what the extractor takes: see FacialExtractor
    extractor_*                      the extractor's own width, layers and heads
    tokens, id_tokens, token_width   identity tokens a photo, how many the embedding makes, and their width
    heads, head_width                of the insertion's cross-attention
    router, null                     whether there is a router, and a null identity in it
    hierarchy, hierarchy_heads       rounds of the hierarchy (0 for none) and its heads
    context_width                    of the prompt's tokens that the hierarchy reads
    reference_heads                  heads of the DiT's self-attention if its reference tokens get an attention of their
                                     own (see `reference_gates` of IdentityAdapter); 0 if not
    on_references                    whether a subject's identity is also added to the tokens of its own references, so
                                     that the places of the video which the router gives to a subject and the tokens
                                     that show it have something in common by which attention finds the one from the
                                     other
    order                            the most subjects that prompts may count ("the first", "the second"): each place
                                     in the cast has an embedding, which is added to the subject's tokens. 0: the order
                                     of the cast means nothing to the adapter, as in the published ones
    visual                           one of VISUALS, where the extractor's hidden maps come from
    crop                             side in px of the face's crop as a VAE gets it
    """

    backbone: str
    width: int
    blocks: int
    every: int = 2
    id_width: int = 1280
    visual_width: int = 1024
    scales: int = 5
    extractor_width: int = 1024
    extractor_depth: int = 10
    extractor_heads: int = 16
    extractor_head_width: int = 64
    tokens: int = 32
    id_tokens: int = 5
    token_width: int = 2048
    heads: int = 16
    head_width: int = 128
    router: bool = True
    null: bool = False
    hierarchy: int = 0
    hierarchy_heads: int = 16
    context_width: int = 4096
    reference_heads: int = 0
    on_references: bool = False
    order: int = 0
    visual: str = VISUALS[0]
    crop: int = 512

    @property
    def after(self) -> tuple[int, ...]:
        """The blocks after which there is an insertion."""
        return tuple(range(0, self.blocks, self.every))

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> AdapterConfig:
        """ValueError if the text is not an adapter's description."""
        try:
            values = dict(json.loads(text))
            known = {field.name: type(field.default) for field in fields(cls)}
            if unknown := sorted(set(values) - set(known)):
                raise ValueError(f"unknown entries {', '.join(unknown)}")
            config = cls(**values)
            numbers = [v for k, v in values.items() if known[k] is int or k in ("width", "blocks")]
            if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in numbers):
                raise ValueError("sizes must be whole numbers")
            if min(config.width, config.blocks, config.every, config.scales, config.tokens) < 1:
                raise ValueError("width, blocks, every, scales and tokens must be at least 1")
        except (TypeError, ValueError) as error:
            raise ValueError(f"this is not the description of an identity adapter ({error})") from error
        if config.backbone not in BACKBONES:
            raise ValueError(f"its backbone is '{config.backbone}'; known are {' and '.join(BACKBONES)}")
        if config.visual not in VISUALS:
            raise ValueError(f"it looks at faces through '{config.visual}'; known are {' and '.join(VISUALS)}")
        return config


# feizhengcong/Ingredients, transformer/config.json, on CogVideoX-5B-I2V.
INGREDIENTS = AdapterConfig("cogvideox", 3072, 42)


class IdentityAdapter(nn.Module):
    """The trained modules of an adapter.

    reference_gates [blocks, heads]: after every block's self-attention over all tokens, the tokens of a subject's
    references get the result of an attention among themselves, times this gate. It is ID-Crafter's attention per group
    on the path of reference tokens, with the block's own projections. The video's group is left out: its tokens would
    repeat the most costly attention of the model to see less than before.
    """

    def __init__(self, config: AdapterConfig, operations: Any, **factory):
        super().__init__()
        self.config = c = config
        self.local_facial_extractor = FacialExtractor(
            operations,
            c.id_width,
            c.visual_width,
            c.extractor_width,
            c.token_width,
            c.tokens,
            c.id_tokens,
            c.scales,
            c.extractor_depth,
            c.extractor_heads,
            c.extractor_head_width,
            **factory,
        )
        self.hierarchy = None
        if c.hierarchy:
            self.hierarchy = IdentityHierarchy(
                operations, c.token_width, c.hierarchy_heads, c.context_width, c.hierarchy, **factory
            )
        self.perceiver_cross_attention = nn.ModuleList(
            PerceiverCrossAttention(operations, c.width, c.token_width, c.heads, c.head_width, **factory)
            for _ in c.after
        )
        self.router = None
        if c.router:
            self.router = nn.ModuleList(
                IDRouter(operations, c.width, c.token_width, c.tokens, c.null, **factory) for _ in c.after
            )
        self.reference_gates = None
        if c.reference_heads:
            self.reference_gates = nn.Parameter(torch.empty(c.blocks, c.reference_heads, **factory))
        self.order = nn.Parameter(torch.empty(c.order, c.token_width, **factory)) if c.order else None

    def identities(
        self,
        tokens: torch.Tensor,
        photos: torch.Tensor,
        context: torch.Tensor | None = None,
        context_keys: torch.Tensor | None = None,
        levels: Levels = Levels(),  # noqa: B008 (frozen)
    ) -> tuple[BlockIdentity, ...]:
        """Identity tokens of all photos -> what each insertion needs of the subjects.

        tokens   [B, S, P, K, token_width], of the extractor
        photos   [B, S, P] 1 for a photo, 0 for padding; a subject without a photo is not there
        context  [B, M, context_width], the prompt; context_keys [B, M] bool, which of it exists
        """
        present = (photos > 0).any(dim=2).to(tokens.dtype)
        if self.order is not None:
            tokens = tokens + self.order[: tokens.shape[1], None, None].to(tokens)
        if self.hierarchy is None:
            stages = [photo_mean(tokens, photos > 0)]
        else:
            stages = self.hierarchy(tokens, photos, context, context_keys, levels)
        count = len(self.perceiver_cross_attention)
        return tuple(
            block_identity(
                attention,
                None if self.router is None else self.router[i],
                stages[i * len(stages) // count],
                present,
            )
            for i, attention in enumerate(self.perceiver_cross_attention)
        )


def layout(config: AdapterConfig) -> dict[str, torch.Size]:
    """Tensor name -> shape of an adapter's file."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in IdentityAdapter(config, nn).state_dict().items()}


@torch.no_grad()
def initialise(adapter: IdentityAdapter, seed: int) -> None:
    """Weights to start a training from, the same for the same seed on every machine.

    Output projections of the insertions and all gates are zero, so a new adapter changes nothing. So are the routers'
    keys: a new router mixes the subjects evenly.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: torch.Tensor, scale: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    for name, parameter in adapter.named_parameters():
        leaf = name.rsplit(".", 2)[-2:]
        last = name.startswith("perceiver") and leaf[0] == "to_out" or name.startswith("router") and leaf[0] == "to_kv"
        if leaf[-1] in ("gate", "reference_gates", "bias") or last:
            parameter.zero_()
        elif leaf[0] == "id_merge":
            parameter.fill_(1 / parameter.numel())
        elif leaf[-1] == "proj_out":
            draw(parameter, parameter.shape[0] ** -0.5)
        elif leaf[-1] == "order":
            draw(parameter, 1.0)
        elif leaf[-1] in ("latents", "null") or parameter.ndim > 1:
            draw(parameter, parameter.shape[-1] ** -0.5)
        else:  # the weight of a norm
            parameter.fill_(1)
