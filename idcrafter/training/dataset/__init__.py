"""Clips to train an adapter on: a folder, read by `read_dataset`, made from raw clips by `build_dataset` or by hand.

The folder holds `metadata.jsonl` and the files that it names. Every path is relative to the folder, with forward
slashes, and stays inside it. One clip a line, a JSON object:

    video      the clip, any file that PyAV decodes. All of its frames are trained on.
    caption    what happens, speaking of the subjects by their names ("Ada hugs Bo."); `TrainingClip.prompt` puts what a
               model understands in the place of the names.
    licence    under which the clip may be used; it travels into the adapter.
    subjects   1 to 8 objects, by convention from left to right:
        name         unique in the clip
        references   paths of pictures of the subject, at least one. They must not be frames of this clip.
        kind         optional: person (the default), animal or object
        description  optional: what the subject looks like ("a man with a red hat"), for the prompt
        faces        optional: where its face is, one entry a frame of the clip, null where it is not to be seen
        track        optional: where all of it is, in the same way
        masks        optional: the pixels that are the subject, in the size of the clip and one a frame: a video, a
                     folder of PNG files (in the order of their names), or an .npz with one array [frames, height,
                     width] of booleans, uint8 or floats of 0..1
        mask_source  optional: what the masks are made from, for people
    fps        optional: frames a second, where the file does not say
    source     optional: where the clip is from, for people

A box is [left, top, right, bottom] in fractions of the frame, so that it stays right when the clip is scaled. Who is
where, as the router should learn it (`token_owners`), is taken from masks, else track, else faces; a clip without any
of them trains everything but the router's own loss.

Everything is checked when the folder is read, so that a training does not stop at its thousandth step.
"""

from .builder import build_dataset
from .clip import TrainingClip, TrainingDataset, TrainingSubject
from .loading import clip_cast, read_window
from .plan import BuildSettings
from .reader import read_dataset
from .regions import NOBODY, token_owners

__all__ = [
    "NOBODY",
    "BuildSettings",
    "TrainingClip",
    "TrainingDataset",
    "TrainingSubject",
    "build_dataset",
    "clip_cast",
    "read_dataset",
    "read_window",
    "token_owners",
]
