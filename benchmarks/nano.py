"""How well the nano stack keeps identities that it was never trained on.

Sealed identities; a gallery of 100 of them, each embedded from three photos; two-subject clips whose caption says who
stands where. The face on the left belongs to whom the caption puts on the left: its nearest neighbour in the gallery
must be that identity. A face that is not found counts as wrong. The control renders the same captions and seeds with
other people's references.

Keys of the result: ``clips``, ``retrieval_top1``, ``control_top1``, ``similarity``, ``similarity_truth``,
``swap_rate``, ``found``, each rate with a ``*_ci95`` (Wilson), and ``seconds``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch

from support import inprocess

GALLERY, PHOTOS = 100, 3
SCORED_FRAMES = (0, 2, 4, 6, 8)
STEPS, CFG_TEXT, CFG_IMAGES = 20, 4.0, 3.0


class Stack:
    """The pack's own nodes on the nano bundle."""

    def __init__(self):
        self.pack = inprocess.Pack()
        self.model, self.clip, self.vae, self.analyzer = self.pack.execute("IDCrafterLoadBundle", bundle="nano.json")
        self.sampler = self.pack.execute("KSamplerSelect", sampler_name="euler")[0]
        self.sigmas = self.pack.execute(
            "BasicScheduler", model=self.model, scheduler="simple", steps=STEPS, denoise=1.0
        )[0]

    def text(self, prompt: str) -> list:
        return self.pack.execute("CLIPTextEncode", clip=self.clip, text=prompt)[0]

    def clip_of(self, photos: list[torch.Tensor], prompt: str, seed: int, size: tuple[int, int, int]) -> torch.Tensor:
        """Frames [T, H, W, 3] in 0..1 with these reference photos, one a subject."""
        run = self.pack.execute
        subjects = {
            f"subject{i}": run(
                "IDCrafterSubject", name=f"subject {i}", kind="person", description="", images=photo[None]
            )[0]
            for i, photo in enumerate(photos)
        }
        cast = run("IDCrafterCast", subjects=subjects)[0]
        width, height, length = size
        positive, negative_text, negative_images, latent, _ = run(
            "IDCrafterCastToVideo",
            positive=self.text(prompt),
            negative=self.text(""),
            vae=self.vae,
            cast=cast,
            width=width,
            height=height,
            length=length,
            rule="auto",
        )
        takes = run(
            "IDCrafterSampleTakes",
            model=self.model,
            sampler=self.sampler,
            sigmas=self.sigmas,
            latent_image=latent,
            seed=seed,
            takes=1,
            positive=positive,
            negative_text=negative_text,
            negative_images=negative_images,
            cfg_text=CFG_TEXT,
            cfg_images=CFG_IMAGES,
        )[0]
        frames = self.vae.decode(takes.takes[0].samples)
        return frames.reshape(-1, *frames.shape[-3:]).clamp(0, 1)

    def places(self, frames: torch.Tensor, count: int) -> list[np.ndarray | None]:
        """Mean embedding of the face at each place from left to right, over the scored frames that show exactly
        ``count`` faces.
        """
        sums, seen = [np.zeros(512) for _ in range(count)], 0
        for f in SCORED_FRAMES:
            faces = self.analyzer.analyze(frames[f])
            if len(faces) == count:
                seen += 1
                sums = [s + face.embedding for s, face in zip(sums, faces, strict=True)]
        return [s / np.linalg.norm(s) if seen else None for s in sums]


def wilson(hits: int, total: int) -> list[float]:
    """95 % confidence interval of a rate."""
    z, p = 1.96, hits / total
    centre, spread = (p + z * z / (2 * total)), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return [round((centre - spread) / (1 + z * z / total), 4), round((centre + spread) / (1 + z * z / total), 4)]


def run(clips: int) -> dict:
    started = time.time()
    stack = Stack()
    world = stack.pack.submodule("idcrafter.nano.world")
    scene = stack.pack.submodule("idcrafter.nano.world.scene")
    caption = stack.pack.submodule("idcrafter.nano.recipes.text").caption
    numbers = world.numbers_of_split("sealed")
    people = [world.sample_identity(next(numbers)) for _ in range(GALLERY)]

    def photo(identity, seed: int) -> torch.Tensor:
        return torch.from_numpy(world.render_photo(identity, seed, 128)[0]).float() / 255

    gallery = []
    for identity in people:
        faces = [face for s in range(PHOTOS) for face in stack.analyzer.analyze(photo(identity, 9000 + s))[:1]]
        mean = np.sum([face.embedding for face in faces], axis=0) if faces else np.zeros(512)
        gallery.append(mean / (np.linalg.norm(mean) + 1e-9))
    gallery = np.stack(gallery)

    hits = control_hits = found = swaps = judged = 0
    similarity, truth = [], []
    for i in range(clips):
        pair = [(2 * i) % GALLERY, (2 * i + 1) % GALLERY]
        others = [(index + 37) % GALLERY for index in pair]
        spec = world.sample_clip_spec((people[pair[0]], people[pair[1]]), 5000 + i)
        prompt = caption(spec, 0)[0]
        size = (scene.WIDTH, scene.HEIGHT, scene.FRAMES)
        frames = stack.clip_of([photo(people[p], 7000 + i) for p in pair], prompt, i, size)
        intended = sorted(range(2), key=lambda s: scene.SIDES[2].index(spec.sides[s]))  # subject at each place
        wanted = [pair[s] for s in intended]

        faces = stack.places(frames, 2)
        for place, who in zip(faces, wanted, strict=True):
            if place is not None:
                found += 1
                hits += int((gallery @ place).argmax()) == who
                similarity.append(float(gallery[who] @ place))
            else:
                similarity.append(0.0)
        if faces[0] is not None:
            judged += 1
            straight, crossed = (
                sum(float(gallery[w] @ f) for w, f in zip(order, faces, strict=True))
                for order in (wanted, wanted[::-1])
            )
            swaps += crossed > straight
        for place, who in zip(
            stack.places(torch.from_numpy(world.render_clip(spec).frames).float() / 255, 2), wanted, strict=True
        ):
            if place is not None:
                truth.append(float(gallery[who] @ place))
        control = stack.clip_of([photo(people[p], 7000 + i) for p in others], prompt, i, size)
        control_hits += sum(
            place is not None and int((gallery @ place).argmax()) == who
            for place, who in zip(stack.places(control, 2), wanted, strict=True)
        )
        print(
            f"{i + 1}/{clips}: top1 {hits / (2 * i + 2):.3f}, control {control_hits / (2 * i + 2):.3f}, swaps {swaps}",
            flush=True,
        )
    total = 2 * clips
    return {
        "clips": clips,
        "retrieval_top1": round(hits / total, 4),
        "retrieval_top1_ci95": wilson(hits, total),
        "control_top1": round(control_hits / total, 4),
        "control_top1_ci95": wilson(control_hits, total),
        "similarity": round(float(np.mean(similarity)), 4),
        "similarity_truth": round(float(np.mean(truth)), 4),
        "swap_rate": round(swaps / max(1, judged), 4),
        "swap_rate_ci95": wilson(swaps, max(1, judged)),
        "found": round(found / total, 4),
        "steps": STEPS,
        "cfg_text": CFG_TEXT,
        "cfg_images": CFG_IMAGES,
        "seconds": round(time.time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="4 clips instead of 64")
    arguments = parser.parse_args()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        with torch.inference_mode():
            result = run(4 if arguments.quick else 64)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
