"""A low-rank adaptation of a DiT while it is trained: beside its layers, not in their weights.

The file has native names ("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), so core's and this pack's LoRA nodes
load it (Hu et al., arXiv 2106.09685; the scale alpha / rank is in the file).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Projections of attention and feed-forward of Wan's and CogVideoX's blocks in ComfyUI.
TARGETS = re.compile(r"^blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02]|[qkv]|attn_out|ff_proj|ff_out)$")


class LoRA(nn.Module):
    """Down and up projections of a DiT's layers; a new one changes nothing.

    dit      the diffusion model, whose own weights are left as they are
    targets  matches the names of the layers that are adapted, each with a weight [out, in]
    """

    def __init__(self, dit: nn.Module, rank: int, seed: int, alpha: float | None = None, targets: re.Pattern = TARGETS):
        super().__init__()
        self.names = tuple(name for name, module in dit.named_modules() if targets.match(name))
        if not self.names:
            raise ValueError(f"The model ({type(dit).__name__}) has no layer that a LoRA could adapt.")
        self.alpha = float(rank if alpha is None else alpha)
        generator = torch.Generator().manual_seed(seed)
        self.lora_down, self.lora_up = nn.ParameterList(), nn.ParameterList()
        for name in self.names:
            weight = dit.get_submodule(name).weight
            outer, inner = weight.shape
            down = torch.randn((rank, inner), generator=generator) * inner**-0.5
            self.lora_down.append(nn.Parameter(down.to(weight.device)))
            self.lora_up.append(nn.Parameter(torch.zeros((outer, rank), device=weight.device)))

    @contextmanager
    def attached(self, dit: nn.Module) -> Iterator[None]:
        """The DiT with this LoRA, while the block lasts."""
        handles = [dit.get_submodule(name).register_forward_hook(self._hook(i)) for i, name in enumerate(self.names)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, i: int):
        def add(module, inputs, output):
            down, up = self.lora_down[i], self.lora_up[i]
            x = inputs[0].to(down.dtype) @ down.T
            return output + (x @ up.T * (self.alpha / len(down))).to(output.dtype)

        return add

    def export(self, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
        """The tensors of the file."""
        tensors = {}
        for name, down, up in zip(self.names, self.lora_down, self.lora_up, strict=True):
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down.detach().to("cpu", dtype)
            tensors[f"diffusion_model.{name}.lora_B.weight"] = up.detach().to("cpu", dtype)
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(self.alpha)
        return tensors
