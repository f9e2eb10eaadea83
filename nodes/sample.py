"""Several takes of one shot."""

import os

import comfy.samplers
import folder_paths
from comfy_api.latest import io

from ..idcrafter.sampling.fingerprint import file_stamp, graph_signature, graph_strings, run_key, score_key
from ..idcrafter.sampling.guiders import make_guider
from ..idcrafter.sampling.preview import PreviewScorer
from ..idcrafter.sampling.run import sample_takes
from ..idcrafter.sampling.search import plan_for, search_takes, summary
from ..idcrafter.sampling.store import TakeStore
from ..idcrafter.subjects.references import LEADING
from ..model_loaders import files
from .shown import show
from .types import CastType, TakesType

# A take is named by its own seed, and a search only chooses among takes: none of these changes what a finished take is.
_NOT_IN_KEY = frozenset({"seed", "takes", "vae", "cast", "budget"})
_NOT_IN_SCORE_KEY = frozenset({"seed", "takes", "budget"})


class SampleTakes(io.ComfyNode):
    """MODEL or GUIDER + seeds -> takes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterSampleTakes",
            display_name="Sample Takes (IDCrafter)",
            category="IDCrafter/sample",
            description="Samples the same shot from several seeds, one after the other. Each finished take is written "
            "to output/idcrafter/takes at once; after an interruption the same graph goes on with the take that it "
            "hit. With a budget, takes whose previews keep the cast badly are given up on the way.",
            search_aliases=[
                "idcrafter",
                "best of n",
                "batch seeds",
                "ksampler",
                "variations",
                "sampler custom advanced",
                "best of eight",
                "successive halving",
                "early stopping",
            ],
            inputs=[
                io.MultiType.Input(
                    "model",
                    types=[io.Model, io.Guider],
                    tooltip="A MODEL is guided by the conditioning inputs below. A GUIDER brings its own conditioning "
                    "and cfg; then leave positive, negative_text and negative_images unconnected.",
                ),
                io.Sampler.Input("sampler", tooltip="From KSampler Select; euler or uni_pc for Wan models."),
                io.Sigmas.Input("sigmas", tooltip="From Basic Scheduler; its steps are steps per take."),
                io.Latent.Input("latent_image", tooltip="One latent (batch 1), usually Cast to Video's."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the first take; take k (from 0) uses seed + k and is what this seed gives alone.",
                ),
                io.Int.Input(
                    "takes",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many takes. Time grows with them, memory on the GPU does not. Raising the number "
                    "later only samples the new ones.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Needed with a MODEL."),
                io.Conditioning.Input(
                    "negative_text",
                    optional=True,
                    tooltip="Turns text guidance on: two model passes a step instead of one.",
                ),
                io.Conditioning.Input(
                    "negative_images",
                    optional=True,
                    tooltip="Turns image guidance on as well (Phantom): three passes a step.",
                ),
                io.Float.Input(
                    "cfg_text",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="How closely the prompt is followed. Too high burns colours. Phantom uses 7.5; not used "
                    "with a GUIDER.",
                ),
                io.Float.Input(
                    "cfg_images",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="How strongly the references are kept. Too high copies the photo's pose and light. Phantom "
                    "uses 5.0; only with negative_images.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes previews; needed with a budget."),
                CastType.Input(
                    "cast",
                    optional=True,
                    tooltip="From Extract Faces: who is looked for in previews; needed with a budget.",
                ),
                io.Float.Input(
                    "budget",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="Sampling time in full generations. 0 = every take is finished. 3 with 8 takes: all 8 are "
                    "begun, previews are scored on the way, and only the most promising are finished; each is what "
                    "its seed gives without a budget. Decoding and scoring the previews comes on top.",
                ),
            ],
            outputs=[
                TakesType.Output(display_name="takes", tooltip="The finished ones, in seed order."),
                io.String.Output(display_name="search", tooltip="With a budget: what was pruned when and why."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model,
        sampler,
        sigmas,
        latent_image,
        seed,
        takes=4,
        positive=None,
        negative_text=None,
        negative_images=None,
        cfg_text=7.5,
        cfg_images=5.0,
        vae=None,
        cast=None,
        budget=0.0,
    ) -> io.NodeOutput:
        conditioning = {"positive": positive, "negative_text": negative_text, "negative_images": negative_images}
        if isinstance(model, comfy.samplers.CFGGuider):
            extra = [name for name, value in conditioning.items() if value is not None]
            if extra:
                raise ValueError(
                    f"A GUIDER brings its own conditioning; disconnect {', '.join(extra)}, or connect a MODEL instead."
                )
            guider = model
        else:
            if positive is None:
                raise ValueError("With a MODEL, connect 'positive' (from Cast to Video), or connect a GUIDER instead.")
            guider = make_guider(model, **conditioning, cfg_text=cfg_text, cfg_images=cfg_images)
        store = _store(cls.hidden, guider, sampler, sigmas, latent_image)
        plan = plan_for(guider, sigmas, takes, budget) if budget > 0 else None
        if plan is None or not plan.rungs:
            everybody = sample_takes(guider, sampler, sigmas, latent_image, seed, takes, store)
            return io.NodeOutput(everybody, f"No take search: all {takes} takes were finished.")
        missing = [name for name, value in (("vae", vae), ("cast", cast)) if value is None]
        if missing:
            raise ValueError(
                f"A budget of {budget:g} for {takes} takes prunes them by their previews, which needs "
                f"{' and '.join(missing)}; connect {'them' if len(missing) > 1 else 'it'}, or set budget to 0."
            )
        scorer = PreviewScorer(vae, cast, latent_image.get(LEADING, 0))
        key = score_key(scorer.subjects, *_graph(cls.hidden, _NOT_IN_SCORE_KEY)) if store is not None else ""
        found = search_takes(guider, sampler, sigmas, latent_image, seed, plan, budget, scorer, store, key)
        text = summary(found.search)
        return io.NodeOutput(found, text, ui=show(cls, text))


def _store(hidden, guider, sampler, sigmas, latent_image) -> TakeStore | None:
    """Where the takes of this graph are kept; None outside a graph, where patches of the MODEL have no name."""
    if hidden is None or hidden.dynprompt is None or hidden.unique_id is None:
        return None
    graph, stamps = _graph(hidden, _NOT_IN_KEY)
    return TakeStore(
        os.path.join(folder_paths.get_output_directory(), "idcrafter", "takes"),
        run_key(guider, sampler, sigmas, latent_image, graph, stamps),
    )


def _graph(hidden, ignore: frozenset[str]) -> tuple[list, list[tuple]]:
    """What made this node's inputs, and the stamps of the files that it names."""
    graph = graph_signature(hidden.dynprompt.get_node, hidden.unique_id, ignore)
    return graph, [stamp for text in set(graph_strings(graph)) for stamp in _file_stamps(text)]


def _file_stamps(text: str) -> list[tuple]:
    """(name, (size, mtime)) of every model or input file that this text constant may name."""
    try:
        name = str(files.check_name(text))
    except ValueError:
        return []
    paths = [folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths]
    if folder_paths.exists_annotated_filepath(text):
        paths.append(folder_paths.get_annotated_filepath(text))
    return [(text, file_stamp(path)) for path in paths if path is not None and os.path.isfile(path)]


NODES = [SampleTakes]
