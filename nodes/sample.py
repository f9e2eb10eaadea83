"""Several takes of one shot."""

import os

import comfy.samplers
import folder_paths
from comfy_api.latest import io

from ..idcrafter.sampling.fingerprint import file_stamp, graph_signature, graph_strings, run_key
from ..idcrafter.sampling.guiders import make_guider
from ..idcrafter.sampling.run import sample_takes
from ..idcrafter.sampling.store import TakeStore
from ..model_loaders import files
from .types import TakesType

# A take is named by its own seed, so neither of these changes what a finished take is.
_NOT_IN_KEY = frozenset({"seed", "takes"})


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
            "hit.",
            search_aliases=[
                "idcrafter",
                "best of n",
                "batch seeds",
                "ksampler",
                "variations",
                "sampler custom advanced",
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
            ],
            outputs=[TakesType.Output(display_name="takes")],
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
        return io.NodeOutput(sample_takes(guider, sampler, sigmas, latent_image, seed, takes, store))


def _store(hidden, guider, sampler, sigmas, latent_image) -> TakeStore | None:
    """Where the takes of this graph are kept; None outside a graph, where patches of the MODEL have no name."""
    if hidden is None or hidden.dynprompt is None or hidden.unique_id is None:
        return None
    graph = graph_signature(hidden.dynprompt.get_node, hidden.unique_id, _NOT_IN_KEY)
    stamps = [stamp for text in set(graph_strings(graph)) for stamp in _file_stamps(text)]
    return TakeStore(
        os.path.join(folder_paths.get_output_directory(), "idcrafter", "takes"),
        run_key(guider, sampler, sigmas, latent_image, graph, stamps),
    )


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
