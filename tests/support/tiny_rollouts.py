"""Rollouts of the tiny Phantom: a group of four takes with two recorded random steps, guided by text and images."""

from __future__ import annotations

import io

import torch
from PIL import Image

GUIDED = {"cfg_text": 3.0, "cfg_images": 2.0}
NAMES = ("positive", "negative_text", "negative_images")
LICENCE = {"what": "video model", "name": "tiny.safetensors", "licence": "Apache-2.0", "made_pixels": True}
JUDGE = {"what": "face analyzer", "name": "painted", "licence": "none needed", "made_pixels": False}


def collect(pack, stack, shot, folder, policy="a" * 32, cast=None, seed=5, keep=True):
    """The store with one more group.

    cast  whose photos are kept, too;  keep: whether the conditioning is
    """
    lib = {name: pack.submodule(f"idcrafter.{name}") for name in (
        "sampling.run", "sampling.guiders", "sampling.sde.sampler", "rollouts.record", "rollouts.store",
        "rollouts.conditioning", "rollouts.digests", "subjects.embeddings", "subjects.faces",
    )}  # fmt: skip
    with torch.inference_mode():
        branches = (shot.positive, shot.negative_text, shot.negative_images)
        guider = lib["sampling.guiders"].make_guider(stack.model, *branches, *GUIDED.values())
        sampler = lib["sampling.sde.sampler"].sde_sampler("Flow-SDE", 0.7, 1, 3, record=True)
        takes = lib["sampling.run"].sample_takes(guider, sampler, shot.sigmas, shot.latent, seed, 4)
    record = lib["rollouts.record"]
    samples = [
        record.Sample(
            take.seed, take.samples[0].clone(), {"identity": i / 3, "motion": (1 - i / 4) ** 2}, i / 3, policy, 1.0,
            {name: tensor.clone() for name, tensor in take.sde.tensors().items() if name != "mean"},
            take.sde.settings(),
        )
        for i, take in enumerate(takes.takes)
    ]  # fmt: skip
    plan, objects = lib["rollouts.conditioning"].pack(dict(zip(NAMES, branches, strict=True)))
    facts = {"prompt": "The first waves.", "guidance": GUIDED, "leading": 0}
    store = lib["rollouts.store"].RolloutStore(folder)
    if cast is not None:
        photos = lib["subjects.embeddings"].cast_photos(cast)
        facts["subjects"] = [
            {"name": subject.name, "kind": subject.kind, "photos": own}
            for subject, own in zip(cast.subjects, photos, strict=True)
        ]
    if keep:
        facts["conditioning"] = plan
    hashes = {"policy": policy, "conditioning": lib["rollouts.digests"].digest(plan)}
    part = record.build_part(
        samples, hashes=hashes, shot=facts, sigmas=takes.sigmas.clone(), licences=(LICENCE, JUDGE)
    )  # fmt: skip
    store.save(part, {name: tensor.clone() for name, tensor in objects.items()} if keep else {})
    return store


def keep_photos(pack, store, cast) -> None:
    """What Save Rollouts does with keep = conditioning and photos."""
    names = pack.submodule("idcrafter.subjects.embeddings").cast_photos(cast)
    for subject, own in zip(cast.subjects, names, strict=True):
        for photo, name in zip(subject.photos, own, strict=True):
            data = io.BytesIO()
            Image.fromarray(pack.submodule("idcrafter.subjects.faces").to_uint8(photo)).save(data, "PNG")
            store.save_photo(name, data.getvalue())
