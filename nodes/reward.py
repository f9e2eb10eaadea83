"""What a good take is: terms of a reward, and the models that some of them need."""

import os

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter.rewards import copy_paste, id_crafter, motion, naturalness, subject_crops
from ..idcrafter.rewards.combine import COMBINATIONS
from ..idcrafter.rewards.terms import RewardSpec, RewardTerm, recommended_reward
from ..model_loaders import files, pretrained, vision, vlm, vlm_clip
from .types import AestheticPredictorType, ImageEncoderType, JudgeType, RewardType, VLMType

RECOMMENDED = "recommended"


def _term_options() -> list[io.DynamicCombo.Option]:
    """The recommended terms, or one option a kind of term with the inputs that it needs.

    Names are those of terms.KINDS and their options.
    """
    return [
        io.DynamicCombo.Option(RECOMMENDED, []),
        io.DynamicCombo.Option("identity", []),
        io.DynamicCombo.Option(
            "id_crafter_face",
            [
                io.Float.Input(
                    "worst_share",
                    default=id_crafter.GAMMA,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the worst subject counts against the average one. 0 lets a take trade one person "
                    "for another; 1 looks at the worst only. ID-Crafter uses 0.5.",
                )
            ],
        ),
        io.DynamicCombo.Option(
            "subject_crops",
            [
                ImageEncoderType.Input("image_encoder", tooltip="From Load Image Encoder (DINO)."),
                io.Float.Input(
                    "margin",
                    default=subject_crops.MARGIN,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="How far a crop reaches beyond the face, in sides of its box. More shows hair and clothes, "
                    "and more of the background.",
                ),
            ],
        ),
        io.DynamicCombo.Option("distinct_faces", []),
        io.DynamicCombo.Option("exact_count", []),
        io.DynamicCombo.Option(
            "copy_paste",
            [
                io.Combo.Input(
                    "single_photo",
                    options=list(copy_paste.SINGLE_PHOTO),
                    default=copy_paste.SINGLE_PHOTO[0],
                    tooltip="A subject with one usable photo, of whom a copy cannot be told from a good likeness. "
                    "error: stop. skip: look at the other subjects only.",
                )
            ],
        ),
        io.DynamicCombo.Option("motion", []),
        io.DynamicCombo.Option(
            "aesthetics",
            [AestheticPredictorType.Input("aesthetic_predictor", tooltip="From Load Aesthetic Predictor.")],
        ),
        io.DynamicCombo.Option(
            "naturalness",
            [
                VLMType.Input("vlm", tooltip="From Load VLM."),
                io.String.Input(
                    "question",
                    default=naturalness.QUESTION,
                    multiline=True,
                    tooltip="Asked about the frames; the value is the probability that the answer begins with Yes.",
                ),
                io.Int.Input(
                    "frames",
                    default=naturalness.FRAMES,
                    min=1,
                    max=64,
                    tooltip="At most this many of the scored frames are shown, evenly spread. More cost memory.",
                ),
            ],
        ),
        io.DynamicCombo.Option("judge", [JudgeType.Input("judge", tooltip="From Load Judge.")]),
        io.DynamicCombo.Option("opens2v_facesim", []),
        io.DynamicCombo.Option("ingredients_max", []),
    ]


_SOCKETS = {
    "subject_crops": "image_encoder",
    "aesthetics": "aesthetic_predictor",
    "naturalness": "vlm",
    "judge": "judge",
}


class Reward(io.ComfyNode):
    """One term, or the recommended ones, after those of the node before it."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterReward",
            display_name="Reward (IDCrafter)",
            category="IDCrafter/score",
            description="Says what a good take is. As it is, it rewards likeness that is not copied and moves; or one "
            "term a node, chained by the reward socket. A term counts by its weight, or is a gate: takes below its "
            "floor lose their reward in proportion.",
            search_aliases=[
                "idcrafter",
                "grpo",
                "metric",
                "score",
                "aesthetic",
                "weights",
                "gate",
                "id-crafter",
                "dino",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "term",
                    options=_term_options(),
                    tooltip="What is measured; see the help page for each. recommended: identity, less what is copied "
                    "from a photo, and only as far as something moves. opens2v_facesim and ingredients_max can be "
                    "gamed: give them weight 0, only read them.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much the term counts. Below 0 it counts against a take: use that for copy_paste. 0 "
                    "only measures it (and lets it be a gate).",
                ),
                io.Float.Input(
                    "floor",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Above 0 the term is also a gate: what speaks for a take is multiplied by value / floor "
                    f"where the value is below the floor. For motion, {motion.FLOOR} stops pictures that stand still. "
                    "For recommended it is a floor of identity; the one of motion is there already.",
                ),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINATIONS),
                    default="sum",
                    tooltip="How the terms become one number; the last node of a chain decides. sum: weighted values. "
                    "gdpo: each term is normalised over the takes first, so that its unit does not matter. "
                    "max_group_std: like it, for training; shots whose takes hardly differ count less.",
                ),
                RewardType.Input(
                    "reward", optional=True, tooltip="Another Reward; this node's term is added to its terms."
                ),
            ],
            outputs=[RewardType.Output(display_name="reward")],
        )

    @classmethod
    @override
    def execute(cls, term, weight, floor, combine, reward=None) -> io.NodeOutput:
        options = dict(term)
        kind = options.pop("term")
        if kind == RECOMMENDED:
            added = recommended_reward(weight, floor).terms
        else:
            model = options.pop(_SOCKETS[kind], None) if kind in _SOCKETS else None
            added = (RewardTerm(kind, weight, tuple(options.items()), model, floor),)
        terms = reward.terms if reward is not None else ()
        return io.NodeOutput(RewardSpec((*terms, *added), combine))


class LoadImageEncoder(io.ComfyNode):
    """A DINO folder -> what compares crops of subjects."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadImageEncoder",
            display_name="Load Image Encoder (IDCrafter)",
            category="IDCrafter/load",
            description="Loads DINO or DINOv2 from a local folder of transformers, for the reward term subject_crops.",
            search_aliases=["idcrafter", "dino", "dinov2", "vit", "psr", "subject consistency", "loader"],
            inputs=[_folder_input("model", vision.DINO[0])],
            outputs=[ImageEncoderType.Output(display_name="image_encoder")],
        )

    @classmethod
    @override
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(vision.load_image_encoder(pretrained.require(model, vision.DINO[1])))


