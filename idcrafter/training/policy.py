"""A MODEL with a LoRA that is trained, beside the frozen policies that it is compared with.

old        what made the takes: the MODEL as it is, that is without the LoRA (the usual case: further LoRAs are patches
           of the MODEL then), or the MODEL with an earlier copy of the LoRA, or with the average of the trained one
reference  the MODEL without the LoRA, from which a KL term keeps the policy

All of them share one MODEL, so a frozen policy costs a forward pass and no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..rollouts.dataset import Group, Rollouts
from .adapter.batch import AdapterBatch
from .adapter.encode import model_inputs
from .adapter.network import AdapterNetwork
from .lora import LoRA

BRANCHES = ("positive", "negative_text", "negative_images")
# Groups whose inputs are kept; those of a group with references take some 10 MiB.
_KEPT = 8

# group -> CONDITIONING lists by the names of BRANCHES
Conditioning = Callable[[Group], Mapping[str, list]]


class LoraPolicy(nn.Module):
    """See the module. Its parameters are the LoRA's.

    model         ComfyUI's MODEL, with whatever other nodes have patched into it
    lora          of the model's DiT
    conditioning  of a group; `Rollouts.conditioning` where it was stored
    checkpoint    depth of gradient checkpointing, see `checkpointed`
    old           a LoRA that stays as it is, of the old policy; None: that has no LoRA
    """

    def __init__(
        self,
        model: Any,
        lora: LoRA,
        conditioning: Conditioning | Rollouts,
        checkpoint: int = 0,
        old: LoRA | None = None,
    ):
        super().__init__()
        self.network = AdapterNetwork(model, None, lora, checkpoint)
        plain = AdapterNetwork(model, None)
        # In a tuple, so that they are not taken for this module's.
        self._frozen = (plain, plain if old is None else AdapterNetwork(model, None, old.requires_grad_(False)))
        self._model, self._old_lora = (model,), (old,)
        self._conditioning = conditioning.conditioning if isinstance(conditioning, Rollouts) else conditioning
        self._inputs: OrderedDict[str, dict[str, tuple[torch.Tensor, dict]]] = OrderedDict()
        self.to(model.load_device)

    @property
    def lora(self) -> LoRA:
        return self.network.lora

    @property
    def model(self) -> Any:
        return self._model[0]

    @property
    def noising(self):
        return self.network.noising

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def old_is_reference(self) -> bool:
        return self._frozen[0] is self._frozen[1]

    def to_model(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the VAE's space as the model sees them."""
        return self._model[0].model.process_latent_in(latents)

    def to_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the model's space as its VAE decodes them."""
        return self.network.to_vae(latents)

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, group: Group, guided: bool = False) -> torch.Tensor:
        """[B, C, T, h, w] float32 of the trained policy for noised latents [B, C, T, h, w] at sigma [B].

        guided  with the guidance that the group was sampled with, in two or three passes
        Raises ValueError where the group's conditioning cannot be rebuilt, or its guidance is not known.
        """
        return self._velocity(self.network, noisy, sigma, group, guided)

    @torch.no_grad()
    def old_velocity(
        self, noisy: torch.Tensor, sigma: torch.Tensor, group: Group, guided: bool = False
    ) -> torch.Tensor:
        return self._velocity(self._frozen[1], noisy, sigma, group, guided)

    @torch.no_grad()
    def reference_velocity(
        self, noisy: torch.Tensor, sigma: torch.Tensor, group: Group, guided: bool = False
    ) -> torch.Tensor:
        return self._velocity(self._frozen[0], noisy, sigma, group, guided)

    @torch.no_grad()
    def follow(self, average: Mapping[str, torch.Tensor]) -> None:
        """Make the old policy that of these weights, by the names of this module's parameters."""
        if self._old_lora[0] is None:
            raise RuntimeError("The old policy has no LoRA that could follow; give it a copy.")
        old = dict(self._old_lora[0].named_parameters())
        for name, tensor in average.items():
            own = old[name.removeprefix("network.lora.")]
            own.copy_(tensor.view(own.shape))

    def load(self) -> None:
        """Bring the MODEL back to its device, from which another model may have displaced it."""
        self.network.load()

    def _velocity(self, network: AdapterNetwork, noisy, sigma, group: Group, guided: bool) -> torch.Tensor:
        inputs = self._inputs_of(group, noisy)
        pulls = guidance(group, tuple(inputs)) if guided else [("positive", 1.0)]
        total = 0.0
        for branch, pull in pulls:
            context, conds = inputs[branch]
            batch = _batch(noisy, context, conds)
            velocity, _ = network(noisy, sigma, batch)
            total = total + pull * velocity.float()
        return total

    def _inputs_of(self, group: Group, noisy: torch.Tensor) -> dict[str, tuple[torch.Tensor, dict]]:
        key = f"{group.name} {tuple(noisy.shape[1:])}"
        if key not in self._inputs:
            found = {}
            for branch, conditioning in self._conditioning(group).items():
                if len(conditioning) != 1:
                    raise ValueError(
                        f"The conditioning '{branch}' of group {group.name[:12]} has {len(conditioning)} parts; "
                        "training takes one prompt a shot."
                    )
                values = model_inputs(self._model[0], _cloned(conditioning), torch.zeros_like(noisy[:1]))
                found[branch] = values.pop("c_crossattn"), values
            self._inputs[key] = found
            while len(self._inputs) > _KEPT:
                self._inputs.popitem(last=False)
        self._inputs.move_to_end(key)
        return self._inputs[key]


