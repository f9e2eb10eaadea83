"""Groups of tiny takes, as Save Rollouts makes them. Run as a script it is a writer, or ends writers.

python rollouts.py write FOLDER WRITER COUNT   stores COUNT groups and prints the name of each as soon as it is stored
python rollouts.py kill FOLDER COUNT           what `kill_writers` returns, as JSON
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

LICENCE = {"what": "video model", "name": "tiny.safetensors", "licence": "Apache-2.0", "made_pixels": True}
POLICY = "a" * 32
SIGMAS = (1.0, 0.75, 0.5, 0.1, 0.0)


def make_samples(totals=(0.1, 0.5, 0.9), first_seed=0, policy=POLICY, shape=(4, 2, 3, 3), salt=0):
    """One `record.Sample` a total; its latent follows from seed and salt."""
    from idcrafter.rollouts.record import Sample

    samples = []
    for i, total in enumerate(totals):
        generator = torch.Generator().manual_seed(1000 * salt + first_seed + i)
        x0 = torch.randn(shape, generator=generator)
        rewards = {"identity": float(total), "motion": float(i)}
        samples.append(Sample(first_seed + i, x0, rewards, float(total), policy, seconds=1.5))
    return samples


def make_part(samples=None, prompt="Ada waves.", licences=(LICENCE,), hashes=None, plan=None, subjects=None, **changes):
    """`record.build_part` of `samples`, or of those that `make_samples(**changes)` gives."""
    from idcrafter.rollouts.record import build_part

    settings = {name: changes.pop(name) for name in ("label", "reward", "left_out") if name in changes}
    sigmas = changes.pop("sigmas", torch.tensor(SIGMAS))
    samples = make_samples(**changes) if samples is None else samples
    known = {"policy": samples[0].policy if samples else POLICY, "weights": "b" * 64, "text": prompt, **(hashes or {})}
    shot = {
        "prompt": prompt,
        "subjects": subjects or [],
        "sampler": "euler",
        "guidance": {"cfg_text": 5.0},
        "leading": 0,
    }
    if plan is not None:
        shot["conditioning"] = plan
    return build_part(samples, hashes=known, shot=shot, sigmas=sigmas, licences=licences, **settings)


def write(folder: str, writer: str, count: int, report) -> None:
    """Store groups one after the other; `report(name)` after each."""
    from idcrafter.rollouts.store import RolloutStore

    store = RolloutStore(folder)
    for i in range(count):
        part = make_part(prompt=f"writer {writer}, shot {i}")
        store.save(part)
        report(part.name)


def kill_writers(folder: str, kills: int) -> dict:
    """Start that many writers one after the other, and SIGKILL each at a random moment.

    Returns "reported": the groups that they had said to be stored, and "halves": how many left a half-written file.
    """
    rng = random.Random(11)
    reported, halves = [], 0
    for k in range(kills):
        child, pipe = fork_writer(folder, str(k), 10_000)
        first = pipe.readline() if k % 2 else ""  # every other one may be hit in its first group
        time.sleep(rng.random() * 0.05)
        reported += [*first.split(), *end_writer(child, pipe)]
        halves += any(Path(folder).glob(f"*/.*-{child}-*.tmp"))
    return {"reported": reported, "halves": halves}


def race_writers(folder: str, count: int, first: str, second: str, restart: bool) -> list[list[str]]:
    """Two writers at the same time; what each has reported. With `restart` the second is killed and started again."""
    children = [fork_writer(folder, first, count), fork_writer(folder, second, count)]
    if restart:
        for _ in range(3):
            children[1][1].readline()
        end_writer(*children[1])
        children[1] = fork_writer(folder, second, count)
    reported = [pipe.read().split() for _, pipe in children]
    for child, _ in children:
        os.waitpid(child, 0)
    return reported


def fork_writer(folder: str, writer: str, count: int):
    """(process id, what it reports). Forked, so that it need not import torch; this process has no other threads."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(folder, writer, count, lambda name: os.write(writing, f"{name}\n".encode()))
        finally:
            os._exit(0)
    os.close(writing)
    return child, os.fdopen(reading)


def end_writer(child: int, pipe) -> list[str]:
    """Kill it; what it had reported."""
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        raise RuntimeError("The writer ended by itself.")
    with pipe:
        return pipe.read().split()


def main(mode: str, folder: str, *options: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    from idcrafter.rollouts import index

    index.available()  # pyarrow is imported once
    make_part()
    if mode == "kill":
        answer = kill_writers(folder, int(options[0]))
    else:
        answer = race_writers(folder, int(options[0]), options[1], options[2], mode == "restart")
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
