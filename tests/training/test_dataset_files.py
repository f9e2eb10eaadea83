"""Raw clips as they are opened and looked at, and the files that are made of them."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from idcrafter.rewards.evidence import VideoFrames
from idcrafter.rewards.lossy_video import write_h264
from idcrafter.training.dataset.raw import open_clip
from idcrafter.training.dataset.seen import SeenClip, load_seen, look, save_seen, sharpness
from idcrafter.training.dataset.writing import write_clip, write_masks, written_size
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """25 frames of 46x34 px at 24 fps; frame t is 10 t levels bright."""
    path = tmp_path_factory.mktemp("raw") / "a clip.mp4"
    with path.open("wb") as file:
        frames = (torch.full((34, 46, 3), 10 * t, dtype=torch.uint8) for t in range(25))
        write_h264(file, frames, Fraction(24), 4, 2)
    return path


def opened(path, fps=None):
    return open_clip(path, path.parent, "a-clip", fps)


def test_a_clip_is_looked_at_as_often_as_wanted(clip_file):
    assert opened(clip_file).indices == tuple(range(25))
    assert opened(clip_file, 24).indices == tuple(range(25))
    assert opened(clip_file, 8).indices == tuple(range(0, 25, 3))
    sixteen = opened(clip_file, 16)
    assert (len(sixteen.indices), sixteen.indices[:5], sixteen.fps) == (17, (0, 2, 3, 4, 6), 16.0)
    with pytest.raises(ValueError, match="24 frames a second, fewer than the 30"):
        opened(clip_file, 30)


def test_what_is_the_whole_clip_is_copied_and_a_part_written_anew(clip_file, tmp_path):
    clip, told = opened(clip_file), []
    whole = write_clip(tmp_path / "clips" / "one", clip, clip.indices, told.append)
    assert whole.read_bytes() == clip_file.read_bytes() and told == [25]
    part = write_clip(tmp_path / "clips" / "two", opened(clip_file, 8), (3, 6, 9, 12, 15), told.append)
    frames = VideoFrames(part)
    assert (frames.length, frames.fps, told[1:]) == (5, 8.0, [1] * 5)
    brightness = [float(frame.mean()) * 255 for frame in frames.read(range(5))]
    assert brightness == pytest.approx([30, 60, 90, 120, 150], abs=4)
    assert sorted(path.name for path in part.parent.iterdir()) == ["one.mp4", "two.mp4"]


def test_sizes_are_those_of_the_written_files(clip_file):
    clip = opened(clip_file)
    nothing = SeenClip(np.array([33, 45]), *[np.zeros(0)] * 6)
    assert written_size(clip, clip.indices, nothing) == (33, 45)  # a copy
    assert written_size(clip, clip.indices[:5], nothing) == (34, 46)


def test_a_stopped_write_leaves_nothing(clip_file, tmp_path):
    def stop(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "two", opened(clip_file), range(5), stop)
    assert list(tmp_path.iterdir()) == []


def test_mask_files_hold_the_soft_person(tmp_path):
    write_masks(tmp_path / "m" / "1.npz", ((0.4, 0.2, 0.6, 0.4), None), 50, 100)
    with np.load(tmp_path / "m" / "1.npz") as archive:
        masks = archive["masks"]
    assert masks.shape == (2, 50, 100) and masks.dtype == np.uint8
    assert masks[0, 15, 50] == 255 and masks[0, 15, 5] == 0 and masks[1].max() == 0


class FakeSource:
    """A clip in memory."""

    fps = 8.0

    def __init__(self, frames):
        self.frames, self.length = frames, len(frames)

    def read(self, indices):
        yield from (self.frames[i] for i in indices)


def test_what_is_seen_is_kept_and_found_again(tmp_path):
    frames = blank(count=12)
    frames[6:] = frames[6:] * 0.5
    for t in (0, 1, 2, 7):
        paint(frames[t], 3, 20)
    paint(frames[1], 5, 60)
    analyzer = PaintedFaceAnalyzer()
    told = []
    clip = type("Clip", (), {"source": FakeSource(frames), "indices": tuple(range(12))})
    seen = look(clip, analyzer, lambda: told.append(1))
    assert len(told) == 12 and tuple(seen.size) == (48, 96)
    assert seen.moment.tolist() == [0, 1, 1, 2, 7]
    assert seen.boxes[2].tolist() == [60, 12, 76, 28] and int(seen.embeddings[2].argmax()) == 5
    assert seen.length == 12 and seen.change[0] == 0 and int(seen.change.argmax()) == 6
    save_seen(tmp_path / "x.npz", seen, {"clip": "a"})
    again = load_seen(tmp_path / "x.npz", {"clip": "a"})
    assert all(np.array_equal(value, getattr(seen, name)) for name, value in vars(again).items())
    assert load_seen(tmp_path / "x.npz", {"clip": "b"}) is None
    assert load_seen(tmp_path / "y.npz", {"clip": "a"}) is None
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    assert load_seen(tmp_path / "x.npz", {"clip": "a"}) is None


def test_a_blurred_face_is_less_sharp_at_any_size():
    """A face of stripes, in focus and smeared; the figure does not fall because the face is small."""
    analyzer, figures = PaintedFaceAnalyzer(), {}
    for side in (40, 160):
        image = blank(200, 200)
        face = analyzer.analyze(paint(image, 1, 20, 1.0, 20, side))[0]
        stripes = (torch.arange(side) // (side // 10) % 2).float()
        image[20 : 20 + side, 20 : 20 + side] = 0.2 + 0.6 * stripes[:, None, None]
        smeared = image.movedim(-1, 0)[None]
        kernel = side // 4 + 1 - side // 4 % 2
        smeared = torch.nn.functional.avg_pool2d(smeared, kernel, 1, kernel // 2)[0].movedim(0, -1).contiguous()
        figures[side] = sharpness(image, face), sharpness(smeared, face)
    for sharp, smeared in figures.values():
        assert sharp > 300 and smeared < 0.2 * sharp