class LoadAestheticPredictor(io.ComfyNode):
    """A CLIP folder and LAION's file -> what rates how good frames look."""

    @classmethod
    @override
    def define_schema(cls):
        heads = {
            name for name in folder_paths.get_filename_list(pretrained.FOLDER) if "/" not in name.replace("\\", "/")
        }
        return io.Schema(
            node_id="IDCrafterLoadAestheticPredictor",
            display_name="Load Aesthetic Predictor (IDCrafter)",
            category="IDCrafter/load",
            description="Loads LAION's aesthetic predictor on top of CLIP-L/14, for the reward term aesthetics.",
            search_aliases=["idcrafter", "laion", "aesthetics", "clip", "improved aesthetic predictor", "loader"],
            inputs=[
                _folder_input("clip", vision.CLIP[0]),
                io.Combo.Input(
                    "head",
                    options=sorted(heads | {vision.AESTHETIC_FILE}),
                    default=vision.AESTHETIC_FILE,
                    tooltip="The predictor's file in models/idcrafter_rewards; it rates CLIP-L/14 embeddings only.",
                ),
            ],
            outputs=[AestheticPredictorType.Output(display_name="aesthetic_predictor")],
        )

    @classmethod
    @override
    def execute(cls, clip, head) -> io.NodeOutput:
        target = os.path.join(folder_paths.get_folder_paths(pretrained.FOLDER)[0], head)
        file = files.require(pretrained.FOLDER, head, f'curl -L --create-dirs -o "{target}" {vision.AESTHETIC_URL}')
        return io.NodeOutput(vision.load_aesthetic_predictor(pretrained.require(clip, vision.CLIP[1]), file))


class LoadVLM(io.ComfyNode):
    """A folder of a vision-language model, or a CLIP -> what answers about pictures."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadVLM",
            display_name="Load VLM (IDCrafter)",
            category="IDCrafter/load",
            description="Loads a vision-language model from a local folder of transformers, or takes a CLIP that "
            "writes, for Relate and the reward term naturalness.",
            search_aliases=["idcrafter", "qwen vl", "vqa", "naturalness", "vision language model", "loader"],
            inputs=[
                _folder_input("model", *vlm.KNOWN),
                io.Combo.Input(
                    "precision",
                    options=list(vlm.PRECISIONS),
                    default="default",
                    optional=True,
                    tooltip="'default' is bf16, or fp32 where the device does not compute in it. '4-bit' (nf4) needs a "
                    "quarter of bf16's memory, a GPU, and the packages bitsandbytes and accelerate. Answers differ "
                    "between precisions.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="A CLIP that writes and sees pictures (Qwen3-VL, Qwen3.5, Gemma 3 or 4 from Load CLIP) "
                    "takes the place of the folder; then model and precision do nothing. It serves Relate, "
                    "not naturalness.",
                ),
            ],
            outputs=[VLMType.Output(display_name="vlm")],
        )

    @classmethod
    @override
    def execute(cls, model, precision="default", clip=None) -> io.NodeOutput:
        if clip is not None:
            return io.NodeOutput(vlm_clip.vlm_of_clip(clip))
        repository = vlm.KNOWN.get(model, vlm.QWEN[1])
        return io.NodeOutput(vlm.load_vlm(pretrained.require(model, repository), precision))


def _folder_input(name: str, *known: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=pretrained.names(known),
        default=known[0],
        tooltip="A folder in models/idcrafter_rewards with config.json, weights and processor files. A missing one's "
        "error has the command that downloads it; nothing is downloaded by itself.",
    )


NODES = [LoadImageEncoder, LoadAestheticPredictor, LoadVLM, Reward]
