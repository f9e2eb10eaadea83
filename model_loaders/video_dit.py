"""A file or folder in diffusion_models -> MODEL, after its header has told which video model it is.

Wan 2.1 and 2.2 (T2V, I2V, TI2V), Phantom, VACE, HuMo, Bernini-R, SkyReels-V3-R2V, RefAlign, CogVideoX 5B and 5B-I2V, in
ComfyUI's (or the original) names or in those of diffusers. Tiny models of the same layouts, as nano, say their sizes in
the safetensors metadata ({"config": "{\\"transformer\\": {...}}"}) or in the config.json beside them.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import comfy.model_detection
import comfy.model_sampling
import comfy.sd
import torch

from . import checkpoint, families, files
from .guess import describe_other
from .layouts import cogvideox, wan

log = logging.getLogger(__name__)

FOLDER = "diffusion_models"
ATTACHMENT = "idcrafter"
WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


class Plan(NamedTuple):
    """How an opened checkpoint becomes a MODEL.

    names     tensor name in the file -> native name
    metadata  what core shall read the sizes from
    """

    layout: ModuleType
    config: Mapping
    names: dict[str, str]
    metadata: dict[str, str]
    facts: dict


def load_video_dit(path: Path, weight_dtype: str = "default", licence: str | None = None, family: str = families.AUTO):
    """The MODEL of a file or folder; its facts travel with every clone as the attachment "idcrafter".

    weight_dtype  one of WEIGHT_DTYPES, as core's Load Diffusion Model
    licence       as a bundle states it; otherwise the file's own metadata, then what the family was published under
    family        one of families.CHOICES, for files that have the tensors of plain text-to-video
    Raises ValueError or FileNotFoundError that says what the file holds, or lacks, when it is no supported video model.
    """
    options = _model_options(weight_dtype)
    header = checkpoint.open_checkpoint(path)
    plan = _plan(header, family)
    facts = dict(plan.facts)
    facts["file"] = Path(path).name
    facts["licence"] = licence or header.licence or families.published_licence(facts["family"])
    log.info("Loading %s: %s.", facts["file"], describe(facts))
    patcher = _build(header, plan, options)
    # Lets core make clones for other devices from the file, as its own loader does.
    patcher.cached_patcher_init = (_reload, (str(path), options, family))
    patcher.set_attachments(ATTACHMENT, facts)
    return patcher


def adopt_model(model, family: str = families.AUTO):
    """A clone of a MODEL that another loader made (of a GGUF file, say), with facts as one of ours has.

    family  one of families.CHOICES; "auto" keeps what a loader of this pack has found. Any other MODEL does not know
            its file's name, so there "auto" takes the tensors of plain text-to-video for that.
    Raises ValueError for a MODEL of another family.
    """
    config = model.model.model_config.unet_config
    layout = {"wan2.1": wan, "cogvideox": cogvideox}.get(config.get("image_model"))
    if layout is None:
        raise ValueError(
            f"The connected MODEL is a {type(model.model).__name__}; connect a Wan or CogVideoX model, or none."
        )
    found, what = layout.family(config)
    if found is None:
        raise ValueError(f"The connected MODEL is {what}; its references work differently.")
    known = model.get_attachment(ATTACHMENT) or {}
    if known and family == families.AUTO:
        return model.clone()
    family = families.choose(found, what, family, Path("the connected MODEL"), {})
    facts = {
        "family": family,
        "size": sum(shape.numel() for shape in layout.layout(config).values()),
        "dtype": _dtype_of(model),
        "layers": config["num_layers"],
        "width": layout.width(config),
        "layout": "native",
        "file": known.get("file", "a connected MODEL"),
        "licence": families.published_licence(family),
    }
    model = model.clone()
    model.set_attachments(ATTACHMENT, facts)
    return model


def describe(facts: Mapping) -> str:
    """One line about a loaded model: family, size, type, layout, licence."""
    size = facts["size"]
    parts = [
        families.title(facts["family"]),
        f"{size / 1e9:.2f} B parameters" if size >= 1e8 else f"{size / 1e6:.3g} M parameters",
        f"{facts['layers']} blocks of width {facts['width']}",
        facts["dtype"],
        f"{facts['layout']} names",
    ]
    if facts.get("release"):
        parts.append(f"the tensors of {facts['release']}")
    return ", ".join([*parts, f"licence: {facts['licence']}"])


def identify(header: files.Header, family: str = families.AUTO) -> dict:
    """Facts of a supported file: "family", "size" (parameters), "dtype", "layers", "width", "layout" ("native" or
    "diffusers"), and "release" when its tensors are those of a released file. ValueError for any other.
    """
    return _plan(header, family).facts


def set_shift(model, shift: float):
    """A clone of the MODEL with another flow shift; what core's ModelSamplingSD3 node does."""

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = ModelSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=model.get_model_object("model_sampling").multiplier)
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def _model_options(weight_dtype: str) -> dict:
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"The weight type '{weight_dtype}' is unknown; choose one of {', '.join(WEIGHT_DTYPES)}.")
    options = {}
    if weight_dtype.startswith("fp8_e4m3fn"):
        options["dtype"] = torch.float8_e4m3fn
    elif weight_dtype == "fp8_e5m2":
        options["dtype"] = torch.float8_e5m2
    if weight_dtype == "fp8_e4m3fn_fast":
        options["fp8_optimizations"] = True
    return options


