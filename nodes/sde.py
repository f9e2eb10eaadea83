"""Random steps while sampling: what reinforcement learning needs to compare takes."""

from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter.sampling.sde.sampler import NO_END, sde_sampler
from ..idcrafter.sampling.sde.steps import KINDS


def _kind_options() -> list[io.DynamicCombo.Option]:
    """One option a kind, with its noise level where it has one."""
    return [
        io.DynamicCombo.Option(
            name,
            []
            if kind.eta is None
            else [
                io.Float.Input(
                    "eta",
                    default=kind.eta,
                    min=0.0,
                    max=kind.largest,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the noise. 0 = none: the euler sampler. Too much leaves grain that rewards "
                    f"misjudge. {kind.eta:g} is what the method's authors use.",
                )
            ],
        )
        for name, kind in KINDS.items()
    ]


class SDESampler(io.ComfyNode):
    """Kind and window of random steps -> SAMPLER."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterSDESampler",
            display_name="SDE Sampler (IDCrafter)",
            category="IDCrafter/sample",
            description="A sampler for flow models that adds noise in some steps, as GRPO and its relatives need it "
            "to explore, and is euler everywhere else. Each take's noise follows from its own seed.",
            search_aliases=["idcrafter", "grpo", "flow-grpo", "dancegrpo", "cps", "sage", "ancestral", "stochastic"],
            inputs=[
                io.DynamicCombo.Input(
                    "kind",
                    options=_kind_options(),
                    tooltip="Whose formula. CPS leaves no grain in the clip; Wan-SDE is Identity-GRPO's; a training "
                    "from the recorded steps must use the same.",
                ),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=NO_END,
                    tooltip="The first step that may add noise (0 = the schedule's first). Early steps change the "
                    "layout and who stands where, late ones details.",
                ),
                io.Int.Input(
                    "end_at_step",
                    default=NO_END,
                    min=1,
                    max=NO_END,
                    tooltip="The first step after the window. start 2 and end 3 make one random step, which is enough "
                    "for Flash-GRPO. The last step of the schedule never adds noise.",
                ),
                io.Float.Input(
                    "sigma_from",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Only steps that begin at this noise level or below it may add noise. 1 = all.",
                ),
                io.Float.Input(
                    "sigma_to",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Only steps that begin at this noise level or above it may add noise. 0 = all.",
                ),
                io.Boolean.Input(
                    "record",
                    default=False,
                    tooltip="Sample Takes keeps the latents before and after each random step with the take, for GRPO; "
                    "16 MB of memory a step and take at 832x480, 81 frames. Rounds them to bfloat16, so takes differ "
                    "slightly from those without it. Not needed for DiffusionNFT or DPO.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler", tooltip="For Sample Takes or SamplerCustomAdvanced, with a flow model."
                )
            ],
        )

    @classmethod
    @override
    def execute(cls, kind, start_at_step, end_at_step, sigma_from, sigma_to, record) -> io.NodeOutput:
        return io.NodeOutput(
            sde_sampler(kind["kind"], kind.get("eta"), start_at_step, end_at_step, sigma_from, sigma_to, record)
        )


NODES = [SDESampler]
