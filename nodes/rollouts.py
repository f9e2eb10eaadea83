"""Collect what a model made, with its rewards, and look at what was collected."""

import io as bytes_io
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from typing_extensions import override

from ..idcrafter.rewards.scorecard import validate_report
from ..idcrafter.rollouts import conditioning, dataset, export, page, provenance, record
from ..idcrafter.rollouts.digests import digest
from ..idcrafter.rollouts.store import RolloutStore
from ..idcrafter.subjects.faces import to_uint8
from ..model_loaders import files
from . import collected, shown
from .score import software
from .types import CastType, RolloutsType, ScorecardType, TakesType

FOLDER = "idcrafter/rollouts"
KEEP = ("conditioning", "conditioning and photos", "hashes")
EXPORTS = ("none", "preference pairs", "flow-factory preference", "flow-factory demonstration", "fastvideo")
_GIB = 2**30


class SaveRollouts(io.ComfyNode):
    """Takes + scorecard -> one group of rollouts on disk."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterSaveRollouts",
            display_name="Save Rollouts (IDCrafter)",
            category="IDCrafter/train",
            description="Stores all takes of a shot with every reward, their seeds and hashes of all that made them: "
            "one group to train on. Any number of graphs and machines may write into the same folder. Only latents are "
            "stored, 4 MiB for a take of 832x480, 81 frames.",
            search_aliases=["idcrafter", "grpo", "rlhf", "collect", "dataset", "reinforcement learning", "dpo"],
            inputs=[
                TakesType.Input("takes", tooltip="From Sample Takes, with budget 0: a search drops takes by preview."),
                ScorecardType.Input("scorecard", tooltip="From Score Takes, of the same takes."),
                CastType.Input("cast", tooltip="The cast of the shot; the hashes of its photos are stored."),
                io.MultiType.Input(
                    "model",
                    types=[io.Model, io.Guider],
                    tooltip="The MODEL or GUIDER that sampled the takes. Its weights are hashed, which reads the file "
                    "once a session, so that only takes of the same weights are ever compared.",
                ),
                io.String.Input(
                    "folder",
                    default=FOLDER,
                    tooltip="Inside ComfyUI's output folder; groups are added to what is there.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The text that was encoded, as from Relate. Exports and Identity-GRPO's rule need it.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="As in Sample Takes; not with a GUIDER."),
                io.Conditioning.Input("negative_text", optional=True, tooltip="As in Sample Takes."),
                io.Conditioning.Input("negative_images", optional=True, tooltip="As in Sample Takes."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder. With its hash, training with another one is noticed and refused.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default=KEEP[0],
                    optional=True,
                    tooltip="Beside the takes: the conditioning (about 1 MiB a shot, each tensor stored once), so that "
                    "training needs neither text encoder nor photos; also the photos, for exports (personal data!); or "
                    "hashes only.",
                ),
                io.Float.Input(
                    "min_spread",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=0.0001,
                    optional=True,
                    tooltip="Groups whose rewards have a smaller standard deviation are not stored. At 0 only those of "
                    "equal rewards are left out: nothing can be learnt from them.",
                ),
                io.Float.Input(
                    "disk_budget",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="GiB. When the folder is larger, groups are DELETED, those whose takes differ least first, "
                    "never the new one. 0 = nothing is ever deleted.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Stored with the group, to choose by later: a campaign, a row of a table.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="folder", tooltip="For Load Rollouts; it waits for this node."),
                io.String.Output(display_name="report", tooltip="What was stored, or why it was not."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(
        cls,
        takes,
        scorecard,
        cast,
        model,
        folder=FOLDER,
        prompt="",
        positive=None,
        negative_text=None,
        negative_images=None,
        clip=None,
        keep=KEEP[0],
        min_spread=0.0,
        disk_budget=0.0,
        label="",
    ) -> io.NodeOutput:
        store = RolloutStore(_inside_output(folder))
        report = scorecard.report
        validate_report(report)
        given = {"positive": positive, "negative_text": negative_text, "negative_images": negative_images}
        patcher, conds = collected.patcher_and_conditioning(model, given)
        collected.check_same_model(takes, patcher)
        hashes = provenance.patcher_hashes(patcher, files.sha256_of)
        samples, left_out = collected.samples(takes, report, hashes["policy"])
        plan, objects = conditioning.pack(conds)
        shot, photos = collected.shot(takes, cast, prompt, collected.guidance(model, cls.hidden))
        if keep != "hashes":
            shot["conditioning"] = plan
        try:
            part = record.build_part(
                samples,
                hashes={
                    **hashes,
                    "graph": collected.graph_hash(cls.hidden),
                    "references": digest(photos),
                    "text": digest(prompt),
                    "conditioning": digest(plan),
                    "text_encoder": clip and provenance.patcher_hashes(clip.patcher, files.sha256_of)["policy"],
                },
                shot=shot,
                sigmas=takes.sigmas,
                reward=report.get("reward"),
                licences=collected.licences(takes, report),
                software=software(),
                left_out=left_out,
                label=label,
            )
        except ValueError as error:
            raise ValueError(f"This group cannot be stored. {error}") from error
        text = _store(store, part, objects if keep != "hashes" else {}, min_spread)
        if keep == KEEP[1]:
            _save_photos(store, cast, photos)
        if disk_budget > 0 and (gone := store.prune(int(disk_budget * _GIB), keep=[part.name])):
            text += f"\nDeleted for room: {len(gone)} groups of {sum(entry.bytes for entry in gone) / _GIB:.2f} GiB."
        text += "".join(f"\nLeft out: seed {each['seed']}, {each['why']}." for each in left_out)
        return io.NodeOutput(folder, text, ui=shown.show(cls, text))


class LoadRollouts(io.ComfyNode):
    """A folder of rollouts -> what a trainer may use of it, and a page to look at."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadRollouts",
            display_name="Load Rollouts (IDCrafter)",
            category="IDCrafter/train",
            description="Opens a folder of rollouts, leaves out what must not or shall not be trained on and says why, "
            "shows its groups with the best and the worst take side by side, and writes it in the formats of other "
            "trainers.",
            search_aliases=["idcrafter", "grpo", "dataset", "flow-factory", "fastvideo", "dpo pairs", "export"],
            inputs=[
                io.String.Input("folder", default=FOLDER, tooltip="Inside ComfyUI's output folder."),
                io.Float.Input(
                    "min_spread",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="Groups whose rewards have a smaller standard deviation are left out.",
                ),
                io.String.Input(
                    "policy", default="", tooltip="The beginning of a policy's hash: only its takes. Empty = all."
                ),
                io.String.Input(
                    "licence",
                    default="",
                    tooltip="Only takes of models whose licence has this in its name, as Apache. Empty = all but those "
                    "whose licence forbids training on outputs; they are left out in any case.",
                ),
                io.String.Input("since", default="", tooltip="First day, as 2026-11-21, in UTC. Empty = no limit."),
                io.String.Input("until", default="", tooltip="Last day, as 2026-11-21, in UTC. Empty = no limit."),
                io.Int.Input(
                    "show",
                    default=-1,
                    min=-1,
                    max=1_000_000,
                    tooltip="Number of the group whose best and worst take are shown; -1 = where they differ most.",
                ),
                io.Model.Input("model", optional=True, tooltip="Only takes that exactly this MODEL would have made."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the training: takes that were collected with another are left out.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the two takes, and the videos of an export."),
                io.Combo.Input(
                    "export_as",
                    options=list(EXPORTS),
                    default=EXPORTS[0],
                    optional=True,
                    tooltip="Writes the groups into exports/ inside the folder. flow-factory decodes videos and needs "
                    "the VAE; fastvideo needs pyarrow and groups that were kept with their conditioning.",
                ),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    round=0.001,
                    optional=True,
                    tooltip="Frames a second of exported videos: 16 for Wan 2.1, 8 for nano.",
                ),
                io.String.Input(
                    "label", default="", optional=True, tooltip="Only groups with this label. Empty = all."
                ),
            ],
            outputs=[
                RolloutsType.Output(display_name="rollouts"),
                io.Image.Output(display_name="page", tooltip="Groups, rewards and their spread, best and worst take."),
                io.Image.Output(
                    display_name="best_and_worst", tooltip="Frames: the best take on the left, the worst on the right."
                ),
                io.String.Output(
                    display_name="report", tooltip="The page in words, with all that was left out, and why."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder=FOLDER, **_):
        # Other graphs and machines may have added groups.
        if not isinstance(folder, str):  # linked: what it comes from tells about changes
            return ""
        groups = RolloutStore(_inside_output(folder)).groups
        return sorted((path.name, path.stat().st_size) for path in groups.glob("*.safetensors"))

    @classmethod
    @override
    def execute(
        cls,
        folder=FOLDER,
        min_spread=0.0,
        policy="",
        licence="",
        since="",
        until="",
        show=-1,
        model=None,
        clip=None,
        vae=None,
        export_as=EXPORTS[0],
        fps=16.0,
        label="",
    ) -> io.NodeOutput:
        if model is not None:
            made = provenance.patcher_hashes(model, files.sha256_of)["policy"]
            if not made.startswith(policy.strip()):
                raise ValueError(f"policy is '{policy}', but the connected MODEL is {made}; leave one of the two out.")
            policy = made
        encoder = clip and provenance.patcher_hashes(clip.patcher, files.sha256_of)["policy"]
        filters = dataset.Filters(
            policy.strip(), encoder or "", licence.strip(), since.strip(), until.strip(), min_spread, label
        )
        check = comfy.model_management.throw_exception_if_processing_interrupted
        rollouts = dataset.load(_inside_output(folder), filters, check)
        if show >= len(rollouts.groups) > 0:
            raise ValueError(f"Group {show} does not exist; choose 0 to {len(rollouts.groups) - 1}, or -1.")
        if show < 0 and rollouts.groups:
            show = max(range(len(rollouts.groups)), key=lambda i: rollouts.groups[i].spread)
        frames = _best_and_worst(rollouts.groups[show], vae) if vae is not None and rollouts.groups else None
        text = page.report(rollouts) + _export(rollouts, export_as, vae, fps)
        if frames is None:
            why = "there is no group" if vae is not None else "connect a VAE to Load Rollouts"
            side_by_side = ExecutionBlocker(f"No takes to show: {why}.")
        else:
            side_by_side = frames
        picture = page.draw(rollouts, show if frames is not None else None, frames)
        return io.NodeOutput(rollouts, picture, side_by_side, text, ui=shown.show(cls, text))


def _inside_output(folder: str) -> Path:
    """A folder inside ComfyUI's output folder; ValueError for any other."""
    output = Path(folder_paths.get_output_directory())
    name = folder.strip()
    try:
        path = output / files.check_name(name)
    except ValueError:
        path = None
    if path is None or output.resolve() not in path.resolve().parents:
        raise ValueError(f"The folder '{name}' is not inside ComfyUI's output folder; use a name like {FOLDER}.")
    return path


def _store(store: RolloutStore, part: record.Part, objects: dict, min_spread: float) -> str:
    facts, spread = part.facts, record.spread(part.facts)
    what = f"group {facts['group'][:12]}, {len(facts['takes'])} takes, rewards differ by {spread:.4f}"
    if record.is_flat(part.facts["takes"]) or spread < min_spread:
        return f"Not stored: {what}; there is nothing, or too little, to learn from it."
    try:
        written = store.save(part, objects)
    except OSError as error:
        raise RuntimeError(
            f"The group could not be written to {store.folder} ({error}). Nothing that was there before is lost; make "
            "room, then run the graph again: Sample Takes has kept the takes."
        ) from error
    if not written:
        return f"Already there: {what}."
    size = store.path(part.name).stat().st_size / 2**20
    return f"Stored: {what}, {size:.2f} MiB, policy {facts['hashes']['policy'][:12]}, in {store.folder}."


def _save_photos(store: RolloutStore, cast, names: list[list[str]]) -> None:
    for subject, own in zip(cast.subjects, names, strict=True):
        for photo, name in zip(subject.photos, own, strict=True):
            data = bytes_io.BytesIO()
            Image.fromarray(to_uint8(photo)).save(data, "PNG")
            store.save_photo(name, data.getvalue())


def _best_and_worst(group: dataset.Group, vae) -> torch.Tensor:
    leading = group.facts["shot"].get("leading", 0)
    clips = [_decode(vae, group.load(k)["x0"][None, :, leading:].float()) for k in (group.best, group.worst)]
    return page.side_by_side(*clips)


def _export(rollouts: dataset.Rollouts, kind: str, vae, fps: float) -> str:
    if kind == EXPORTS[0]:
        return ""
    target = rollouts.folder / "exports" / kind.replace(" ", "_")
    if kind == "preference pairs":
        count = export.export_preference_pairs(rollouts, target / "pairs.jsonl")
    elif kind == "fastvideo":
        count = export.export_fastvideo(rollouts, target, fps)
    elif vae is None:
        raise ValueError("Flow-Factory trains on videos; connect the VAE of the model that made the takes.")
    else:
        progress = comfy.utils.ProgressBar(len(rollouts.groups) * 2)

        def decode(samples: torch.Tensor) -> torch.Tensor:
            progress.update(1)  # also where an interrupt takes effect
            return _decode(vae, samples)

        count = export.export_flow_factory(rollouts, target, decode, fps, kind.split()[1])
    return f"\n\nExported: {count} records to {target}."


def _decode(vae, samples: torch.Tensor) -> torch.Tensor:
    images = vae.decode(samples)
    return images.reshape(-1, *images.shape[-3:])[..., :3]


NODES = [SaveRollouts, LoadRollouts]
