"""Tiny models of every family with an adapter whose parameters have gradients, and batches for them."""

from __future__ import annotations

import torch

from . import tiny_adapters, tiny_families

FRAMES, ROWS, COLUMNS = 3, 6, 8
TOKENS = FRAMES * (ROWS // 2) * (COLUMNS // 2)
PEOPLE, PHOTOS, PLACES = 3, 2, 5


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load(pack, folder, family: str):
    """The family's tiny MODEL, loaded as a node does it: in inference mode."""
    path = tiny_families.write(folder / family / f"{family}.safetensors", family)
    with torch.inference_mode():
        return pack.submodule("model_loaders.video_dit").load_video_dit(path)


def adapter_for(pack, model, trained: bool = True, **changes):
    """An IdentityAdapter for this MODEL; a trained one's gates and projections are no zeros."""
    import comfy.ops

    modules = pack.submodule("idcrafter.modules.identity_adapter")
    dit = model.get_model_object("diffusion_model")
    backbone = "wan" if hasattr(dit, "num_heads") else "cogvideox"
    config = modules.AdapterConfig(backbone, dit.dim, len(dit.blocks), **{**tiny_adapters.OWN, **changes})
    adapter = modules.IdentityAdapter(config, comfy.ops.disable_weight_init)
    modules.initialise(adapter, 1)
    if trained:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in adapter.parameters():
                if not parameter.any():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter


def network_for(pack, model, adapter=None, lora=None, checkpoint: int = 0):
    return pack.submodule("idcrafter.training.adapter.network").AdapterNetwork(model, adapter, lora, checkpoint)


def batch_for(pack, family: str, rows: int = 2, people: int = PEOPLE, **changes):
    """`rows` clips: in the first everybody is there, the last misses the last person; every third token is nobody's."""
    batches = pack.submodule("idcrafter.training.adapter.batch")
    photos = torch.ones(rows, people, PHOTOS)
    photos[:, 0, 1:] = 0
    photos[-1, -1] = 0
    owners = torch.arange(rows * TOKENS).view(rows, -1) % people
    owners[:, ::3] = -1
    size = (FRAMES, ROWS, COLUMNS)
    conds = {
        "phantom": {"time_dim_concat": noise(rows, 16, 2, ROWS, COLUMNS, seed=5)},
        "vace": {"vace_context": noise(rows, 1, 96, *size, seed=5), "vace_strength": [1.0]},
        "cogvideox-i2v": {"c_concat": noise(rows, 16, *size, seed=5)},
    }.get(family, {})
    values = {
        "clean": noise(rows, 16, *size, seed=1),
        "context": noise(rows, 226 if family == "cogvideox-i2v" else 7, 32, seed=2),
        "faces": noise(rows, people, PHOTOS, tiny_adapters.RECOGNISER_WIDTH, seed=3) * photos[..., None],
        "maps": (noise(rows, people, PHOTOS, PLACES, 16, seed=4) * photos[..., None, None],),
        "photos": photos,
        "owners": owners,
        "conds": conds,
        "references": (0, 1) if family == "phantom" else (),
    }
    return batches.AdapterBatch(**{**values, **changes})


def losses_of(pack, network, batch, seed: int = 0, **more):
    objective = pack.submodule("idcrafter.training.adapter.objective")
    return objective.adapter_loss(network, batch, torch.Generator().manual_seed(seed), 3.0, 0.5, **more)


def gradients(pack, network, batch, **more) -> dict[str, torch.Tensor]:
    network.zero_grad()
    losses_of(pack, network, batch, **more)["loss"].backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
