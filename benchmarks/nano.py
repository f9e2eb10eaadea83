"""How well the nano stack keeps identities that it was never trained on.

Sealed identities; a gallery of 100 of them, each embedded from three photos; two-subject clips whose caption says who
stands on which side, drawn freely. The face on the left belongs to whom the caption puts on the left: its nearest
neighbour in the gallery must be that identity. A face that is not found counts as wrong. The control renders the same
captions and seeds with other people's references.

Keys of the result: `clips`, `retrieval_top1`, `control_top1`, `similarity`, `similarity_truth` and `truth_top1` (the
same measures on the rendered truth), `swap_rate` (clips in which the two fit better the other way round), `found`;
each rate with a 95 % Wilson interval.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch

from support import inprocess

GALLERY, PHOTOS = 100, 3
SCORED_FRAMES = (0, 2, 4, 6, 8)
STEPS, CFG_TEXT, CFG_IMAGES = 20, 2.5, 2.0


class Stack:
    """The pack's own nodes on a nano bundle."""

    def __init__(self, bundle: str = "nano.json"):
        self.pack = inprocess.Pack()
        self.model, self.clip, self.vae, self.analyzer = self.pack.execute("IDCrafterLoadBundle", bundle=bundle)
        self.sampler = self.pack.execute("KSamplerSelect", sampler_name="euler")[0]
        self.sigmas = self.pack.execute(
            "BasicScheduler", model=self.model, scheduler="simple", steps=STEPS, denoise=1.0
        )[0]

    def text(self, prompt: str) -> list:
        return self.pack.execute("CLIPTextEncode", clip=self.clip, text=prompt)[0]

    def cast_of(self, photos: list[torch.Tensor]):
        """A cast with one photo [H, W, 3] a subject."""
        run = self.pack.execute
        subjects = {
            f"subject{i}": run(
                "IDCrafterSubject", name=f"subject {i}", kind="person", description="", images=photo[None]
            )[0]
            for i, photo in enumerate(photos)
        }
        return run("IDCrafterCast", subjects=subjects)[0]

    def shot_of(self, cast, prompt: str, size: tuple[int, int, int]) -> dict:
        """The inputs of Sample Takes for this cast, but for the seed and the number of takes."""
        width, height, length = size
        conditioned = self.pack.execute(
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
        positive, negative_text, negative_images, latent = conditioned[:4]
        return {
            "model": self.model,
            "sampler": self.sampler,
            "sigmas": self.sigmas,
            "latent_image": latent,
            "positive": positive,
            "negative_text": negative_text,
            "negative_images": negative_images,
            "cfg_text": CFG_TEXT,
            "cfg_images": CFG_IMAGES,
        }

    def clip_of(self, photos: list[torch.Tensor], prompt: str, seed: int, size: tuple[int, int, int]) -> torch.Tensor:
        """Frames [T, H, W, 3] in 0..1 with these reference photos, one a subject."""
        shot = self.shot_of(self.cast_of(photos), prompt, size)
        takes = self.pack.execute("IDCrafterSampleTakes", seed=seed, takes=1, **shot)[0]
        return self.decode(takes.takes[0].samples)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Latent [1, C, T, h, w] -> frames [T', H, W, 3] in 0..1."""
        frames = self.vae.decode(samples)
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


@dataclass
class Tally:
    """Counts over clips; two faces are expected in each."""

    clips: int = 0
    found: int = 0
    hits: int = 0
    judged: int = 0
    swaps: int = 0
    similarity: list[float] = field(default_factory=list)

    def add(self, gallery: np.ndarray, places: list[np.ndarray | None], wanted: list[int]) -> None:
        """The faces of one clip from left to right, and who should be there."""
        self.clips += 1
        if places[0] is None:
            self.similarity += [0.0, 0.0]
            return
        self.judged += 1
        self.found += len(places)
        cosines = gallery @ np.stack(places).T
        self.hits += sum(int(cosines[:, i].argmax()) == who for i, who in enumerate(wanted))
        self.similarity += [float(cosines[who, i]) for i, who in enumerate(wanted)]
        first, second = wanted
        self.swaps += cosines[second, 0] + cosines[first, 1] > cosines[first, 0] + cosines[second, 1]

    def rates(self) -> dict:
        faces, judged = 2 * self.clips, max(1, self.judged)
        return {
            "clips": self.clips,
            "retrieval_top1": round(self.hits / faces, 4),
            "retrieval_top1_ci95": wilson(self.hits, faces),
            "similarity": round(float(np.mean(self.similarity)), 4),
            "swap_rate": round(self.swaps / judged, 4),
            "swap_rate_ci95": wilson(self.swaps, judged),
            "found": round(self.found / faces, 4),
        }


def run(clips: int) -> dict:
    started = time.time()
    stack = Stack()
    world = stack.pack.submodule("idcrafter.nano.world")
    scene = stack.pack.submodule("idcrafter.nano.world.scene")
    caption = stack.pack.submodule("idcrafter.nano.recipes.text").caption
    size = (scene.WIDTH, scene.HEIGHT, scene.FRAMES)
    numbers = world.numbers_of_split("sealed")
    people = [world.sample_identity(next(numbers)) for _ in range(GALLERY)]

    def photo(index: int, seed: int) -> torch.Tensor:
        return torch.from_numpy(world.render_photo(people[index], seed, 128)[0]).float() / 255

    def mean_embedding(index: int) -> np.ndarray:
        faces = [stack.analyzer.analyze(photo(index, 9000 + s)) for s in range(PHOTOS)]
        mean = np.sum([found[0].embedding for found in faces], axis=0)
        return mean / np.linalg.norm(mean)

    gallery = np.stack([mean_embedding(index) for index in range(GALLERY)])
    generated, control, truth = Tally(), Tally(), Tally()
    for i in range(clips):
        pair = [(2 * i) % GALLERY, (2 * i + 1) % GALLERY]
        spec = world.sample_clip_spec(tuple(people[p] for p in pair), 5000 + i)
        prompt = caption(spec, 0)[0]
        wanted = [pair[spec.sides.index(side)] for side in scene.SIDES[2]]
        frames = stack.clip_of([photo(p, 7000 + i) for p in pair], prompt, i, size)
        generated.add(gallery, stack.places(frames, 2), wanted)
        real = torch.from_numpy(world.render_clip(spec).frames).float() / 255
        truth.add(gallery, stack.places(real, 2), wanted)
        others = [photo((p + 37) % GALLERY, 7000 + i) for p in pair]
        control.add(gallery, stack.places(stack.clip_of(others, prompt, i, size), 2), wanted)
        if (i + 1) % 8 == 0:
            print(f"{i + 1} of {clips} clips: {json.dumps(generated.rates())}", flush=True)
    return {
        **generated.rates(),
        "similarity_truth": truth.rates()["similarity"],
        "truth_top1": truth.rates()["retrieval_top1"],
        "control_top1": control.rates()["retrieval_top1"],
        "control_top1_ci95": control.rates()["retrieval_top1_ci95"],
        "steps": STEPS,
        "cfg_text": CFG_TEXT,
        "cfg_images": CFG_IMAGES,
        "seconds": round(time.time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="6 clips instead of 64")
    arguments = parser.parse_args()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        with torch.inference_mode():
            result = run(6 if arguments.quick else 64)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