def _dtype_of(model) -> str:
    """The type that most of a MODEL's weights are stored in; GGUF tensors tell theirs as `tensor_type`."""
    counts = collections.Counter()
    for weight in model.model.diffusion_model.parameters():
        kind = getattr(weight, "tensor_type", None)
        name = str(weight.dtype).removeprefix("torch.") if kind is None else f"GGUF {getattr(kind, 'name', kind)}"
        counts[name] += weight.nelement()
    return counts.most_common(1)[0][0]


def _plan(header: files.Header, choice: str) -> Plan:
    """Recognise the layout, read the sizes, compare every tensor; nothing is allocated."""
    name = header.path.name
    layout, names, is_diffusers = _native_names(header)
    metadata = dict(header.metadata)
    native = {names[old]: tensor for old, tensor in header.tensors.items() if old in names}
    try:
        if is_diffusers:
            metadata |= layout.metadata_of(header.config)
        config = layout.read_config(native, "", metadata)
        family, what = layout.family(config)
        if family is None:
            raise ValueError(
                f"holds {what}; its references work differently. Choose a model of the list in this node's help, or "
                "load this one with core's Load Diffusion Model"
            )
        expected = layout.layout(config)
        if layout is cogvideox and cogvideox.POSITIONS in native:
            expected = expected | _positions_layout(header, config)
    except ValueError as error:
        raise ValueError(f"'{name}' {error}.") from error
    files.check_layout(files.Header(header.path, native, metadata), expected, "", what, layout.IGNORED)
    # Fingerprints are of the original names, which for Wan are the native ones.
    shapes = {key: tuple(tensor.shape) for key, tensor in native.items() if not key.endswith(layout.IGNORED)}
    release = families.RELEASES.get(families.fingerprint(shapes))
    facts = {
        "family": families.choose(family, what, choice, header.path, native),
        "size": sum(t.numel() for key, t in native.items() if key in expected),
        "dtype": str(header.dtype).removeprefix("torch."),
        "layers": config["num_layers"],
        "width": layout.width(config),
        "layout": "diffusers" if is_diffusers else "native",
    }
    if release:
        facts["release"] = release
    return Plan(layout, config, names, metadata, facts)


def _native_names(header: files.Header) -> tuple[ModuleType, dict[str, str], bool]:
    """(module, {name in the file: native name}, whether the file has diffusers' names).

    A name that no table holds stays as it is: it is complained of when the tensors are compared.
    """
    names = header.tensors
    for layout in (wan, cogvideox):
        if layout.is_diffusers(names):
            kind = (header.config or {}).get("_class_name")
            if kind and kind not in layout.DIFFUSERS_CLASSES:
                raise ValueError(
                    f"'{header.path.name}' holds a {kind} (config.json), which works differently from "
                    f"{' and '.join(layout.DIFFUSERS_CLASSES)}."
                )
            if layout is cogvideox:
                names = _without_adapter(header)
            renamed, unknown = layout.NAMES.native(names)
            return layout, renamed | {key: key for key in unknown}, True
        for prefix in (comfy.model_detection.unet_prefix_from_state_dict(names), ""):
            if layout.is_native(names, prefix):
                return layout, {key: key.removeprefix(prefix) for key in names if key.startswith(prefix)}, False
    raise ValueError(
        f"'{header.path.name}' holds {describe_other(header)}, not a video model of this node (Wan 2.1 or 2.2, "
        "Phantom, VACE, HuMo, Bernini-R, SkyReels-V3-R2V, RefAlign, CogVideoX)."
    )


def _without_adapter(header: files.Header) -> list[str]:
    """The names in a CogVideoX file that are the DiT's own."""
    names = [name for name in header.tensors if not name.startswith(cogvideox.ADAPTER)]
    if len(names) < len(header.tensors):
        log.info("'%s' also holds an identity adapter; load that one with Load Adapter.", header.path.name)
    return names


def _positions_layout(header: files.Header, config: Mapping) -> dict[str, torch.Size]:
    shape = cogvideox.positions_shape(
        cogvideox.sample_of(header.config), cogvideox.width(config), config.get("patch_size", 2)
    )
    return {cogvideox.POSITIONS: torch.Size(shape)}


def _build(header: files.Header, plan: Plan, options: Mapping, disable_dynamic: bool = False):
    weights = checkpoint.read_weights(header)
    checkpoint.check_finite(weights, header.path.name)
    native = {
        plan.names[old]: weights.pop(old)
        for old in list(weights)
        if old in plan.names and not plan.names[old].endswith(plan.layout.IGNORED)
    }
    positions = native.pop(cogvideox.POSITIONS, None) if plan.layout is cogvideox else None
    patcher = comfy.sd.load_diffusion_model_state_dict(
        native, model_options=dict(options), metadata=plan.metadata, disable_dynamic=disable_dynamic
    )
    if patcher is None:
        raise ValueError(
            f"This ComfyUI cannot load '{header.path.name}' ({families.title(plan.facts['family'])}); update ComfyUI."
        )
    if plan.layout is cogvideox:
        cogvideox.place_tokens(patcher.model.diffusion_model, positions, cogvideox.sample_of(header.config))
    return patcher


def _reload(path: str, options: Mapping, family: str, disable_dynamic: bool = False):
    header = checkpoint.open_checkpoint(Path(path))
    return _build(header, _plan(header, family), options, disable_dynamic)
