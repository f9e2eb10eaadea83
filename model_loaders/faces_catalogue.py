"""The face models that are known by name: where their files lie, what they may be used for, how to get them.

Everything lies in ComfyUI's model folder 'insightface', where other packs look for the insightface packs as well:

    models/buffalo_l/*.onnx, models/antelopev2/*.onnx, models/<your own pack>/*.onnx
    models/opencv/face_detection_yunet_2023mar.onnx, models/opencv/face_recognition_sface_2021dec.onnx
    models/auraface/glintr100.onnx, models/curricularface/glint360k_curricular_face_r101_backbone.bin

Licences: the insightface model zoo allows non-commercial research only, whatever the licence of insightface's code;
fal/AuraFace-v1 is Apache-2.0 in its recogniser alone (the other files of that repository are insightface's);
opencv/opencv_zoo states MIT for YuNet and Apache-2.0 for SFace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

from . import files

FOLDER = "insightface"
RECOGNISERS = ("auto", "auraface", "sface", "curricularface")
NON_COMMERCIAL = "insightface model zoo: non-commercial research only"
DET_SIZE = 640

_ZOO = "https://github.com/deepinsight/insightface/releases/download/v0.7"
_OPENCV = "https://github.com/opencv/opencv_zoo/raw/main/models"


@dataclass(frozen=True)
class Entry:
    """A file or folder below the 'insightface' model folder. `det_size` is the detector's input side in pixels."""

    file: str
    licence: str
    download: str | None
    det_size: int = DET_SIZE

    def require(self) -> Path:
        """Its path; FileNotFoundError with the searched folders and the download command."""
        return files.require(FOLDER, self.file, self.command())

    def command(self) -> str | None:
        if self.download is None:
            return None
        first = Path(folder_paths.get_folder_paths(FOLDER)[0])
        path = first / self.file
        return self.download.format(path=path, parent=path.parent)


def _zip(name: str) -> Entry:
    get = f"curl -L --create-dirs -o '{{path}}.zip' {_ZOO}/{name}.zip && unzip '{{path}}.zip' -d '{{path}}'"
    return Entry(f"models/{name}", NON_COMMERCIAL, get)


def _opencv(folder: str, name: str, licence: str) -> Entry:
    return Entry(f"models/opencv/{name}", licence, f"curl -L --create-dirs -o '{{path}}' {_OPENCV}/{folder}/{name}")


def _hub(file: str, repository: str, licence: str) -> Entry:
    return Entry(file, licence, f"hf download {repository} {Path(file).name} --local-dir '{{parent}}'")


def _nano(name: str) -> Entry:
    get = "python -m idcrafter.nano train all && python -m idcrafter.nano install"
    return Entry(f"models/{name}", "Apache-2.0", get, 128)


PACKS = {
    "buffalo_l": _zip("buffalo_l"),
    "antelopev2": _zip("antelopev2"),
    "idcrafter_nano": _nano("idcrafter_nano"),
    "idcrafter_nano_monitor": _nano("idcrafter_nano_monitor"),
}
FILES = {
    "yunet": _opencv("face_detection_yunet", "face_detection_yunet_2023mar.onnx", "MIT"),
    "sface": _opencv("face_recognition_sface", "face_recognition_sface_2021dec.onnx", "Apache-2.0"),
    "auraface": _hub("models/auraface/glintr100.onnx", "fal/AuraFace-v1", "Apache-2.0"),
    "curricularface": _hub(
        "models/curricularface/glint360k_curricular_face_r101_backbone.bin",
        "BestWishYsh/OpenS2V-Weight",
        "research only (weights trained on Glint360K; TFace's code is Apache-2.0)",
    ),
}


def detectors() -> list[str]:
    """The names that a graph can choose: the known ones first, then the user's own packs."""
    return [*PACKS, "yunet", *(name for name in _local_packs() if name not in PACKS)]


def pack(name: str) -> Entry:
    """A pack by the name of its folder; one that is not known has a licence that only its maker knows."""
    return PACKS.get(name) or Entry(f"models/{name}", "unknown, ask who made the pack", None)


def fingerprint(detector: str, recogniser: str) -> str:
    """Changes when a file that the two names stand for does."""
    if recogniser == "auto" and detector == "yunet":
        recogniser = "auraface"
    entries = [FILES.get(detector) or pack(detector), *([FILES[recogniser]] if recogniser in FILES else [])]
    seen = []
    for entry in entries:
        path = files.find(FOLDER, entry.file)
        parts = sorted(path.rglob("*.onnx")) if path and path.is_dir() else [path] if path else []
        seen += [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return repr(seen)


def _local_packs() -> list[str]:
    """Folders below models/ that hold at least two .onnx files, directly or in one sub-folder."""
    found = set()
    for root in folder_paths.get_folder_paths(FOLDER):
        for folder in sorted(Path(root, "models").glob("*/")):
            if len(list(folder.glob("*.onnx"))) > 1 or len(list(folder.glob("*/*.onnx"))) > 1:
                found.add(folder.name)
    return sorted(found - {"opencv", "auraface", "curricularface"})
