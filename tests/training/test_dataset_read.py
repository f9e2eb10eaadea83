"""A data set made by hand: what is read, what is refused and how that is said."""

import copy
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from idcrafter.rewards.lossy_video import write_h264
from idcrafter.training.dataset import clip_cast, read_dataset, read_window
from idcrafter.training.dataset.mask_files import open_masks, save_masks

FRAMES, WIDTH, HEIGHT = 9, 64, 48
BOX = [0.1, 0.2, 0.4, 0.9]


def write_video(path, frames=FRAMES, width=WIDTH, height=HEIGHT):
    """Frame t has the grey level 20 + 20 t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pixels = (torch.full((height, width, 3), 20 + 20 * t, dtype=torch.uint8) for t in range(frames))
        write_h264(file, pixels, Fraction(8), 4, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every file that a line may name."""
    tmp_path = tmp_path_factory.mktemp("data") / "set"
    write_video(tmp_path / "clips" / "one.mp4")
    write_video(tmp_path / "masks" / "small.mp4", 9, 32, 32)
    write_video(tmp_path / "masks" / "video.mp4")
    (tmp_path / "clips" / "text.mp4").write_text("no video")
    for name, size in (("ada", (40, 50)), ("bo", (60, 30)), ("tiny", (8, 40))):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "ada.png").read_bytes()[:-30])
    (tmp_path.parent / "outside.png").write_bytes((tmp_path / "ada.png").read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "outside.png")
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    masks[:, 10:20, 5:25] = 255
    save_masks(tmp_path / "masks" / "good.npz", masks)
    save_masks(tmp_path / "masks" / "short.npz", masks[:4])
    np.savez(tmp_path / "masks" / "two.npz", a=masks, b=masks)
    np.savez(tmp_path / "masks" / "words.npz", masks=np.array(["a"]))
    for t in range(FRAMES):
        (tmp_path / "masks" / "pictures").mkdir(exist_ok=True)
        Image.fromarray(masks[t]).save(tmp_path / "masks" / "pictures" / f"{t:03}.png")
    (tmp_path / "masks" / "empty").mkdir()
    return tmp_path


@pytest.fixture
def folder(files):
    """A data set without its lines, for `write`."""
    (files / "metadata.jsonl").unlink(missing_ok=True)
    return files


def record():
    return {
        "video": "clips/one.mp4",
        "caption": "Ada  waves at Bo.",
        "licence": "CC-BY-4.0",
        "source": "a camera",
        "subjects": [
            {"name": "Ada", "references": ["ada.png"], "description": "a red wall", "faces": [BOX] * FRAMES},
            {"name": "Bo", "kind": "object", "references": ["bo.png", "ada.png"], "masks": "masks/good.npz"},
        ],
    }


def write(folder, *records):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")


