"""What the parts of an identity adapter do for clips of two to four people, on the nano text-to-video model, which has
never seen a reference.

Rows, each with the same clips, captions and noise:

    none                      the prompt alone: no references, nothing trained on top
    references                reference tokens (Phantom's rule), to which a LoRA has made the model used
    router                    the same, and an adapter whose router divides the faces among the places
    hierarchy                 the same, and an adapter with the hierarchy and without a router
    full                      the same, and an adapter with both
    full_without_router_loss  the same, trained without the router's cross-entropy

Beside them `truth`, the rendered clips once through the VAE, which nothing can exceed; and for a part of the clips two
controls of `full`: `strangers`, with the references of other people, and `rotated`, in which everybody has the next
one's photo.

The files of a row lie in one folder: ROW.lora.safetensors for the DiT and ROW.adapter.safetensors, with the metadata
"steps" of their training, "data" (a digest of what it saw) and "seed". Rows of different steps or data are refused.
`full` is the adapter that comes with the pack.

The clips are of sealed identities in the world of crowds, drawn as the training's are: who stands where, and who
swaps places or hides behind whom. Specs in which nothing moves are left out. The measures are in `_crowd_scores.py`;
the gallery has 100 sealed identities, each embedded from three photos that are no references.

Keys of the result: `rows`, for each the measures by number of subjects ("2", "3", "4", "all") and what its files say;
for 3 subjects, with 95 % bootstrap intervals over clips,

    gain_full_over_references        relative, of `similarity`
    gain_router_loss                 the same of full over full_without_router_loss
    swap_ratio_full_over_references  of `swap_rate`
    misplaced_ratio_full_over_references   of `misplaced_rate`, the same without thresholds

and `required` and `met`. The seconds are processor time of one clip, as they were when it was made.

A run that was broken off goes on where it was, with the same --work folder; that also gets contact sheets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import nano
from nano import inprocess

inprocess.prepare_path()

import _crowd_scores as scores  # noqa: E402 - it imports idcrafter

ROWS = ("none", "references", "router", "hierarchy", "full", "full_without_router_loss")
CONTROLS = {"strangers": "full", "rotated": "full"}
TRUTH = "truth"
BUNDLE = "nano_t2v.json"
CLIPS = {2: 32, 3: 64, 4: 32}
CONTROL_SHARE = 4  # a control gets one clip of so many
GALLERY, PHOTOS, PHOTO_SIZE = nano.GALLERY, nano.PHOTOS, 128
STEPS = 16
WEIGHTS = inprocess.ROOT / "idcrafter" / "nano" / "weights"
ROWS_FOLDER = WEIGHTS / "ablation"
# The adapter that comes with the pack is the row `full`, which therefore is not in that folder.
SHIPPED = {
    "lora": WEIGHTS / "loras" / "idcrafter_nano_identity.safetensors",
    "adapter": WEIGHTS / "idcrafter_adapters" / "idcrafter_nano_identity.safetensors",
}
BATCH = 8
# First seeds: of scenes, of the references, of the gallery's photos, and of the noise.
SCENES, REFERENCES, PORTRAITS, NOISE = 110_000, 120_000, 9000, 130_000


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip to make.

    people  rows of the gallery, in cast order
    prompt  its caption
    """

    index: int
    truth: object
    people: tuple[int, ...]
    prompt: str

    @property
    def count(self) -> int:
        return len(self.people)

    @property
    def name(self) -> str:
        return f"{self.count}-{self.index:03}"

    @property
    def seed(self) -> int:
        return NOISE + 1000 * self.count + self.index

    @cached_property
    def key(self) -> str:
        """Changes with whatever is drawn."""
        return hashlib.sha256(self.truth.frames.tobytes() + self.prompt.encode()).hexdigest()[:16]

    @cached_property
    def ends(self) -> scores.Ends:
        return scores.ends_of(self.truth)


@dataclass(frozen=True, eq=False)
class Row:
    """`facts` for the result; `model` without an adapter; `key` changes with whatever makes its clips."""

    name: str
    model: object
    adapter: object | None
    facts: dict
    key: str


