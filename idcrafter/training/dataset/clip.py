"""What a data set consists of: clips, the subjects in them, and where these are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...relations.compose import compose
from ...subjects.regions import Box
from ...subjects.subject import Subject

METADATA = "metadata.jsonl"

# One entry a frame; None where the subject is not to be seen.
Boxes = tuple[Box | None, ...]


@dataclass(frozen=True)
class TrainingSubject:
    """One subject of one clip.

    name         unique in its clip
    references   pictures of it, at least one, none of them a frame of the clip; absolute paths
    kind         person, animal or object
    description  for the prompt; may be empty
    faces        boxes of its face in fractions of the frame, one a frame of the clip; None where nobody has said
    track        boxes of all of it, in the same way
    masks        a video, an .npz or a folder of PNG files with its pixels, of the clip's size and length
    mask_source  what the masks are made from, in words; may be empty
    """

    name: str
    references: tuple[Path, ...]
    kind: str = "person"
    description: str = ""
    faces: Boxes | None = None
    track: Boxes | None = None
    masks: Path | None = None
    mask_source: str = ""

    @property
    def placed(self) -> bool:
        """Whether anything says where the subject is."""
        return self.masks is not None or self.track is not None or self.faces is not None


@dataclass(frozen=True)
class TrainingClip:
    """One clip.

    line      of metadata.jsonl, from 1
    video     the file, an absolute path
    caption   speaks of the subjects by their names
    subjects  1 to MAX_SUBJECTS, in the order in which a model counts them
    length    frames; width and height in pixels
    """

    line: int
    video: Path
    caption: str
    subjects: tuple[TrainingSubject, ...]
    length: int
    width: int
    height: int
    fps: float
    licence: str
    source: str = ""

    @property
    def seconds(self) -> float:
        return self.length / self.fps

    @property
    def placed(self) -> bool:
        """Whether it is known where every subject is, so that the router can be trained on the clip."""
        return all(subject.placed for subject in self.subjects)

    def prompt(self, wording: str = "descriptions") -> str:
        """The caption in the wording of a model (`relations.compose.WORDINGS`)."""
        subjects = [Subject(s.name, s.kind, s.description, (), ()) for s in self.subjects]
        return compose(subjects, self.caption, wording)


@dataclass(frozen=True)
class TrainingDataset:
    """A folder of clips.

    digest  sha256 of metadata.jsonl, for the records of a training
    """

    folder: Path
    clips: tuple[TrainingClip, ...]
    digest: str

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of all clips, each once, in order of appearance."""
        return tuple(dict.fromkeys(clip.licence for clip in self.clips))
