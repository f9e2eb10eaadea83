"""What scoring costs beside the face models themselves, and whether its memory grows with the clip.

The same frames go, clip by clip and in turns, through

- the whole scoring call: decoded float frames in, the record of the report out;
- the bare models: detector on each frame, alignment, recogniser on batches as large as those of the scoring call. It
  runs the same sessions with the same preparation of pixels, and starts from 8-bit frames: checking, converting,
  assigning, tracking, events and the record are all on the other side;
- the sessions alone: onnxruntime on the inputs of that loop, ready, and nothing decoded.

All on one core: nano's models are too small for several, and the figure should not depend on how many there are. With
larger models the rest weighs less.

Keys of the result, each ratio the median over clips and rounds, with its quartiles beside it: `overhead_ratio` (wall
time of the first over the second), `overhead_ratio_cpu` (the same in processor time, which other work on the machine
disturbs less), `overhead_ratio_sessions` (wall time of the first over the third); `clips`, `rounds`, `frames`, `faces`
and the median milliseconds a frame of each of the three. `streaming` has an entry a length: a video file of
`minutes` minutes, all of its frames decoded and scored in a process of its own; `peak_mib` is by how much that process
grew, `held_mib` what the frames would take as a tensor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import av
import numpy as np
import psutil
import torch

from support import inprocess

ROUNDS = 7
FPS = 24
SCALE = 2  # of the streamed video's pixels over nano's


class Scene:
    """The nano face pack, a cast of two validation identities, and clips of them."""

    def __init__(self):
        pack = inprocess.Pack()
        self.faces = pack.submodule("idcrafter.subjects.faces")
        self.subject = pack.submodule("idcrafter.subjects.subject")
        self.world = pack.submodule("idcrafter.nano.world")
        self.record = pack.submodule("idcrafter.rewards.record")
        self.evidence = pack.submodule("idcrafter.rewards.evidence")
        self.loader = pack.submodule("model_loaders.faces")
        self.analyzer = self.loader.load_named_analyzer("idcrafter_nano", provider="cpu")
        self.people = tuple(self.world.sample_identity(n) for n in islice(self.world.numbers_of_split("val"), 2))
        cast = self.subject.make_cast(
            [
                self.subject.make_subject(
                    f"P{i}", "person", "", self.tensor(self.world.render_photo(who, 1, 128)[0][None])
                )
                for i, who in enumerate(self.people)
            ]
        )
        self.cast = cast.with_faces(self.faces.extract_faces(cast, self.analyzer, "error", "largest"))

    @staticmethod
    def tensor(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).float() / 255

    def clip(self, seed: int) -> np.ndarray:
        """[9, 64, 96, 3] uint8."""
        return np.asarray(self.world.render_clip(self.world.sample_clip_spec(self.people, seed)).frames)


class Bare:
    """The two models on one clip [T, H, W, 3] uint8, by the shortest loop that gives embeddings."""

    def __init__(self, scene: Scene, pixels: np.ndarray):
        import cv2

        self.faces, self.warp, self.batch = scene.faces, cv2.warpAffine, scene.loader.BATCH
        self.detector, self.recogniser = scene.analyzer.detector._model, scene.analyzer.recogniser
        self.frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in pixels]
        with _recorded(self.detector.session) as detected, _recorded(self.recogniser._model.session) as embedded:
            self.count = len(self.models())
        self.calls = [(self.detector, feed) for feed in detected]
        self.calls += [(self.recogniser._model, feed) for feed in embedded]

    def models(self) -> np.ndarray:
        """Embeddings [F, 512] of all faces."""
        crops, embeddings = [], []
        for frame in self.frames:
            for landmarks in self.detector.detect(frame)[1]:
                matrix = self.faces.similarity_transform(landmarks, self.faces.ARCFACE_TEMPLATE)
                crops.append(self.warp(frame, matrix, (112, 112)))
                if len(crops) == self.batch:
                    embeddings.append(self.recogniser.embed(crops))
                    crops = []
        if crops:
            embeddings.append(self.recogniser.embed(crops))
        return np.concatenate(embeddings)

    def sessions(self) -> None:
        """onnxruntime on what `models` feeds it."""
        for model, feed in self.calls:
            model.session.run(model.output_names, feed)


@contextmanager
def _recorded(session) -> Iterator[list[dict]]:
    """The inputs with which an onnxruntime session is run."""
    feeds, run = [], session.run
    session.run = lambda names, feed: feeds.append(feed) or run(names, feed)
    try:
        yield feeds
    finally:
        del session.run


def overhead(scene: Scene, clips: int) -> dict:
    names = ("scoring", "models", "sessions")
    # [clips, rounds, call, (wall, processor)] in seconds
    seconds = np.zeros((clips, ROUNDS, len(names), 2))
    frames = faces = 0
    for i in range(clips):
        pixels = scene.clip(i)
        decoded, indices, bare = scene.tensor(pixels), range(len(pixels)), Bare(scene, pixels)
        calls = (lambda d=decoded, n=indices: scene.record.score_clip(d, n, scene.cast), bare.models, bare.sessions)
        frames, faces = frames + len(pixels), faces + bare.count
        if bare.count != sum(len(found) for found in scene.analyzer.analyze_frames(decoded)):
            raise RuntimeError(f"Clip {i + 1}: the two sides do not see the same faces.")
        calls[0]()  # the first one allocates
        for k in range(ROUNDS):
            # Every other round backwards, so that no call always follows the same one.
            for which in (range(len(calls)), reversed(range(len(calls))))[k % 2]:
                wall, used = time.perf_counter(), time.process_time()
                calls[which]()
                seconds[i, k, which] = time.perf_counter() - wall, time.process_time() - used
    result = {}
    for key, other, clock in (("", 1, 0), ("_cpu", 1, 1), ("_sessions", 2, 0)):
        low, middle, high = np.quantile(seconds[..., 0, clock] / seconds[..., other, clock], (0.25, 0.5, 0.75))
        result[f"overhead_ratio{key}"] = round(float(middle), 4)
        result[f"overhead_ratio{key}_quartiles"] = [round(float(low), 4), round(float(high), 4)]
    per_frame = np.median(seconds[..., 0], (0, 1)) * 1000 * clips / frames
    return {
        **result,
        "clips": clips,
        "rounds": ROUNDS,
        "frames": frames,
        "faces": faces,
        **{f"ms_per_frame_{name}": round(float(value), 3) for name, value in zip(names, per_frame, strict=True)},
    }


def streaming(minutes: float) -> dict:
    """In a new process, so that nothing that ran before has already grown it."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        prepare(Path(folder))
        scene, path = Scene(), Path(folder) / "long.mp4"
        shape = write_video(scene, path, round(minutes * 60 * FPS))
        source = scene.evidence.VideoFrames(path)
        scene.record.clip_record(scene.evidence.gather_evidence(source, range(32), scene.cast))  # it allocates
        process = psutil.Process()
        start = peak = process.memory_info().rss

        def look() -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        began = time.perf_counter()
        found = scene.evidence.gather_evidence(source, range(source.length), scene.cast, on_frame=look)
        record = scene.record.clip_record(found)
        look()
        return {
            "minutes": minutes,
            "frames": len(record["frames"]),
            "size": [shape[1], shape[0]],
            "faces": sum(len(each) for each in found.faces),
            "seconds": round(time.perf_counter() - began, 1),
            "peak_mib": round((peak - start) / 2**20, 1),
            "held_mib": round(source.length * shape[0] * shape[1] * 3 * 4 / 2**20, 1),
        }


def write_video(scene: Scene, path: Path, count: int) -> tuple[int, int]:
    """Clips one after another, forwards and backwards, each of another seed; height and width."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.height, stream.width = (SCALE * side for side in scene.clip(0).shape[1:3])
        written, seed = 0, 0
        while written < count:
            clip = scene.clip(seed % 32).repeat(SCALE, 1).repeat(SCALE, 2)
            for frame in [*clip, *clip[::-1]][: count - written]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                written += 1
            seed += 1
        container.mux(stream.encode())
    return clip.shape[1], clip.shape[2]


def prepare(folder: Path) -> None:
    inprocess.prepare_path()
    inprocess.configure(folder)
    torch.set_num_threads(1)  # onnxruntime's sessions take theirs from torch


def run(clips: int, lengths: tuple[float, ...]) -> dict:
    started = time.time()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        prepare(Path(folder))
        result = overhead(Scene(), clips)
    streams = []
    for minutes in lengths:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            streams.append(pool.submit(streaming, minutes).result())
    return {**result, "streaming": streams, "seconds": round(time.time() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="8 clips instead of 32; half a minute of video, not 10")
    arguments = parser.parse_args()
    result = run(*((8, (0.25, 0.5)) if arguments.quick else (32, (2.5, 10.0))))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