class Bench:
    """The stack, its gallery of sealed identities and the clips."""

    scenes = SCENES

    def __init__(self, clips: dict[int, int], steps: int = STEPS, bundle: str = BUNDLE):
        self.bundle = bundle
        self.stack = stack = nano.Stack(bundle)
        module = stack.pack.submodule
        self.world, self.crowd = module("idcrafter.nano.world"), module("idcrafter.nano.world.crowd")
        self.fps = module("idcrafter.nano.world.scene").FPS
        self.caption = module("idcrafter.nano.recipes.text").caption
        self.make_guider = module("idcrafter.sampling.guiders").make_guider
        self.take_noise = module("idcrafter.sampling.seeds").take_noise
        self.lora, self.adapter = module("model_loaders.lora"), module("model_loaders.adapter")
        self.files = module("model_loaders.files")
        self.steps = steps
        self.sigmas = stack.pack.execute(
            "BasicScheduler", model=stack.model, scheduler="simple", steps=steps, denoise=1.0
        )[0]
        numbers = islice(self.world.numbers_of_split("sealed"), GALLERY)
        self.people = [self.world.sample_identity(number) for number in numbers]
        self.gallery = np.stack([self._portrait(who) for who in range(GALLERY)])
        self.clips = [clip for count, total in clips.items() for clip in islice(self._draw(count), total)]

    def photo(self, who: int, seed: int) -> torch.Tensor:
        return torch.from_numpy(self.world.render_photo(self.people[who], seed, PHOTO_SIZE)[0]).float() / 255

    def _portrait(self, who: int) -> np.ndarray:
        found = [self.stack.analyzer.analyze(self.photo(who, PORTRAITS + s)) for s in range(PHOTOS)]
        mean = np.sum([max(faces, key=lambda face: face.score).embedding for faces in found], axis=0)
        return mean / np.linalg.norm(mean)

    def _draw(self, count: int) -> Iterator[Clip]:
        """Endless clips of `count` people in which something moves."""
        seed, index = self.scenes + 1000 * count, 0
        while True:
            people = tuple(int(i) for i in np.random.default_rng(seed).permutation(GALLERY)[:count])
            spec = self.crowd.sample_crowd_spec(tuple(self.people[who] for who in people), seed)
            truth = self.crowd.render_crowd(spec)
            if not scores.is_still(truth.frames / np.float32(255)):
                yield Clip(index, truth, people, self.caption(spec, 0)[0])
                index += 1
            seed += 1

    def row_of(self, name: str, folder: Path) -> Row:
        """A row of the ablation, a control or the truth; ValueError for files that do not make the row."""
        if name == TRUTH:
            return Row(name, None, None, {}, self._key(name, {}))
        control, name = name, CONTROLS.get(name, name)
        kinds = {kind: folder / f"{name}.{kind}.safetensors" for kind in SHIPPED}
        if name == "full" and folder == ROWS_FOLDER:
            kinds = SHIPPED
        found = {kind: path for kind, path in kinds.items() if path.is_file()}
        plain = name in ("none", "references")
        if plain == ("adapter" in found):
            problem = "has no adapter, remove" if plain else "needs an adapter, but there is no file"
            raise ValueError(f"The row '{name}' {problem} '{kinds['adapter']}'.")
        headers = {kind: self.files.read_header(path) for kind, path in found.items()}
        digests = {f"{name}.{kind}.safetensors": _sha256(path) for kind, path in found.items()}
        facts = {"parameters": 0, "files": digests}
        for kind, header in headers.items():
            missing = [key for key in ("steps", "data", "seed") if key not in header.metadata]
            if missing:
                raise ValueError(f"'{found[kind].name}' does not say its {' and '.join(missing)}; train it again.")
            said = {"steps": int(header.metadata["steps"]), "data": header.metadata["data"]}
            if any(facts.get(key, value) != value for key, value in said.items()):
                raise ValueError(f"The files of the row '{name}' are of different steps or data; train them together.")
            facts |= said | {"seed": int(header.metadata["seed"])}
            facts["parameters"] += sum(t.shape.numel() for n, t in header.tensors.items() if not n.endswith(".alpha"))
        model, adapter = self.stack.model, None
        if "lora" in found:
            model = self.lora.apply_lora(model, self.lora.load_lora(found["lora"], model).weights, 1.0)
        if "adapter" in found:
            adapter = self.adapter.load_whole(found["adapter"], None)
            has = (adapter.config.router, adapter.config.hierarchy > 0)
            if has != (name != "hierarchy", name != "router"):
                raise ValueError(
                    f"'{found['adapter'].name}' has {'a' if has[0] else 'no'} router and {'a' if has[1] else 'no'} "
                    f"hierarchy, which is not what the row '{name}' is about."
                )
        return Row(control, model, adapter, facts, self._key(control, facts["files"]))

    def _key(self, name: str, files: dict) -> str:
        said = [scores.VERSION, name, files, self._bundle, self.steps, nano.CFG_TEXT, nano.CFG_IMAGES]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _bundle(self) -> str:
        """What the bundle says, which has the digests of all of its files."""
        return _sha256(self.files.require("idcrafter_bundles", self.bundle))

    def batches(self, clips: Sequence[Clip]) -> Iterator[list[Clip]]:
        """Clips of one size whose prompts have one length, at most BATCH at a time."""
        alike = defaultdict(list)
        for clip in clips:
            alike[clip.count, self.stack.text(clip.prompt)[0][0].shape[1]].append(clip)
        for group in alike.values():
            for i in range(0, len(group), BATCH):
                yield group[i : i + BATCH]

    def make(self, row: Row, clips: Sequence[Clip], shots: dict) -> torch.Tensor:
        """Frames [B, T, H, W, 3] in 0..1 of clips of one size.

        shots  keeps what the rows have in common: give each batch an empty one
        """
        vae = self.stack.vae
        if row.name == TRUTH:
            frames = [torch.from_numpy(clip.truth.frames).float() / 255 for clip in clips]
            return torch.stack([vae.decode(vae.encode(each)).reshape(each.shape).clamp(0, 1) for each in frames])
        model, parts, latents = row.model, [], []
        for clip in clips:
            whose = self.references_of(row.name, clip)
            if (clip.name, whose) not in shots:
                shots[clip.name, whose] = self._shot(clip, whose)
            cast, shot = shots[clip.name, whose]
            model, part = self.conditionings(row, cast, shot)
            parts.append(part)
            latents.append(shot["latent_image"])
        guider = self.make_guider(
            model,
            **{name: stack_conditionings([part[name] for part in parts]) for name in parts[0]},
            cfg_text=nano.CFG_TEXT,
            cfg_images=nano.CFG_IMAGES,
        )
        noise = torch.cat([self.take_noise(latent, clip.seed) for latent, clip in zip(latents, clips, strict=True)])
        empty = torch.cat([latent["samples"] for latent in latents])
        samples = guider.sample(noise, empty, self.stack.sampler, self.sigmas, disable_pbar=True, seed=0)
        frames = self.stack.decode(samples)
        return frames.reshape(len(clips), -1, *frames.shape[1:])

    def references_of(self, row: str, clip: Clip) -> tuple[int, ...]:
        """Whose photos the clip's subjects get."""
        if row == "rotated":
            return clip.people[1:] + clip.people[:1]
        if row == "strangers":
            others = [who for who in range(GALLERY) if who not in clip.people]
            return tuple(others[(clip.index + i) % len(others)] for i in range(clip.count))
        return clip.people

    def _shot(self, clip: Clip, whose: Sequence[int]) -> tuple:
        """The cast with faces, and the inputs of Sample Takes."""
        seed = REFERENCES + 10 * clip.seed
        cast = self.stack.cast_of([self.photo(who, seed + i) for i, who in enumerate(whose)])
        cast = self.stack.pack.execute(
            "IDCrafterExtractFaces",
            cast=cast,
            face_analyzer=self.stack.analyzer,
            no_face="error",
            several_faces="largest",
        )[0]
        length = len(clip.truth.frames)
        return cast, self.stack.shot_of(cast, clip.prompt, (*clip.truth.spec.size, length))

    def conditionings(self, row: Row, cast, shot: dict) -> tuple:
        """(MODEL, the conditionings of one clip by their names in `make_guider`)."""
        names = ("positive", "negative_text", "negative_images")
        if row.name == "none":
            # References of zeros are what the model knows as none; then guidance by images has nothing to do.
            (embedding, values), nobody = shot["positive"][0], shot["negative_images"][0][1]
            without = [[embedding, {**values, "time_dim_concat": nobody["time_dim_concat"]}]]
            return row.model, {"positive": without, "negative_text": shot["negative_images"]}
        if row.adapter is None:
            return row.model, {name: shot[name] for name in names}
        given = {name: shot[name] for name in names}
        out = self.stack.pack.execute(
            "IDCrafterInjectIdentity", model=row.model, adapter=row.adapter, cast=cast, vae=self.stack.vae, **given
        )
        return out[0], dict(zip(names, out[1:4], strict=True))

    def measure(self, clip: Clip, frames: torch.Tensor) -> dict:
        found = self.stack.analyzer.analyze_frames(frames)
        return scores.measure_clip(clip.ends, frames.numpy(), found, clip.people, self.gallery, self.fps)


