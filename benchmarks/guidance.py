"""Whether a VLM's hidden states tell the nano video model who is meant, where its text encoder cannot.

Clips of two to four sealed identities in the world of crowds; what happens is told in forms that no training has seen,
and people are called by their looks alone ("the one with the yellow cap hides behind the one with glasses"). Nobody is
tagged: which reference is whom has to be found out from the photos. Rows, each with the same clips, references and
noise:

    text           the sentence through the text encoder, the model as it is
    text_tuned     the same, the model tuned on such sentences by a LoRA
    vlm            the aligner's tokens in the place of the text's, the model as it is
    vlm_tuned      the same, aligner and LoRA tuned together, for the same steps on the same clips as text_tuned
    random         an aligner of the same layout that was never trained
    no_references  vlm_tuned without references
    counted        the text encoder, of a caption that counts people: the tags that guidance does without
    truth          the rendered clips once through the VAE, which nothing can exceed

The last four have a quarter of the clips. Keys: `rows`, each with `relations` (the share of a clip's true relations
that its video shows, see `_relation_scores.py`), `places`, `moves`, `clips_right`, and the measures of identity of
`_crowd_scores.py`; then, with 95 % bootstrap intervals over clips,

    guidance_points          percentage points of `relations`, vlm_tuned over text_tuned
    guidance_points_untuned  the same, vlm over text
    identity_points          percentage points of `similarity`, vlm_tuned over text_tuned
    identity_points_untuned  the same, vlm over text

and `required` and `met`. A run that was broken off goes on where it was, with the same --work folder; that also gets
contact sheets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import nano
from nano import inprocess

inprocess.prepare_path()

import _crowd_scores as scores  # noqa: E402 - they import idcrafter
import _relation_scores as relation_scores  # noqa: E402
import ablation  # noqa: E402

# Row -> the file of its aligner, and of its LoRA.
ROWS = {
    "text": (None, None),
    "text_tuned": (None, "text_tuned.lora.safetensors"),
    "vlm": ("aligner_pretrained.safetensors", None),
    "vlm_tuned": ("idcrafter_nano_aligner.safetensors", "idcrafter_nano_guidance.safetensors"),
    "random": ("random", None),
    "no_references": ("idcrafter_nano_aligner.safetensors", "idcrafter_nano_guidance.safetensors"),
    "counted": (None, None),
}
TRUTH = ablation.TRUTH
# These get a part of the clips.
CONTROLS = ("random", "no_references", "counted", TRUTH)
BUNDLE = "nano.json"
CLIPS = {2: 24, 3: 24, 4: 16}
REQUIRED = {"guidance_points": 15.0, "identity_points": -2.0}
# Where files that the pack does not ship as models lie.
ROWS_FOLDER = ablation.ROWS_FOLDER.with_name("guidance")
SCENES, RANDOM = 310_000, 7


@dataclass(frozen=True, eq=False)
class Told(ablation.Clip):
    """A clip whose prompt is a story; `counted` is a caption that counts the people."""

    counted: str


class Bench(ablation.Bench):
    """The stack with references, its gallery, and clips that are told by looks. `vlm` is what reads them."""

    def __init__(self, clips: dict[int, int], vlm_folder: Path | None = None, steps: int = ablation.STEPS):
        super().__init__(clips, steps, BUNDLE)
        module = self.stack.pack.submodule
        self.states = module("model_loaders.vlm_states")
        self.aligners, self.nets = module("model_loaders.aligner"), module("idcrafter.modules.aligner")
        self.combine = module("idcrafter.backbones.relations").combine
        self._vlm_folder, self._read = vlm_folder, {}

    @cached_property
    def vlm(self):
        module = self.stack.pack.submodule
        kind, name = module("model_loaders.pretrained").FOLDER, module("idcrafter.nano.recipes.vlm_net").NAME
        return module("model_loaders.vlm").load_vlm(self._vlm_folder or self.files.require(kind, name))

    def _draw(self, count: int) -> Iterator[Told]:
        """Endless clips of `count` people whom words tell apart, in which something moves."""
        module = self.stack.pack.submodule
        stories, words = module("idcrafter.nano.world.stories"), module("idcrafter.nano.recipes.guidance_data")
        seed, index = SCENES + 1000 * count, 0
        while True:
            seed += 1
            people = tuple(int(i) for i in np.random.default_rng(seed).permutation(ablation.GALLERY)[:count])
            spec = self.crowd.sample_crowd_spec(tuple(self.people[who] for who in people), seed)
            try:
                story = stories.tell(spec, 0, unseen=True)
            except ValueError:
                continue
            truth = self.crowd.render_crowd(spec)
            if not scores.is_still(truth.frames / np.float32(255)):
                yield Told(index, truth, people, story.text, words.caption(spec))
                index += 1

    def row_of(self, name: str, folder: Path) -> ablation.Row:
        """A row, or the truth; FileNotFoundError for a file that is missing."""
        if name == TRUTH:
            return ablation.Row(name, None, None, {}, self._key(name, {}))
        aligner_name, lora_name = ROWS[name]
        facts: dict = {"files": {}}
        model, aligner = self.stack.model, None
        if lora_name is not None:
            path = self._find("loras", lora_name, folder)
            model = self.lora.apply_lora(model, self.lora.load_lora(path, model).weights, 1.0)
            facts |= self._said(path)
            facts["files"][lora_name] = ablation._sha256(path)
        if aligner_name is not None:
            known = ROWS["vlm_tuned"][0] if aligner_name == "random" else aligner_name
            path = self._find(self.aligners.FOLDER, known, folder)
            aligner = self.aligners.load_aligner(path)
            if aligner_name == "random":
                self.nets.initialise(aligner.patcher.model, RANDOM)
            else:
                facts |= {"aligner_steps": self._said(path)["steps"]}
            facts["files"][aligner_name] = ablation._sha256(path)
        read = {} if aligner is None else {"vlm": self.vlm.digest}
        return ablation.Row(name, model, aligner, facts, self._key(name, facts["files"] | read))

    def _find(self, kind: str, name: str, folder: Path) -> Path:
        return folder / name if (folder / name).is_file() else self.files.require(kind, name)

    def _said(self, path: Path) -> dict:
        metadata = self.files.read_header(path).metadata
        return {key: int(metadata[key]) for key in ("steps", "seed") if key in metadata}

    def _shot(self, clip: Told, whose: Sequence[int]) -> tuple:
        cast, shot = super()._shot(clip, whose)
        return cast, {**shot, "clip": clip}

    def conditionings(self, row: ablation.Row, cast, shot: dict) -> tuple:
        names = ("positive", "negative_text", "negative_images")
        given = {name: shot[name] for name in names}
        clip = shot["clip"]
        (embedding, values), *_ = given["positive"]
        if row.name == "counted":
            embedding = self.stack.text(clip.counted)[0][0]
        given["positive"] = [[embedding, values]]
        if row.adapter is not None:
            found = self.read(row.adapter, clip, cast)
            tokens, keys = row.adapter.tokens(found.states, found.keys)
            given["positive"] = self.combine(given["positive"], tokens, keys, row.adapter.reading.use)
        if row.name != "no_references":
            return row.model, given
        # References of zeros are what the model knows as none; then guidance by images has nothing to do.
        (embedding, values), nobody = given["positive"][0], given["negative_images"][0][1]
        without = [[embedding, {**values, "time_dim_concat": nobody["time_dim_concat"]}]]
        return row.model, {"positive": without, "negative_text": given["negative_images"]}

    def read(self, aligner, clip: Told, cast):
        """The VLM's states as Encode Relations gets them; the same for all aligners that read alike."""
        key = f"{clip.name} {aligner.reading}"
        if key not in self._read:
            self._read[key] = self.states.states_of_vlm(self.vlm, cast, clip.prompt, aligner.reading)
        return self._read[key]

    def measure(self, clip: Told, frames: torch.Tensor) -> dict:
        found = self.stack.analyzer.analyze_frames(frames)
        people = list(clip.people)
        measured = scores.measure_clip(clip.ends, frames.numpy(), found, people, self.gallery, self.fps)
        return measured | relation_scores.relations(clip.truth, clip.ends, found, self.gallery[people])


