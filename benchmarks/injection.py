"""What an identity adapter costs in a video model: operations, time and memory, for three people.

Keys of the result:

    flops_overhead  what the adapter adds to a step of Wan 1.3B at 832x480 and 81 frames, as a share of the step
    step_ratio      of the nano model: a step with its adapter over a step without
    flops           every model: `step_tflop` of the model alone, `adapter_tflop` a step, `adapter_once_tflop` in the
                    first step of a run, `flops_overhead`, and the adapter's `parameters`. Counted operation by
                    operation on the meta device in core's own networks at their real size, one row of a batch,
                    attention included. `references` are tokens behind the video, as Phantom's; then the adapter's gates
                    for them are counted too. CogVideoX has the released Ingredients' adapter, the Wan models one of
                    the same sizes with a null identity, a hierarchy and gates for references
    memory          the same Wan models: `extra_mb`, what a run with the adapter has alive at its worst moment more than
                    a run without (`peak_mb`), and `adapter_mb`, its weights. Counted tensor by tensor on the meta
                    device in bfloat16, with attention that needs only its result
    nano            the nano model with its own adapter, through the nodes, three branches of guidance: median `seconds`
                    and `seconds_without` of a step, the median `step_ratio` of runs made alternately, `once_seconds`
                    that the first step takes more than the others, and peak memory
    cpu             a random Wan of the 1.3B model's width, 2 of its 30 blocks and a quarter of its tokens: the same,
                    beside `flops_overhead` as counted for just this shape. Tokens cost less the fewer there are, and
                    the adapter does not: at the whole video its share is smaller
    gpu             random Wan 1.3B and 14B in bfloat16 at 832x480 and 81 frames, with `extra_mb` as measured; null
                    where there is no GPU, which means not measured. Of a model that does not fit, the ratio is null

Times on the CPU are seconds of this process on one thread, so that what else the machine does is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch

import nano
from support import full_size, inprocess
from support.full_size import COGVIDEOX_5B, WAN_1_3B, WAN_14B
from support.storage import PeakStorage

# The adapter and its LoRA.
NANO_ADAPTER = "idcrafter_nano_identity.safetensors"
NANO_STEPS = 5
# Of the 21 x 60 x 104 of the whole video.
QUARTER = (16, 21, 30, 52)
META = torch.device("meta")


def measure_flops(pack) -> list[dict]:
    lib = pack.submodule("idcrafter.modules.identity_adapter")
    cases = [("Wan 1.3B", WAN_1_3B, 0, 3), ("Wan 1.3B", WAN_1_3B, 3, 3), ("Wan 1.3B", WAN_1_3B, 0, 8)]
    cases += [("Wan 14B", WAN_14B, 0, 3), ("CogVideoX-5B, Ingredients", COGVIDEOX_5B, 0, 3)]
    rows = []
    for name, size, references, subjects in cases:
        released = size is COGVIDEOX_5B
        config = lib.INGREDIENTS if released else full_size.adapter_config(lib, size)
        row = {"model": name, "tokens": size.tokens, "references": references, "subjects": subjects}
        rows.append(row | counted(pack, size, config, references, subjects))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def counted(pack, size: full_size.Size, config, references: int = 0, subjects: int = 3) -> dict:
    model = full_size.model_of(size, torch.bfloat16, META)
    adapter = full_size.adapter_of(pack, config, torch.bfloat16, META)
    positive = full_size.positive_of(size, torch.bfloat16, META, references)
    alone, _ = full_size.flops_of(pack, model, positive, size)
    step, once = full_size.flops_of(pack, *full_size.injected(pack, model, adapter, positive, subjects), size)
    return {
        "step_tflop": round(alone / 1e12, 3),
        "adapter_tflop": round((step - alone) / 1e12, 3),
        "adapter_once_tflop": round(once / 1e12, 3),
        "flops_overhead": round((step - alone) / alone, 5),
        "parameters": sum(parameter.numel() for parameter in adapter.model.parameters()),
    }


def measure_memory(pack) -> list[dict]:
    lib = pack.submodule("idcrafter.modules.identity_adapter")
    rows = []
    for name, size in (("Wan 1.3B", WAN_1_3B), ("Wan 14B", WAN_14B)):
        model = full_size.model_of(size, torch.bfloat16, META)
        adapter = full_size.adapter_of(pack, full_size.adapter_config(lib, size), torch.bfloat16, META)
        positive = full_size.positive_of(size, torch.bfloat16, META)
        without = full_size.peak_of(pack, model, positive, size)
        peak = full_size.peak_of(pack, *full_size.injected(pack, model, adapter, positive), size)
        weights = sum(parameter.nbytes for parameter in adapter.model.parameters())
        megabytes = {"peak_mb": without, "extra_mb": peak - without, "adapter_mb": weights}
        rows.append({"model": name} | {key: round(value / 1e6, 1) for key, value in megabytes.items()})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def summary(pairs: list[tuple[float, float]]) -> dict:
    """Of seconds (with, without)."""
    return {
        "seconds": round(statistics.median(mine for mine, _ in pairs), 4),
        "seconds_without": round(statistics.median(free for _, free in pairs), 4),
        "step_ratio": round(statistics.median(mine / free for mine, free in pairs), 4),
        "rounds": len(pairs),
    }


def measure_nano(rounds: int) -> dict:
    """Runs of the sampler with and without the adapter, alternately; both have its LoRA."""
    stack = nano.Stack("nano_t2v.json")
    pack = stack.pack
    model = pack.execute("IDCrafterLoadLoRA", model=stack.model, lora_name=NANO_ADAPTER)[0]
    guiders = pack.submodule("idcrafter.sampling.guiders")
    world = pack.submodule("idcrafter.nano.world")
    scene = pack.submodule("idcrafter.nano.world.scene")
    numbers = world.numbers_of_split("sealed")
    people = [world.sample_identity(next(numbers)) for _ in full_size.NAMES]
    photos = [torch.from_numpy(world.render_photo(who, 7000, 128)[0]).float() / 255 for who in people]
    cast = pack.execute(
        "IDCrafterExtractFaces", cast=stack.cast_of(photos), face_analyzer=stack.analyzer, no_face="error",
        several_faces="error",
    )[0]  # fmt: skip
    shot = stack.shot_of(cast, "Three puppets wave.", (scene.WIDTH, scene.HEIGHT, scene.FRAMES))
    conditionings = {name: shot[name] for name in ("positive", "negative_text", "negative_images")}
    adapter = pack.execute("IDCrafterLoadAdapter", adapter_name=NANO_ADAPTER)[0]
    with_people = pack.execute(
        "IDCrafterInjectIdentity", model=model, adapter=adapter, cast=cast, vae=stack.vae, **conditionings
    )
    both = ((with_people[0], dict(zip(conditionings, with_people[1:4], strict=True))), (model, conditionings))
    latent = shot["latent_image"]["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))

    def run(model, inputs) -> list[float]:
        """Seconds of the steps."""
        ends = [time.process_time()]
        guider = guiders.make_guider(model, cfg_text=nano.CFG_TEXT, cfg_images=nano.CFG_IMAGES, **inputs)
        guider.sample(
            noise, latent, shot["sampler"], shot["sigmas"][: NANO_STEPS + 1], disable_pbar=True, seed=1,
            callback=lambda *_: ends.append(time.process_time()),
        )  # fmt: skip
        return [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)]

    peaks = []
    for each in both:
        run(*each)
        with PeakStorage() as storage:
            run(*each)
        peaks.append(storage.peak / 1e6)
    mine, free = [], []
    for i in range(rounds):
        for k in (0, 1) if i % 2 else (1, 0):
            (mine, free)[k].append(run(*both[k]))
    steps = [tuple(statistics.median(seconds[1:]) for seconds in pair) for pair in zip(mine, free, strict=True)]
    first = [pair[0][0] - pair[1][0] for pair in zip(mine, free, strict=True)]
    once = statistics.median(first) - statistics.median(a - b for a, b in steps)
    megabytes = {"peak_mb": round(peaks[1], 2), "extra_mb": round(peaks[0] - peaks[1], 2)}
    return summary(steps) | {"once_seconds": round(once, 4), "insertions": len(adapter.config.after)} | megabytes


def alternately(pack, size: full_size.Size, dtype, device, rounds: int) -> tuple[dict, dict[str, float]]:
    """Seconds of steps of a random model with and without the adapter; peak bytes on a GPU."""
    lib = pack.submodule("idcrafter.modules.identity_adapter")
    cuda = device.type == "cuda"
    clock: Callable[[], float] = time.perf_counter if cuda else time.process_time
    model = full_size.model_of(size, dtype, device)
    adapter = full_size.adapter_of(pack, full_size.adapter_config(lib, size), dtype, device)
    positive = full_size.positive_of(size, dtype, device)

    def seconds(call) -> float:
        if cuda:
            torch.cuda.synchronize()
        started = clock()
        call()
        if cuda:
            torch.cuda.synchronize()
        return clock() - started

    def peak(call) -> int:
        if not cuda:
            return 0
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()

    steps = [
        full_size.step_of(*full_size.injected(pack, model, adapter, positive), size),
        full_size.step_of(model, positive, size),
    ]
    for step in steps:
        step()  # the first one has what is done once a run
    pairs = []
    for i in range(rounds):
        order = (0, 1) if i % 2 else (1, 0)
        taken = {k: seconds(steps[k]) for k in order}
        pairs.append((taken[0], taken[1]))
    peaks = [peak(step) for step in steps]
    return summary(pairs), {"peak": peaks[1], "extra": peaks[0] - peaks[1]}


def measure_cpu(pack, rounds: int) -> dict:
    lib = pack.submodule("idcrafter.modules.identity_adapter")
    size = WAN_1_3B.shortened(2, QUARTER)
    count = counted(pack, size, full_size.adapter_config(lib, size))
    times, _ = alternately(pack, size, torch.float32, torch.device("cpu"), rounds)
    return {"tokens": size.tokens, "blocks": 2, **times, "flops_overhead": count["flops_overhead"]}


def measure_gpu(pack, rounds: int) -> list[dict] | None:
    if not torch.cuda.is_available():
        return None
    rows = []
    for name, size in (("Wan 1.3B", WAN_1_3B), ("Wan 14B", WAN_14B)):
        row = {"model": name, "device": torch.cuda.get_device_name(), "tokens": size.tokens}
        try:
            times, peaks = alternately(pack, size, torch.bfloat16, torch.device("cuda"), rounds)
            row |= times | {f"{key}_mb": round(value / 1e6, 1) for key, value in peaks.items()}
        except torch.OutOfMemoryError:
            row["step_ratio"] = None
        rows.append(row)
        print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no CPU model of the 1.3B one's width")
    arguments = parser.parse_args()
    started = time.time()
    torch.set_num_threads(1)
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        with torch.inference_mode():
            pack = inprocess.Pack()
            flops, small = measure_flops(pack), measure_nano(8 if arguments.quick else 40)
            result = {
                "flops_overhead": flops[0]["flops_overhead"],
                "step_ratio": small["step_ratio"],
                "flops": flops,
                "memory": measure_memory(pack),
                "nano": small,
                "cpu": None if arguments.quick else measure_cpu(pack, 4),
                "gpu": measure_gpu(pack, 3 if arguments.quick else 7),
            }
    result["seconds"] = round(time.time() - started, 1)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