def stack_conditionings(parts: Sequence[list]) -> list:
    """Conditionings of single clips -> one, whose rows are those clips'. What is no tensor must be the same in all."""
    values = {}
    for name, first in parts[0][0][1].items():
        each = [part[0][1][name] for part in parts]
        if name == "model_conds":
            values[name] = {key: type(cond)(cond.concat([e[key] for e in each[1:]])) for key, cond in first.items()}
        elif torch.is_tensor(first):
            values[name] = torch.cat(each)
        elif any(value != first for value in each):
            raise ValueError(f"The clips' conditionings differ in '{name}', so they cannot be one batch.")
        else:
            values[name] = first
    return [[torch.cat([part[0][0] for part in parts]), values]]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_rows(bench: Bench, rows: Sequence[Row], work: scores.Work, limits: dict[str, dict[int, int]]) -> dict:
    """{row name: the measures of its clips}, from `work` where it has them; all rows of a batch behind each other.

    limits  for rows of fewer clips, how many by the number of subjects
    """
    wanted = {
        row.name: [
            clip for clip in bench.clips if clip.index < limits.get(row.name, {}).get(clip.count, clip.index + 1)
        ]
        for row in rows
    }
    total = sum(map(len, wanted.values()))
    done = sum(work.find(row, clip) is not None for row in rows for clip in wanted[row.name])
    started, before = time.time(), done
    for batch in bench.batches(bench.clips):
        shots: dict = {}
        for row in rows:
            clips = [clip for clip in batch if clip in wanted[row.name] and work.find(row, clip) is None]
            if not clips:
                continue
            first = time.process_time()
            videos = bench.make(row, clips, shots)
            sampling = (time.process_time() - first) / len(clips)
            for clip, frames in zip(clips, videos, strict=True):
                first = time.process_time()
                measures = bench.measure(clip, frames)
                measures |= {"sampling_seconds": sampling, "scoring_seconds": time.process_time() - first}
                work.keep_strip(row.name, clip, frames)
                work.add(row, clip, measures)
            done += len(clips)
            wall = (time.time() - started) / (done - before)
            print(f"{done} of {total} clips, {row.name}, {wall:.1f} s a clip", file=sys.stderr, flush=True)
    return {row.name: [work.find(row, clip) for clip in wanted[row.name]] for row in rows}