def test_what_a_line_says_is_read(folder):
    write(folder, record(), record() | {"fps": 16, "licence": "MIT"}, record())
    told = []
    dataset = read_dataset(folder, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert dataset.licences == ("CC-BY-4.0", "MIT") and len(dataset.digest) == 64
    clip, fast, _ = dataset.clips
    assert (clip.line, clip.length, clip.width, clip.height, clip.fps) == (1, FRAMES, WIDTH, HEIGHT, 8.0)
    assert (clip.seconds, fast.seconds) == (FRAMES / 8, FRAMES / 16)
    assert (clip.caption, clip.source) == ("Ada waves at Bo.", "a camera")
    assert clip.video == folder / "clips" / "one.mp4" and clip.placed
    ada, bo = clip.subjects
    assert (ada.name, ada.kind, ada.description) == ("Ada", "person", "a red wall")
    assert ada.faces == (tuple(BOX),) * FRAMES and ada.track is None and ada.masks is None
    assert (bo.kind, bo.masks, bo.references) == (
        "object",
        folder / "masks" / "good.npz",
        (folder / "bo.png", folder / "ada.png"),
    )
    assert clip.prompt() == "A red wall waves at an object."
    assert clip.prompt("images") == "A red wall from image0 waves at an object from image1."


def change(where, value):
    """A record with one value changed; `where` is a path of keys, ... removes nothing and `None` as value does."""
    made = copy.deepcopy(record())
    inner = made
    for key in where[:-1]:
        inner = inner[key]
    if value is None:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return made


ADA = ("subjects", 0)
WRONG = {
    "video missing": (("video",), None, "line 1: the path of the video is missing"),
    "video not there": (("video",), "clips/two.mp4", "'clips/two.mp4' does not exist; put it there"),
    "no video": (("video",), "clips/text.mp4", "The video 'text.mp4' cannot be read"),
    "path up": (("video",), "../one.mp4", "leaves the folder"),
    "absolute path": (("video",), "/clips/one.mp4", "leaves the folder"),
    "windows path": (("video",), "C:/clips/one.mp4", "leaves the folder"),
    "backslash": (("video",), "clips\\one.mp4", "has backslashes"),
    "link": ((*ADA, "references"), ["link.png"], "subject 'Ada': the path 'link.png' leads out of the folder"),
    "caption": (("caption",), " ", "the caption is missing"),
    "licence": (("licence",), None, "the licence is missing"),
    "fps": (("fps",), -3, "fps is '-3'"),
    "field": (("captoin",), "x", "'captoin' is no field"),
    "subjects": (("subjects",), [], "there are 0 subjects; give a list of 1 to 8"),
    "too many": (("subjects",), [{"name": f"S{i}", "references": ["ada.png"]} for i in range(9)], "there are 9"),
    "no name": ((*ADA, "name"), None, "subject 1 has no name"),
    "same name": ((*ADA, "name"), "BO", "subjects 1 and 2 are both named 'Bo'"),
    "kind": ((*ADA, "kind"), "robot", "subject 'Ada': the kind 'robot' is unknown"),
    "subject field": ((*ADA, "mask"), "x", "subject 'Ada': 'mask' is no field"),
    "no references": ((*ADA, "references"), [], "subject 'Ada': it has no references"),
    "reference not there": ((*ADA, "references"), ["ada.png", "eve.png"], "the reference 'eve.png' does not exist"),
    "broken picture": ((*ADA, "references"), ["broken.png"], "the reference 'broken.png' is no readable picture"),
    "small picture": ((*ADA, "references"), ["tiny.png"], "the reference 'tiny.png' is 8x40 px; use one of 16 px"),
    "long track": ((*ADA, "track"), [BOX] * 10, "subject 'Ada': track is longer than the clip: 10 entries for 9"),
    "short faces": ((*ADA, "faces"), [BOX] * 8, "faces is shorter than the clip: 8 entries for 9"),
    "pixels": ((*ADA, "faces"), [[10, 20, 40, 90]] * 9, "in frame 1, which is no box; give left, top, right, bottom"),
    "crossed box": ((*ADA, "faces"), [BOX] * 8 + [[0.4, 0.2, 0.1, 0.9]], "in frame 9, which is no box"),
    "not finite": ((*ADA, "faces"), [BOX] * 8 + [[0.1, 0.2, float("nan"), 0.9]], "in frame 9, which is no box"),
    "no box at all": ((*ADA, "faces"), [None] * 9, "faces has no box"),
    "short masks": ((*ADA, "masks"), "masks/short.npz", "are 4 of 64x48 px, the clip has 9 frames of 64x48 px"),
    "small masks": ((*ADA, "masks"), "masks/small.mp4", "are 9 of 32x32 px, the clip has 9 frames of 64x48 px"),
    "two arrays": ((*ADA, "masks"), "masks/two.npz", "hold 2 arrays"),
    "no numbers": ((*ADA, "masks"), "masks/words.npz", "save booleans, uint8 or floats"),
    "no pictures": ((*ADA, "masks"), "masks/empty", "has no .png file"),
}


@pytest.mark.parametrize("where, value, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_line_and_subject(folder, where, value, message):
    write(folder, change(where, value))
    with pytest.raises(ValueError) as error:
        read_dataset(folder)
    assert message in str(error.value)
    assert "line 1" in str(error.value)


def test_everything_that_is_wrong_is_said_at_once(folder):
    two = change((*ADA, "references"), ["eve.png"])
    two["subjects"][1]["masks"] = "masks/short.npz"
    write(folder, record(), two, "{not json", '["a list"]', change(("licence",), None))
    with pytest.raises(ValueError) as error:
        read_dataset(folder)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(" ")[1].rstrip(":") for line in lines] == ["2", "2", "3", "4", "5"]
    assert "subject 'Ada'" in lines[0] and "subject 'Bo'" in lines[1] and "(clips/one.mp4)" in lines[0]
    write(folder, *[change(("licence",), None)] * 30)
    with pytest.raises(ValueError, match=r"and 10 more\."):
        read_dataset(folder)


def test_a_folder_without_a_data_set(folder):
    with pytest.raises(FileNotFoundError, match="has no metadata.jsonl"):
        read_dataset(folder)
    write(folder)
    with pytest.raises(ValueError, match="has no clips"):
        read_dataset(folder)
    (folder / "metadata.jsonl").write_bytes(b'{"caption": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_dataset(folder)


@pytest.mark.parametrize("name", ["good.npz", "pictures", "video.mp4"])
def test_masks_of_every_kind(folder, name):
    masks = open_masks(folder / "masks" / name)
    assert (masks.length, masks.height, masks.width) == (FRAMES, HEIGHT, WIDTH)
    third, last = masks.read([2, 8])
    assert third.shape == last.shape == (HEIGHT, WIDTH) and third.dtype == torch.float32
    if name == "video.mp4":
        assert last.mean() == pytest.approx(180 / 255, abs=0.02)
    else:
        assert third[10:20, 5:25].eq(1).all() and third.sum() == 200
    with pytest.raises(ValueError, match="Frames to read"):
        list(masks.read([9]))


@pytest.mark.parametrize("kind, white", [(bool, True), (np.float32, 1.0), (np.float64, 1.0), (np.uint8, 255)])
def test_masks_of_every_number(folder, kind, white):
    masks = np.zeros((2, 3, 4), kind)
    masks[1, 2] = white
    save_masks(folder / "m.npz", masks)
    assert [mask.sum() for mask in open_masks(folder / "m.npz").read([0, 1])] == [0, 4]


def test_masks_that_are_not_finite_name_the_frame(folder):
    masks = np.zeros((2, 3, 4), np.float32)
    masks[1] = np.nan
    save_masks(folder / "m.npz", masks)
    with pytest.raises(ValueError, match=r"Mask 2 of 'm\.npz' holds NaN"):
        list(open_masks(folder / "m.npz").read([0, 1]))


def test_a_window_is_scaled_and_cut_in_the_middle(folder):
    write(folder, record())
    clip = read_dataset(folder).clips[0]
    window = read_window(clip, 32, 32, 2, 5)
    assert window.shape == (5, 32, 32, 3) and window.dtype == torch.float32
    assert window.mean((1, 2, 3)).tolist() == pytest.approx([(60 + 20 * t) / 255 for t in range(5)], abs=0.02)
    assert read_window(clip, WIDTH, HEIGHT).shape == (FRAMES, HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match="Frames to read"):
        read_window(clip, 32, 32, 5, 9)


def test_the_cast_of_a_clip(folder):
    write(folder, record())
    cast = clip_cast(read_dataset(folder).clips[0])
    assert [(subject.name, subject.kind, len(subject.photos)) for subject in cast.subjects] == [
        ("Ada", "person", 1),
        ("Bo", "object", 2),
    ]
    assert [tuple(photo.shape) for photo in cast.subjects[1].photos] == [(30, 60, 3), (50, 40, 3)]
    assert cast.subjects[0].photos[0].mean((0, 1)).tolist() == pytest.approx([200 / 255, 30 / 255, 30 / 255], abs=1e-3)