def guidance(group: Group, branches: tuple[str, ...]) -> list[tuple[str, float]]:
    """(branch, factor) of the model passes whose sum is the guided velocity; the factors add up to 1.

    text             negative + g (positive - negative)
    images + text    neg_images + g_images (neg_text - neg_images) + g_text (positive - neg_text)
    Raises ValueError where the group does not say how strongly it was guided, or by a guider of another kind.
    """
    if len(branches) == 1:
        return [(branches[0], 1.0)]
    facts = group.facts["shot"].get("guidance") or {}
    known = {"CFGGuider": "cfg", "Guider_DualCFG": "cfg1"}
    guider = facts.get("guider")
    if set(branches) - set(BRANCHES) or (guider is not None and guider not in known) or facts.get("nested"):
        raise ValueError(
            f"Group {group.name[:12]} was sampled with the guider {guider or branches}, which training does not know; "
            "collect with Sample Takes."
        )
    text = facts.get("cfg_text" if guider is None else known[guider])
    if len(branches) == 2:
        pulls = [text, None]
    else:
        pulls = [text, facts.get("cfg_images" if guider is None else "cfg2")]
    if any(pull is None for pull in pulls[: len(branches) - 1]):
        raise ValueError(
            f"Group {group.name[:12]} does not say how strongly it was guided; collect again with widgets for cfg in "
            "Sample Takes, or train with NFT, which needs no guidance."
        )
    if len(branches) == 2:
        return [("positive", text), (next(b for b in branches if b != "positive"), 1 - text)]
    images = pulls[1]
    return [("positive", text), ("negative_text", images - text), ("negative_images", 1 - images)]


def _batch(noisy: torch.Tensor, context: torch.Tensor, conds: dict) -> AdapterBatch:
    count = len(noisy)
    empty = noisy.new_zeros(count, 0)
    return AdapterBatch(
        noisy, _rows(context, count), empty, (), empty, empty, conds={k: _rows(v, count) for k, v in conds.items()}
    )


def _rows(value, count: int):
    """Inputs [1, ...] for `count` rows."""
    if isinstance(value, list):
        return [_rows(each, count) for each in value]
    if torch.is_tensor(value) and value.ndim and len(value) == 1:
        return value.expand(count, *value.shape[1:])
    return value


def _cloned(value):
    """CONDITIONING whose tensors autograd may keep: those that nodes make are inference tensors."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_cloned(each) for each in value)
    if isinstance(value, dict):
        return {key: _cloned(each) for key, each in value.items()}
    return value
