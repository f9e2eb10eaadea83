"""What collecting rollouts costs: time, disk, and how fast they are read again.

On the nano stack the same graph (Sample Takes, Score Takes) runs with and without Save Rollouts, in turns, each time
with new seeds. Files are measured at the size of Wan 2.1's 832x480, 81 frames: [16, 21, 60, 104] latents a take.

Keys of the result:

    overhead_ratio              wall time of the graph with saving / the same run less Save Rollouts, median over the
                                rounds; at most 1.02 is required. Both from one run, so that other work on the machine
                                does not decide
    overhead_ratio_worst        the largest of the rounds
    overhead_ratio_cpu          processor time of runs with / without saving in turns, median, with its quartiles
    save_seconds, first_save_seconds   of Save Rollouts; the first one also reads the model's file for its hash
    bytes_per_take, mib_per_take       size of a group file with latents only / its takes; at most 4.1 MiB is allowed
    mib_per_take_one_step       the same with x_t and x_next of one random step
    write_mb_per_second, read_mb_per_second, verify_mb_per_second   of such groups; reading is from the page cache
    index_groups_per_second, heads_groups_per_second   opening a folder of small groups by the index, and without it
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import nano
from nano import inprocess

SHAPE = (16, 21, 60, 104)
MOST_OVERHEAD, MOST_MIB = 1.02, 4.1
LARGE_TAKES, SMALL_GROUPS = 8, 400
MIB, MB = 2**20, 1e6


class Collection:
    """The collecting graph on nano."""

    def __init__(self):
        self.stack = stack = nano.Stack()
        module = stack.pack.submodule
        world, scene = module("idcrafter.nano.world"), module("idcrafter.nano.world.scene")
        numbers = world.numbers_of_split("val")
        people = [world.sample_identity(next(numbers)) for _ in range(2)]
        photos = [torch.from_numpy(world.render_photo(who, 70_000, 128)[0]) / 255 for who in people]
        self.prompt = module("idcrafter.nano.recipes.text").caption(world.sample_clip_spec(tuple(people), 60_000), 0)[0]
        self.cast = stack.pack.execute(
            "IDCrafterExtractFaces",
            cast=stack.cast_of(photos),
            face_analyzer=stack.analyzer,
            no_face="error",
            several_faces="error",
        )[0]
        self.inputs = stack.shot_of(self.cast, self.prompt, (scene.WIDTH, scene.HEIGHT, scene.FRAMES))
        self.conditioning = {
            name: self.inputs[name] for name in ("positive", "negative_text", "negative_images", "model")
        }

    def run(self, seed: int, takes: int, save: bool) -> tuple[float, float, float]:
        """Seconds of the whole graph, of Save Rollouts alone, and of the processor for the graph."""
        execute = self.stack.pack.execute
        start, processor = time.perf_counter(), time.process_time()
        made = execute("IDCrafterSampleTakes", seed=seed, takes=takes, **self.inputs)[0]
        scorecard = execute("IDCrafterScoreTakes", takes=made, vae=self.stack.vae, cast=self.cast, frames=0)[0]
        saving = time.perf_counter()
        if save:
            answer = execute(
                "IDCrafterSaveRollouts",
                takes=made,
                scorecard=scorecard,
                cast=self.cast,
                prompt=self.prompt,
                clip=self.stack.clip,
                **self.conditioning,
            )[1]
            if not answer.startswith("Stored"):
                raise RuntimeError(answer)
        end = time.perf_counter()
        return end - start, end - saving, time.process_time() - processor


def overhead(rounds: int, takes: int) -> dict:
    collection = Collection()
    _, first, _ = collection.run(0, takes, True)
    runs: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for i in range(rounds):
        for save in (True, False) if i % 2 else (False, True):
            runs[save].append(collection.run(1000 * (2 * i + 1 + save), takes, save))
        print(
            f"round {i + 1} of {rounds}: {runs[True][-1][0]:.2f} s with saving, {runs[False][-1][0]:.2f} s without",
            flush=True,
        )
    whole, saving, processor = np.array(runs[True]).T
    turns = processor / np.array(runs[False])[:, 2]
    return {
        "rounds": rounds,
        "takes": takes,
        "overhead_ratio": round(float(np.median(whole / (whole - saving))), 4),
        "overhead_ratio_worst": round(float(np.max(whole / (whole - saving))), 4),
        "overhead_allowed": MOST_OVERHEAD,
        "overhead_ratio_cpu": round(float(np.median(turns)), 4),
        "overhead_ratio_cpu_quartiles": [round(float(q), 4) for q in np.percentile(turns, (25, 75))],
        "graph_seconds": round(float(np.median(whole)), 3),
        "save_seconds": round(float(np.median(saving)), 4),
        "first_save_seconds": round(first, 4),
    }


class Files:
    """Groups of random latents in a folder of their own."""

    def __init__(self, folder: Path, pack):
        self.folder = folder
        self.record, self.dataset = (pack.submodule(f"idcrafter.rollouts.{name}") for name in ("record", "dataset"))
        self.store = pack.submodule("idcrafter.rollouts.store").RolloutStore(folder)

    def part(self, number: int, takes: int, shape: tuple[int, ...], steps: int = 0):
        generator = torch.Generator().manual_seed(number)
        samples = []
        for seed in range(takes):
            x0 = torch.randn(shape, generator=generator)
            tensors = {name: x0.expand(steps, *shape).bfloat16() for name in ("x_t", "x_next") if steps}
            reward = float(seed)
            samples.append(self.record.Sample(seed, x0, {"identity": reward}, reward, "a" * 32, 1.0, tensors))
        licence = {"what": "video model", "name": "random", "licence": "none", "made_pixels": True}
        return self.record.build_part(
            samples,
            hashes={"policy": "a" * 32, "text": str(number)},
            shot={"prompt": f"shot {number}", "sampler": "euler", "leading": 0},
            sigmas=torch.linspace(1, 0, 21),
            licences=[licence],
        )

    def save(self, part) -> int:
        """Bytes of the file."""
        self.store.save(part)
        return self.store.path(part.name).stat().st_size


def sizes(pack, folder: Path, groups: int) -> dict:
    files = Files(folder / "large", pack)
    one_step = files.save(files.part(1_000_000, 2, SHAPE, steps=1)) / 2
    shutil.rmtree(files.folder)
    size, writing = 0, 0.0
    for number in range(groups):
        part = files.part(number, LARGE_TAKES, SHAPE)
        start = time.perf_counter()
        size += files.save(part)
        writing += time.perf_counter() - start
    loaded = files.dataset.load(files.folder)
    start = time.perf_counter()
    read = 0
    for group in loaded.groups:
        for k in range(len(group.takes)):
            x0 = group.load(k)["x0"]
            x0.sum()  # every value is looked at: the file is only mapped until then
            read += x0.nbytes
    reading = time.perf_counter() - start
    start = time.perf_counter()
    damages = files.store.verify()
    verifying = time.perf_counter() - start
    if damages or len(loaded.groups) != groups:
        raise RuntimeError(f"{len(loaded.groups)} of {groups} groups came back; damaged: {damages}")
    per_take = size / (groups * LARGE_TAKES)
    return {
        "bytes_per_take": round(per_take),
        "mib_per_take": round(per_take / MIB, 4),
        "mib_per_take_allowed": MOST_MIB,
        "mib_per_take_one_step": round(one_step / MIB, 4),
        "groups": groups,
        "write_mb_per_second": round(size / MB / writing, 1),
        "read_mb_per_second": round(read / MB / reading, 1),
        "verify_mb_per_second": round(size / MB / verifying, 1),
    }


def opening(pack, folder: Path, groups: int) -> dict:
    files = Files(folder / "small", pack)
    index = pack.submodule("idcrafter.rollouts.index")
    for number in range(groups):
        files.save(files.part(number, LARGE_TAKES, (4, 2, 3, 3)))

    def seconds() -> float:
        start = time.perf_counter()
        if len(files.dataset.load(files.folder).groups) != groups:
            raise RuntimeError("groups are missing")
        return time.perf_counter() - start

    seconds()  # merges the index, and warms the page cache
    with_index = min(seconds() for _ in range(3)) if index.available() else None
    shutil.rmtree(files.store.index, ignore_errors=True)
    available, index.available = index.available, lambda: False
    without = min(seconds() for _ in range(3))
    index.available = available
    return {
        "small_groups": groups,
        "index_groups_per_second": None if with_index is None else round(groups / with_index),
        "heads_groups_per_second": round(groups / without),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 8, fewer groups")
    arguments = parser.parse_args()
    quick = arguments.quick
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        import folder_paths
        from comfy.utils import set_progress_bar_enabled

        folder_paths.set_output_directory(folder)
        set_progress_bar_enabled(False)
        with torch.inference_mode():
            result = overhead(2 if quick else 8, 4)
            pack = inprocess.Pack()
            result |= sizes(pack, Path(folder), 2 if quick else 6)
            result |= opening(pack, Path(folder), SMALL_GROUPS // 4 if quick else SMALL_GROUPS)
    result["met"] = result["overhead_ratio"] <= MOST_OVERHEAD and result["mib_per_take"] <= MOST_MIB
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
