"""What the judge is shown: against figures of Identity-GRPO's own code, and rules that must hold for any clip."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idcrafter.rewards import judge, lossy_video
from idcrafter.rewards.evidence import TensorFrames
from support import tiny_judge

PUBLISHED = json.loads((Path(__file__).parent / "data" / "identity_grpo.json").read_text("utf-8"))


class File:
    """A clip as it comes out of a video file: it has a rate, and is judged as it is."""

    def __init__(self, frames, fps, height=60, width=84):
        self.length, self.fps = frames, fps
        self.frames = (tiny_judge.clip(frames, height, width) * 255).round() / 255
        self.read_indices = []

    def read(self, indices):
        for index in indices:
            self.read_indices.append(index)
            yield self.frames[index]


def encoder():
    tokenizer = tiny_judge.tokenizer()
    tokenizer.add_special_tokens([judge.READOUT])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def digest(tensor):
    return hashlib.sha256(tensor.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()


# Against the released code --------------------------------------------------------------------------------------------


def test_the_question_is_the_released_one():
    assert hashlib.sha256(judge.PROMPT.encode()).hexdigest() == PUBLISHED["prompt_sha256"]


@pytest.mark.parametrize("name", list(PUBLISHED["clips"]))
def test_tokens_positions_and_pixels_are_those_of_the_released_code(name):
    gold = PUBLISHED["clips"][name]
    source = File(gold["frames"], gold["fps"])
    inputs = judge.make_input(source, tiny_judge.photos(), encoder(), tiny_judge.TOKENS_PER_SECOND)
    assert inputs.ids.shape == (1, gold["tokens"]) and digest(inputs.ids) == gold["ids"]
    assert int(inputs.positions.max()) == gold["last_position"] and digest(inputs.positions) == gold["positions"]
    assert inputs.photo_grids.tolist() == gold["photo_grids"] and inputs.video_grids.tolist() == [gold["video_grid"]]
    for patches, sums in ((inputs.photos, gold["photos"]), (inputs.video, gold["video"])):
        assert patches.dtype == torch.float32 and patches.shape[1] == 1176
        assert [patches.double().sum().item(), patches.double().square().sum().item()] == pytest.approx(sums, rel=1e-9)
    assert inputs.photos[5, ::200].tolist() == pytest.approx(gold["photo_patch"], abs=2e-6)
    assert inputs.video[77, ::200].tolist() == pytest.approx(gold["video_patch"], abs=2e-6)
    assert inputs.ids[0, inputs.readout] == tiny_judge.TOKENS


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, chosen",
    [(4, (0, 1, 2, 3)), (9, (0, 3, 5, 8)), (33, (0, 11, 21, 32)), (49, (0, 16, 32, 48)), (81, (0, 27, 53, 80))],
)
def test_four_frames_are_chosen(length, chosen):
    assert judge.choose_frames(length) == chosen


@pytest.mark.parametrize("length", [1, 3])
def test_a_clip_that_is_too_short_is_refused(length):
    with pytest.raises(ValueError, match=f"looks at 4 frames, but the clip has {length}"):
        judge.make_input(TensorFrames(tiny_judge.clip(length)), tiny_judge.photos(), encoder(), 2)


def test_of_a_file_only_four_frames_are_read_and_nothing_is_encoded_again(monkeypatch):
    monkeypatch.setattr(judge, "reencode", None)
    source, seen = File(40, 24.0), []
    frames, fps = judge.read_clip(source, lambda: seen.append(1))
    assert source.read_indices == [0, 13, 26, 39] and len(seen) == 4 and fps == 24.0
    assert torch.equal(frames, (source.frames[[0, 13, 26, 39]] * 255).round().to(torch.uint8))


def test_frames_from_memory_are_truncated_and_encoded_at_ten_frames_a_second(monkeypatch):
    given_frames, seen = [], []

    def reencode(frames, keep, fps):
        given_frames.extend(frames)
        assert (keep, fps) == ((0, 2, 4, 6), 10)
        return torch.stack([given_frames[k] for k in keep])

    monkeypatch.setattr(judge, "reencode", reencode)
    clip = torch.full((7, 30, 30, 3), 0.999)  # 254.7
    frames, fps = judge.read_clip(TensorFrames(clip, fps=24.0), lambda: seen.append(1))
    assert len(given_frames) == len(seen) == 7 and fps == 10
    assert frames.dtype == torch.uint8 and (frames == 254).all()


def test_bad_pixels_and_no_photo_are_refused():
    clip, photos = tiny_judge.clip(6), tiny_judge.photos()
    clip[2, 3, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="Frame 3 of the clip holds NaN"):
        judge.make_input(TensorFrames(clip), photos, encoder(), 2)
    photos[1][0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="Reference 2 holds NaN"):
        judge.make_input(File(6, 10.0), photos, encoder(), 2)
    with pytest.raises(ValueError, match="at least one photo"):
        judge.make_input(File(6, 10.0), [], encoder(), 2)


def test_an_interruption_stops_the_reading():
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        judge.make_input(TensorFrames(tiny_judge.clip(6)), tiny_judge.photos(), encoder(), 2, stop)


# Sizes and pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, photo, frame",
    [
        ((480, 832), (476, 812), (476, 812)),
        ((240, 416), (252, 420), (252, 420)),
        ((720, 1280), (448, 840), (448, 840)),
        ((1024, 1024), (616, 616), (616, 616)),
        ((64, 64), (56, 56), (336, 336)),
        ((20, 30), (56, 84), (280, 392)),
    ],
)
def test_sizes(size, photo, frame):
    assert judge.fit(*size, judge.MIN_PHOTO_PIXELS) == photo
    assert judge.fit(*size, judge.MIN_FRAME_PIXELS) == frame


@given(height=st.integers(16, 8192), width=st.integers(16, 8192))
def test_sizes_are_within_their_bounds(height, width):
    if max(height, width) > judge.MAX_RATIO * min(height, width):
        with pytest.raises(ValueError, match=f"{width}x{height} pixels is too narrow"):
            judge.fit(height, width, judge.MIN_PHOTO_PIXELS)
        return
    rows, columns = judge.fit(height, width, judge.MIN_PHOTO_PIXELS)
    assert rows % 28 == columns % 28 == 0
    assert judge.MIN_PHOTO_PIXELS <= rows * columns <= judge.MAX_PIXELS


def test_photos_are_resized_by_pillow_and_frames_by_torch():
    photo = tiny_judge.photos()[1]
    pixels = (photo * 255).round().byte().numpy()
    wanted = np.array(Image.fromarray(pixels).resize((112, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(judge.prepare_photo(photo).numpy(), wanted)
    torchvision = pytest.importorskip("torchvision")
    frames = (tiny_judge.clip(4) * 255).byte()
    resize = torchvision.transforms.functional.resize
    wanted = resize(frames.movedim(-1, 1), [280, 392], torchvision.transforms.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(judge.prepare_frames(frames), wanted.movedim(1, -1))


@settings(max_examples=25, deadline=None)
@given(t=st.integers(1, 5), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 99))
def test_patches_hold_every_pixel_where_the_vision_tower_looks_for_it(t, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (t, rows * 28, columns * 28, 3), dtype=torch.uint8, generator=generator)
    patches, grid = judge.to_patches(frames)
    assert grid == ((t + 1) // 2, rows * 2, columns * 2) and len(patches) == grid[0] * grid[1] * grid[2]
    y, x, c, k = 29 % (rows * 28), 17 % (columns * 28), 1, t - 1
    # Blocks of 2 x 2 patches, row by row; in a patch colour, frame, row, column.
    block = (y // 28) * columns + x // 28
    within = (y // 14 % 2) * 2 + x // 14 % 2
    patch = (k // 2) * grid[1] * grid[2] + block * 4 + within
    inside = ((c * 2 + k % 2) * 14 + y % 14) * 14 + x % 14
    value = (frames[k, y, x, c].item() / 255 - 0.4578275) / 0.26130258
    assert patches[patch, inside].item() == pytest.approx(value, abs=1e-6)
    if t % 2:  # the last frame is shown twice
        assert patches[patch, inside + 14 * 14].item() == pytest.approx(value, abs=1e-6)


# Positions ------------------------------------------------------------------------------------------------------------


def test_positions_of_a_picture_start_where_the_text_stopped():
    photo, video = 90, 91
    ids = [1, 2, *[photo] * 6, 3, *[video] * 4, 4]
    grids = {photo: [(1, 4, 6)], video: [(2, 2, 4)]}
    got = judge.rope_positions(ids, grids, {video: 1.65}, 2)
    time = [0, 1, *[2] * 6, 5, 6, 6, 9, 9, 10]
    rows = [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 10]
    columns = [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 10]
    assert got.tolist() == [time, rows, columns]


@given(length=st.integers(4, 5000), fps=st.floats(1, 120))
def test_half_of_the_frames_lasts_half_of_the_clip(length, fps):
    assert judge.time_step(length, fps) == pytest.approx(length / fps / 2)


# The lossy file -------------------------------------------------------------------------------------------------------


def moving(frames=13, height=96, width=128):
    return (tiny_judge.clip(frames, height, width) * 255).to(torch.uint8)


def test_reencoding_loses_a_little_and_always_the_same():
    frames = moving()
    kept = lossy_video.reencode(iter(frames), (0, 4, 8, 12), 10)
    assert kept.shape == (4, 96, 128, 3) and kept.dtype == torch.uint8
    loss = (kept.float() - frames[[0, 4, 8, 12]].float()).abs().mean().item()
    assert 0.1 < loss < 4
    assert torch.equal(kept, lossy_video.reencode(iter(frames), (0, 4, 8, 12), 10))


def test_reencoding_rounds_sides_up_to_blocks():
    kept = lossy_video.reencode(iter(moving(5, 60, 84)), (0, 4), 10)
    assert kept.shape == (2, 64, 96, 3)


def test_a_frame_of_another_size_is_refused():
    frames = [*moving(3), moving(1, 64, 64)[0]]
    with pytest.raises(ValueError, match="Frame 4 of the clip has another size"):
        lossy_video.reencode(iter(frames), (0, 3), 10)


def test_reencoding_is_what_diffusers_writes(tmp_path):
    """The same file but for what changes from machine to machine in the original, too: its threads and CPU tricks."""
    imageio = pytest.importorskip("imageio")
    pytest.importorskip("imageio_ffmpeg")
    av = pytest.importorskip("av")
    frames, keep = moving(), (0, 4, 8, 12)

    def original(*parameters):
        path = str(tmp_path / "clip.mp4")
        with imageio.get_writer(
            path, fps=10, quality=7.5, macro_block_size=16, output_params=list(parameters)
        ) as writer:
            for frame in frames.numpy():
                writer.append_data(frame)
        with av.open(path) as container:
            shown = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
        return torch.from_numpy(np.stack(shown)[list(keep)]).float()

    ours = lossy_video.reencode(iter(frames), keep, 10).float()
    same_settings = original("-x264-params", lossy_video._REPEATABLE)
    one, many = original("-threads", "1"), original("-threads", "4")
    spread = max((one - many).abs().mean().item(), (same_settings - many).abs().mean().item())
    assert (ours - same_settings).abs().mean().item() <= spread / 2
    loss = [(clip - frames[list(keep)].float()).abs().mean().item() for clip in (ours, many)]
    assert loss[0] == pytest.approx(loss[1], rel=0.05)
