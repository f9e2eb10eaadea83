"""What region binding costs, and what it does to the nano model, which was not trained for it.

Keys of the result:

    memory  per kind of regions and strength: `extra_mb`, what binding needs more than unbound attention at its worst
            moment, and `share_of_mask`, that as a share of a mask of one byte a pair of tokens. Counted tensor by
            tensor on the meta device, at the size of Wan 1.3B: 832x480, 81 frames, 4 references, 39,000 tokens
    time    the same kinds: median `seconds` of a bound and `seconds_unbound` of an unbound attention and the median
            `ratio` of the two, run alternately. On a GPU at that size in bfloat16; on the CPU at half of its height and
            width (9,750 tokens), 1 of the 12 heads, float32, one thread, seconds of this process
    nano    two subjects, sealed identities, each in the half of the frame where `benchmarks/nano.py` looks for them;
            `caption` says in words who stands on which side, `no_sides` leaves it to the regions. `free`, `bound` (with
            strength 1) and `half_bound` (0.5): rates as in `benchmarks/nano.py`, of the same clips from the same seeds.
            What a reference sees was decided on clips before FIRST_CLIP
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch

import nano
from support import inprocess, wan_regions
from support.dense_attention import attend_with

# (kind of regions, strength)
CASES = (("quarters", 1.0), ("overlapping", 1.0), ("quarters", 0.5))
FIRST_CLIP = 8
STRENGTHS = {"free": 0.0, "bound": 1.0, "half_bound": 0.5}
HALVES = {"left": "0 0 0.5 1", "right": "0.5 0 1 1"}


def groups_of(module, geometry: wan_regions.Geometry, kind: str) -> list:
    owners, regions = range(wan_regions.SUBJECTS), geometry.regions(kind)
    return module.query_groups(regions, owners, owners, 0, geometry.references, geometry.total, True)


def measure_memory(module) -> list[dict]:
    rows = []
    plain = wan_regions.peak_of(lambda attend, q, k, v: attend(q, k, v), torch.bfloat16, 1)
    for kind, strength in CASES:
        groups = groups_of(module, wan_regions.FULL, kind)
        on_meta = [group.to(torch.device("meta")) for group in groups]

        def bound(attend, q, k, v, groups=on_meta, strength=strength):
            return module.grouped_attention(attend, q, k, v, groups, wan_regions.FULL.references, strength)

        extra = wan_regions.peak_of(bound, torch.bfloat16, 1) - plain
        extra += sum(group.queries.nbytes for group in groups)
        share = extra / wan_regions.FULL.total**2
        row = {"regions": kind, "strength": strength, "extra_mb": extra / 1e6, "share_of_mask": share}
        rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    return rows


def measure_time(module, rounds: int) -> dict:
    cuda = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if cuda else (torch.device("cpu"), torch.float32)
    geometry = wan_regions.FULL if cuda else wan_regions.HALF
    heads = wan_regions.WIDTH // wan_regions.HEAD if cuda else 1
    # Whatever else this machine does, and it may be a lot, is not counted.
    clock = time.perf_counter if cuda else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (1, geometry.total, heads * wan_regions.HEAD)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    attend = attend_with(heads)

    def seconds(function) -> float:
        if cuda:
            torch.cuda.synchronize()
        started = clock()
        function()
        if cuda:
            torch.cuda.synchronize()
        return clock() - started

    rows = []
    for kind, strength in CASES:
        groups = [group.to(device) for group in groups_of(module, geometry, kind)]

        def bound(groups=groups, strength=strength):
            return module.grouped_attention(attend, q, k, v, groups, geometry.references, strength)

        seconds(lambda: attend(q, k, v))
        pairs = [(seconds(bound), seconds(lambda: attend(q, k, v))) for _ in range(rounds)]
        row = {
            "regions": kind,
            "strength": strength,
            "seconds": statistics.median(mine for mine, _ in pairs),
            "seconds_unbound": statistics.median(free for _, free in pairs),
            "ratio": statistics.median(mine / free for mine, free in pairs),
        }
        rows.append({name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()})
        print(json.dumps(rows[-1]), flush=True)
    torch.set_num_threads(threads)
    where = torch.cuda.get_device_name() if cuda else "CPU"
    return {"device": where, "tokens": geometry.total, "heads": heads, "rounds": rounds, "cases": rows}


class People:
    """Sealed identities in pairs, as `benchmarks/nano.py` draws them; `gallery` [GALLERY, 512]."""

    def __init__(self, stack: nano.Stack):
        self._world = stack.pack.submodule("idcrafter.nano.world")
        self._scene = stack.pack.submodule("idcrafter.nano.world.scene")
        self._caption = stack.pack.submodule("idcrafter.nano.recipes.text").caption
        numbers = self._world.numbers_of_split("sealed")
        self._people = [self._world.sample_identity(next(numbers)) for _ in range(nano.GALLERY)]
        embeddings = []
        for index in range(nano.GALLERY):
            faces = [stack.analyzer.analyze(self.photo(index, 9000 + s)) for s in range(nano.PHOTOS)]
            mean = np.sum([found[0].embedding for found in faces], axis=0)
            embeddings.append(mean / np.linalg.norm(mean))
        self.gallery = np.stack(embeddings)

    def photo(self, index: int, seed: int) -> torch.Tensor:
        return torch.from_numpy(self._world.render_photo(self._people[index], seed, 128)[0]).float() / 255

    def clip(self, i: int) -> tuple:
        """(the pair's numbers, their sides, the caption, who should be on the left and on the right)."""
        pair = [(2 * i) % nano.GALLERY, (2 * i + 1) % nano.GALLERY]
        spec = self._world.sample_clip_spec(tuple(self._people[p] for p in pair), 5000 + i)
        wanted = [pair[spec.sides.index(side)] for side in self._scene.SIDES[2]]
        return pair, spec.sides, self._caption(spec, 0)[0], wanted


def measure_nano(clips: int) -> dict:
    stack = nano.Stack()
    guiders = stack.pack.submodule("idcrafter.sampling.guiders")
    scene = stack.pack.submodule("idcrafter.nano.world.scene")
    size = (scene.WIDTH, scene.HEIGHT, scene.FRAMES)
    people = People(stack)
    tallies = {kind: {name: nano.Tally() for name in STRENGTHS} for kind in ("caption", "no_sides")}
    for i in range(FIRST_CLIP, FIRST_CLIP + clips):
        pair, sides, prompt, wanted = people.clip(i)
        cast = stack.cast_of([people.photo(p, 7000 + i) for p in pair])
        names = [subject.name for subject in cast.subjects]
        boxes = "\n".join(f"{name}: {HALVES[side]}" for name, side in zip(names, sides, strict=True))
        models = {
            name: stack.pack.execute(
                "IDCrafterBindRegions", model=stack.model, cast=cast, boxes=boxes, strength=strength
            )[0]
            for name, strength in STRENGTHS.items()
        }
        for kind, text in (("caption", prompt), ("no_sides", without_sides(prompt))):
            shot = stack.shot_of(cast, text, size)
            inputs = {name: shot[name] for name in ("positive", "negative_text", "negative_images")}
            latent = shot["latent_image"]["samples"]
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(i))
            for name, model in models.items():
                guider = guiders.make_guider(model, cfg_text=nano.CFG_TEXT, cfg_images=nano.CFG_IMAGES, **inputs)
                samples = guider.sample(noise, latent, shot["sampler"], shot["sigmas"], disable_pbar=True, seed=i)
                frames = stack.decode(samples)
                tallies[kind][name].add(people.gallery, stack.places(frames, 2), wanted)
        done = i - FIRST_CLIP + 1
        if done % 4 == 0:
            print(f"{done} of {clips} clips: {json.dumps(rates(tallies))}", flush=True)
    return rates(tallies)


def rates(tallies: dict) -> dict:
    return {kind: {name: tally.rates() for name, tally in both.items()} for kind, both in tallies.items()}


def without_sides(prompt: str) -> str:
    """The caption with nothing about left and right."""
    text = re.sub(r" is on the (left|right) and", "", prompt)
    text = re.sub(r"\bOn the (left|right), ", "", text)
    text = re.sub(r" on the (left|right)\b", "", text)
    if re.search(r"\b(left|right)\b", text):
        raise RuntimeError(f"The caption still names a side: {text}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7, and 4 clips instead of 24")
    arguments = parser.parse_args()
    started = time.time()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        with torch.inference_mode():
            module = inprocess.Pack().submodule("idcrafter.modules.region_attention")
            result = {
                "memory": measure_memory(module),
                "time": measure_time(module, 3 if arguments.quick else 7),
                "nano": measure_nano(4 if arguments.quick else 24),
            }
    result["seconds"] = round(time.time() - started, 1)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