def check_rows(rows: Sequence[Row]) -> None:
    """ValueError unless all rows that were trained were trained alike; only `none` may be untrained."""
    trained = {row.name: (row.facts.get("steps", 0), row.facts.get("data", "")) for row in rows if row.name in ROWS}
    if not trained.get("none", (1,))[0]:
        del trained["none"]
    if len(set(trained.values())) > 1:
        said = "; ".join(f"{name}: {steps} steps on {data or 'nothing'}" for name, (steps, data) in trained.items())
        raise ValueError(f"Rows are compared after the same training only ({said}). Train those that differ again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="an eighth of the clips")
    parser.add_argument("--rows", type=Path, default=ROWS_FOLDER, help="folder of their files (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, TRUTH, *CONTROLS], help="these rows instead of all")
    parser.add_argument("--clips", nargs="+", metavar="SUBJECTS:CLIPS", help="default: 2:32 3:64 4:32")
    parser.add_argument("--work", type=Path, help="folder for what is done, and sheets (default: FILE's name, -work)")
    arguments = parser.parse_args()
    counts = dict(map(int, each.split(":")) for each in arguments.clips) if arguments.clips else CLIPS
    share = 8 if arguments.quick else 1
    counts = {count: max(1, total // share) for count, total in counts.items()}
    controls = {count: max(1, total // CONTROL_SHARE) for count, total in counts.items()}
    work = scores.Work(arguments.work or arguments.json.with_name(f"{arguments.json.stem}-work"))
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        from comfy.utils import set_progress_bar_enabled

        set_progress_bar_enabled(False)
        with torch.inference_mode():
            bench = Bench(counts)
            rows = [bench.row_of(name, arguments.rows) for name in arguments.only or [*ROWS, TRUTH, *CONTROLS]]
            check_rows(rows)
            measured = run_rows(bench, rows, work, dict.fromkeys(CONTROLS, controls))
    result = scores.result_of({row.name: row.facts for row in rows}, measured)
    result |= {"steps": bench.steps, "cfg_text": nano.CFG_TEXT, "cfg_images": nano.CFG_IMAGES, "gallery": GALLERY}
    work.draw_sheet([row.name for row in rows], bench.clips)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