def check_rows(rows: Sequence[ablation.Row]) -> None:
    """ValueError unless the two tuned rows were tuned for the same steps."""
    steps = {row.name: row.facts["steps"] for row in rows if row.name in ("text_tuned", "vlm_tuned")}
    if len(set(steps.values())) > 1:
        raise ValueError(f"Rows are compared after the same tuning only ({steps}). Tune them again.")


def result_of(facts: dict[str, dict], measured: dict[str, list[dict]]) -> dict:
    """The result from the measures of each row's clips; None for what needs a row that is not there."""
    result: dict = {}
    similarity = lambda clip: clip["similarity"]  # noqa: E731
    for name, mine, base, measure in (
        ("guidance_points", "vlm_tuned", "text_tuned", relation_scores.right),
        ("guidance_points_untuned", "vlm", "text", relation_scores.right),
        ("identity_points", "vlm_tuned", "text_tuned", similarity),
        ("identity_points_untuned", "vlm", "text", similarity),
    ):
        both = measured.get(mine), measured.get(base)
        value = relation_scores.points(*both, measure) if all(both) else (None, None)
        result[name], result[f"{name}_ci95"] = value
    result["required"] = REQUIRED
    result["met"] = {k: None if result[k] is None else result[k] >= least for k, least in REQUIRED.items()}
    result["rows"] = {}
    for name, clips in measured.items():
        counts = sorted({clip["subjects"] for clip in clips})
        apart = {str(n): relation_scores.summarise([c for c in clips if c["subjects"] == n]) for n in counts}
        result["rows"][name] = {
            **facts[name], **relation_scores.summarise(clips), "identity": scores.summarise(clips), "subjects": apart,
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="an eighth of the clips")
    parser.add_argument("--rows", type=Path, default=ROWS_FOLDER, help="folder of their files (default: %(default)s)")
    parser.add_argument("--vlm", type=Path, help="folder of the VLM; the nano VLM when left out")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, TRUTH], help="these rows instead of all")
    parser.add_argument("--clips", nargs="+", metavar="SUBJECTS:CLIPS", help="default: 2:24 3:24 4:16")
    parser.add_argument("--work", type=Path, help="folder for what is done, and sheets (default: FILE's name, -work)")
    arguments = parser.parse_args()
    counts = dict(map(int, each.split(":")) for each in arguments.clips) if arguments.clips else CLIPS
    counts = {count: max(1, total // (8 if arguments.quick else 1)) for count, total in counts.items()}
    fewer = {count: max(1, total // ablation.CONTROL_SHARE) for count, total in counts.items()}
    work = scores.Work(arguments.work or arguments.json.with_name(f"{arguments.json.stem}-work"))
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        from comfy.utils import set_progress_bar_enabled

        set_progress_bar_enabled(False)
        with torch.inference_mode():
            bench = Bench(counts, arguments.vlm)
            rows = [bench.row_of(name, arguments.rows) for name in arguments.only or [*ROWS, TRUTH]]
            check_rows(rows)
            measured = ablation.run_rows(bench, rows, work, dict.fromkeys(CONTROLS, fewer))
    result = result_of({row.name: row.facts for row in rows}, measured)
    result |= {"clips": {str(n): total for n, total in counts.items()}, "steps": bench.steps}
    result |= {"cfg_text": nano.CFG_TEXT, "cfg_images": nano.CFG_IMAGES}
    work.draw_sheet([row.name for row in rows], bench.clips)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
