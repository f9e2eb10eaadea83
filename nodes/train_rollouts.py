"""A LoRA trained inside of ComfyUI on what the model made itself."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter import drawing
from ..idcrafter.rollouts import provenance
from ..idcrafter.training.checkpointing import DEPTHS
from ..idcrafter.training.rl_settings import METHODS, OLD, Settings
from ..model_loaders import files
from .shown import show
from .train_adapter import LORAS, WORK, check_name, free_name
from .types import CastType, FaceAnalyzerType, RolloutsType

log = logging.getLogger(__name__)
_DEFAULTS = Settings()
_OWN = -1.0


class TrainFromRollouts(io.ComfyNode):
    """MODEL + rollouts -> a LoRA that makes more of what was rewarded."""

    @classmethod
    @override
    def define_schema(cls):
        def own(name: str, largest: float, tooltip: str):
            return io.Float.Input(
                name,
                default=_OWN,
                min=_OWN,
                max=largest,
                step=1e-5,
                round=1e-7,
                optional=True,
                advanced=True,
                tooltip=f"{tooltip} -1 = what the method's authors use.",
            )

        def noise(name: str, default: float, tooltip: str):
            return io.Float.Input(
                name,
                default=default,
                min=0.0,
                max=1.0,
                step=0.05,
                round=0.001,
                optional=True,
                advanced=True,
                tooltip=tooltip,
            )

        return io.Schema(
            node_id="IDCrafterTrainFromRollouts",
            display_name="Train from Rollouts (IDCrafter)",
            category="IDCrafter/train",
            is_output_node=True,
            is_experimental=True,
            description="Trains a LoRA on rollouts: the model makes more of what was rewarded and less of what was not."
            " Needs no clips, no captions and no new sampling. Can be stopped and goes on where it was; 'python -m "
            "idcrafter train-rollouts' does the same outside of graphs, also on several GPUs.",
            search_aliases=["idcrafter", "reinforcement learning", "lora", "grpo", "diffusionnft", "dpo", "rlhf"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Exactly the MODEL that made the takes, with the same LoRAs and adapters; another one is "
                    "refused.",
                ),
                RolloutsType.Input(
                    "rollouts",
                    tooltip="From Load Rollouts. Each group brings the conditioning that it was sampled with.",
                ),
                io.String.Input(
                    "name",
                    default="my_lora",
                    tooltip=f"Of the file in output/{LORAS} and of the training's folder in output/{WORK}, by which it "
                    "is found again to go on.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=_DEFAULTS.method,
                    tooltip="nft (DiffusionNFT), crd, dpo and rwr, which changes least, take any "
                    "rollouts. The grpo family and identity_grpo need takes of SDE Sampler with record on, and twice "
                    "the time for guided models. ipro makes new takes of the same casts and prompts, and needs vae, "
                    "faces and much memory.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=1,
                    max=1_000_000,
                    tooltip="Updates. Too many wear the model down to what the reward sees: watch the monitor.",
                ),
                io.Int.Input(
                    "rank", default=32, min=1, max=512, tooltip="Of the LoRA. Its file and memory grow with it."
                ),
                io.String.Input(
                    "rewards",
                    default="",
                    tooltip="Empty: the reward that the takes were collected with. Else stored ones as NAME=WEIGHT, "
                    "with commas between, as similarity_min=1, motion=0.2. NAME=WEIGHT@LOW-HIGH counts only at these "
                    "shares of noise: faces are made at low ones, 0-0.6.",
                ),
                io.Int.Input(
                    "validate_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip=f"Steps after which videos of some groups are made into output/{WORK} and the monitor "
                    "looks at them; 0 for never. Needs the VAE.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed, rollouts and settings give the same LoRA on the same machine.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="On: go on where the training of this name stopped; other settings than then are refused. "
                    "Off: begin anew.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Of the model; decodes the videos of validate_every, and what ipro looks at.",
                ),
                FaceAnalyzerType.Input(
                    "monitor",
                    optional=True,
                    tooltip="A face analyzer that no reward has used. When it stops rising, the training ends, "
                    "and the weights that it liked best are kept.",
                ),
                CastType.Input(
                    "cast",
                    optional=True,
                    tooltip="The cast of the takes, for the monitor and ipro, where the rollouts were kept without "
                    "photos.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Only for rollouts that were kept as hashes: as in Sample Takes then. Another one is "
                    "refused.",
                ),
                io.Conditioning.Input("negative_text", optional=True, tooltip="As positive."),
                io.Conditioning.Input("negative_images", optional=True, tooltip="As positive."),
                own("rate", 1.0, "Learning rate. Halve it when the loss jumps."),
                own("beta", 10_000.0, "nft, crd: larger changes less. dpo: larger keeps nearer to the model. rwr: "
                    "larger prefers the best takes less."),
                own("kl", 100.0, "Weight of the distance from the MODEL without LoRA; larger changes less, 0 switches "
                    "it off and saves a pass."),
                io.Int.Input(
                    "groups",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="A step. More give steadier steps that take longer; 0 = 2, or 16 for identity_grpo.",
                ),
                io.Int.Input(
                    "takes",
                    default=_DEFAULTS.takes,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Of each group, at once in memory; at least 2 for crd and dpo.",
                ),
                noise("noise_low", 0.0, "Trains only where the share of noise is at least this; not the grpo family."),
                noise("noise_high", 1.0, "Trains only where the share of noise is at most this; not the grpo family."),
                io.Combo.Input(
                    "old",
                    options=list(OLD),
                    default=OLD[0],
                    optional=True,
                    advanced=True,
                    tooltip="What the LoRA is compared with: frozen, the model that made the takes; average, the "
                    "LoRA's own average so far, which goes further and wears the model down sooner.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[str(depth) for depth in DEPTHS],
                    default="2",
                    optional=True,
                    advanced=True,
                    tooltip="Memory against time: 0 keeps everything (most memory), 2 computes each block twice (a "
                    "third slower), 3 each part of a block. The result is the same.",
                ),
                io.Int.Input(
                    "shots",
                    default=4,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Videos each time, of so many groups. A monitor sees more in more of them.",
                ),
                io.Int.Input(
                    "patience",
                    default=3,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Looks of the monitor without a new best that end the training; 0 = it never ends early. "
                    "The best weights are the ones that are kept.",
                ),
                FaceAnalyzerType.Input(
                    "faces",
                    optional=True,
                    tooltip="For ipro: by which the takes' faces become more like the photos. Its recogniser must be "
                    "an ArcFace or CurricularFace.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For core's Load LoRA Model, at once."),
                io.String.Output(display_name="file", tooltip="Of the LoRA, as in LoRA loaders."),
                io.Image.Output(display_name="curve", tooltip="Loss and what the method watches, over the steps."),
                io.String.Output(display_name="summary", tooltip="How it went, in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls,
        model,
        rollouts,
        name,
        method=_DEFAULTS.method,
        steps=_DEFAULTS.steps,
        rank=32,
        rewards="",
        validate_every=0,
        seed=0,
        resume=True,
        vae=None,
        monitor=None,
        cast=None,
        positive=None,
        negative_text=None,
        negative_images=None,
        rate=_OWN,
        beta=_OWN,
        kl=_OWN,
        groups=0,
        takes=_DEFAULTS.takes,
        noise_low=0.0,
        noise_high=1.0,
        old=OLD[0],
        checkpoint="2",
        shots=4,
        patience=3,
        faces=None,
    ) -> io.NodeOutput:
        # Not needed to show the node.
        from ..idcrafter.training.curves import draw_curves
        from ..idcrafter.training.rl_run import Looks, train_lora

        check_name(name)
        settings = Settings.of(
            method,
            rewards,
            groups,
            steps=steps,
            takes=takes,
            rate=float(rate),
            beta=float(beta),
            kl=float(kl),
            low=noise_low,
            high=noise_high,
            old=old,
            seed=seed,
        )
        target, number = free_name(f"{LORAS}/{name}")
        bar = comfy.utils.ProgressBar(steps)

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update_absolute(done, total)
            comfy.model_management.throw_exception_if_processing_interrupted()

        trained = train_lora(
            model,
            provenance.patcher_hashes(model, files.sha256_of)["policy"],
            rollouts,
            Path(folder_paths.get_output_directory()) / WORK / target.name,
            settings,
            rank,
            checkpoint=int(checkpoint),
            looks=Looks(validate_every, shots, patience, vae, monitor, cast),
            faces=faces,
            given={"positive": positive, "negative_text": negative_text, "negative_images": negative_images},
            resume=resume,
            on_progress=on_progress,
        )
        path = trained.save(target.with_name(f"{target.name}_{number:05}_.safetensors"))
        summary = f"{trained.summary}\nSaved: {LORAS}/{path.name}."
        log.info(summary)
        curve = drawing.to_tensor(draw_curves(trained.result.curve, steps))
        return io.NodeOutput(trained.tensors, path.name, curve, summary, ui=show(cls, summary))


NODES = [TrainFromRollouts]
