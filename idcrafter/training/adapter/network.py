"""A native MODEL with an identity adapter (and a LoRA) whose parameters have gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import nn

from ...backbones.identity import RECORD, Injection, Routing, inject, next_key
from ...backbones.wan import REFERENCE_NAMES
from ...modules.identity_adapter import IdentityAdapter
from ...subjects.subject import MAX_SUBJECTS
from ..checkpointing import checkpointed
from ..kernels import freeze, freeze_scaling, training_kernels
from ..lora import LoRA
from .batch import AdapterBatch
from .noising import Noising

# A batch's subjects have other names in every row; their places are the same.
NAMES = tuple(f"subject {i + 1}" for i in range(MAX_SUBJECTS))


class AdapterNetwork(nn.Module):
    """The trained parts are this module's parameters; the DiT is not among them.

    model       ComfyUI's MODEL, with whatever other nodes have patched into it
    adapter     an IdentityAdapter, or None to train a LoRA alone
    lora        a LoRA of the model's DiT, or None
    checkpoint  depth of gradient checkpointing, see `checkpointed`
    """

    def __init__(self, model, adapter: IdentityAdapter | None, lora: LoRA | None = None, checkpoint: int = 0):
        super().__init__()
        self.adapter, self.lora, self.checkpoint = adapter, lora, checkpoint
        self.noising = Noising.of(model)
        self.key = next_key(model)
        if adapter is not None:
            device = model.load_device
            patcher = comfy.model_patcher.ModelPatcher(adapter, device, device)
            model = inject(model, self.key, patcher, Injection(), NAMES)
        # In a tuple, so that the DiT's weights are not taken for this module's.
        self._model = (model,)
        self.load()

    @property
    def dit(self) -> nn.Module:
        return self._model[0].model.diffusion_model

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, batch: AdapterBatch
    ) -> tuple[torch.Tensor, list[Routing]]:
        """noisy [B, C, T, h, w], sigma [B] -> velocity like noisy (float32), and what each insertion did."""
        record: deque[Routing] = deque()
        guider = _Guider(self._model[0], batch)
        guider.model_options["transformer_options"] |= {"sigmas": sigma, "cond_or_uncond": [0], RECORD: record}
        conds = dict(batch.conds)
        if self.adapter is not None:
            conds[self.key] = [self.identity_tokens(batch), batch.photos]

        def outer_sample(noise, latent_image, *args, **kwargs) -> torch.Tensor:
            options = guider.model_options["transformer_options"]
            apply_model = guider.model_patcher.model.apply_model
            return apply_model(noise, sigma, c_crossattn=batch.context, transformer_options=options, **conds)

        # What patches prepare for a run of a sampler, they prepare here for a step.
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, guider.model_options, is_model_options=True)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(outer_sample, guider, wrappers)
        with self._around(), checkpointed(self.dit, self.checkpoint, self._around):
            clean = run.execute(noisy, batch.clean, None, sigma, None, None, True, None)
        # A copy: checkpointing of the whole model runs the blocks once more in the backward pass.
        return self.noising.velocity(noisy, clean, sigma), list(record)

    def identity_tokens(self, batch: AdapterBatch) -> torch.Tensor:
        """Tokens [B, S, P, K, C] of all photos."""
        extractor = self.adapter.local_facial_extractor
        dtype = extractor.latents.dtype
        flat = extractor(batch.faces.flatten(0, 2).to(dtype), [each.flatten(0, 2).to(dtype) for each in batch.maps])
        return flat.unflatten(0, batch.photos.shape)

    def to_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the model's space as its VAE decodes them."""
        return self._model[0].model.process_latent_out(latents)

    def load(self) -> None:
        """Bring the MODEL back to its device, from which another model may have displaced it."""
        comfy.model_management.load_models_gpu([self._model[0]])
        freeze(self._model[0].model)
        freeze_scaling(self._model[0].model.latent_format)

    @contextmanager
    def _around(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(training_kernels())
            if self.lora is not None:
                stack.enter_context(self.lora.attached(self.dit))
            yield


class _Guider:
    """What wrappers of a sampler's run look at: the MODEL, its options, and what is known of the references."""

    def __init__(self, model, batch: AdapterBatch):
        self.model_patcher = model
        self.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
        options = self.model_options["transformer_options"]
        merge = comfy.patcher_extension.merge_nested_dicts
        for name, found in (("wrappers", model.wrappers), ("callbacks", model.callbacks)):
            options[name] = merge(options.get(name, {}), found)
        cond = {name: batch.conds[name] for name in ("time_dim_concat", "context_latents") if name in batch.conds}
        if "reference_latent" in batch.conds:
            cond["reference_latents"] = [batch.conds["reference_latent"]]
        cond[REFERENCE_NAMES] = [None if s is None else NAMES[s] for s in batch.references]
        self.conds = {"positive": [cond]}
