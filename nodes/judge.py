"""The learned judge: a model that was trained on whose faces people find better kept."""

from comfy_api.latest import io
from typing_extensions import override

from ..model_loaders import judge as judges
from ..model_loaders import judge_files, pretrained
from .shown import show
from .types import JudgeType


class LoadJudge(io.ComfyNode):
    """The judge's folder and its base model's -> what says how well faces match their photos."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadJudge",
            display_name="Load Judge (IDCrafter)",
            category="IDCrafter/load",
            description="Loads Identity-GRPO's judge, a Qwen2.5-VL-3B that was trained on which of two videos people "
            "prefer for its likeness, for the reward term judge. Says under which licences. About 8 GB on the GPU.",
            search_aliases=["idcrafter", "identity-grpo", "reward model", "qwen vl", "human preference", "loader"],
            inputs=[
                io.Combo.Input(
                    "judge",
                    options=judge_files.judge_names(),
                    default=judge_files.JUDGE,
                    tooltip="A folder in models/idcrafter_rewards with model_config.json and checkpoint-<step>, as "
                    "released. A missing one's error has the command that downloads it; nothing is downloaded by "
                    "itself.",
                ),
                io.Combo.Input(
                    "base",
                    options=pretrained.names((judge_files.BASE,)),
                    default=judge_files.BASE,
                    tooltip="The folder of Qwen2.5-VL-3B-Instruct in models/idcrafter_rewards, from which the judge "
                    "was trained; its licence is for research only.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(judges.DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="'default' is bf16, as it was trained, or fp32 where the device does not compute in it. "
                    "fp32 needs twice the memory. Scores of the two differ a little: compare takes in one only.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(judges.DEVICES),
                    default="default",
                    advanced=True,
                    tooltip="'default' is where ComfyUI runs text encoders. 'cpu' leaves the GPU's memory to the video "
                    "model and takes a minute or more a take.",
                ),
            ],
            outputs=[
                JudgeType.Output(display_name="judge"),
                io.String.Output(display_name="summary", tooltip="What was loaded, where it runs, its licences."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, judge, base, dtype="default", device="default") -> io.NodeOutput:
        loaded = judges.load_judge(*judge_files.require(judge, base), dtype, device)
        return io.NodeOutput(loaded, loaded.summary, ui=show(cls, loaded.summary))


NODES = [LoadJudge]
