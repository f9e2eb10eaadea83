"""What rewards look at: clips read piece by piece, and scores that do not depend on how a cast or a clip is packed."""

from functools import lru_cache

import av
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from idcrafter.rewards import evidence
from idcrafter.rewards.evidence import MAX_CHUNK, NotFiniteError, TensorFrames, VideoFrames, gather_evidence
from idcrafter.rewards.record import clip_record
from idcrafter.subjects.faces import DetectedFace, extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support import video
from support.clips import evidence_of, painted_cast, painted_clip
from support.painted_faces import PaintedFaceAnalyzer, blank, embedding, paint
from support.storage import PeakStorage

# Clips ----------------------------------------------------------------------------------------------------------------


def write_video(path, frames, fps=8, size=(64, 48), keys=12):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", fps, options={"preset": "ultrafast", "g": str(keys), "qp": "4"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


def numbered(count, height=48, width=64):
    """Frames whose brightness is their number."""
    for index in range(count):
        yield np.full((height, width, 3), 20 + index * 200 // count, np.uint8)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A file of 40 frames, 8 a second, in groups of 12."""
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", list(numbered(40)))


def test_a_file_is_read_as_ffmpeg_reads_it(short):
    source, truth = VideoFrames(short), video.frames(short)
    assert (source.length, source.fps) == (40, 8.0)
    frames = list(source.read(range(40)))
    assert all(frame.dtype == torch.float32 and frame.shape == (48, 64, 3) for frame in frames)
    assert np.abs(torch.stack(frames).numpy() * 255 - truth).max() <= 2  # two decoders round colours differently


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=1))
def test_any_frames_of_a_file_are_the_same_as_in_a_full_read(indices):
    source, every = _short_frames()
    wanted = sorted(indices)
    for index, frame in zip(wanted, source.read(wanted), strict=True):
        assert torch.equal(frame, every[index])


@lru_cache(maxsize=1)
def _short_frames():
    import io

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", 8, options={"g": "12", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in numbered(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    source = VideoFrames(data)
    return source, list(source.read(range(40)))


def test_part_of_a_file(short):
    every, part = VideoFrames(short), VideoFrames(short, start=1.0, duration=2.0)
    assert part.length == 16
    assert torch.equal(next(part.read([0])), next(every.read([8])))
    assert VideoFrames(short, start=4.0).length == 8
    with pytest.raises(ValueError, match=r"'short.mp4' has no frames with a time from second 60 on"):
        VideoFrames(short, start=60.0)


def test_files_that_are_no_video(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("nothing")
    with pytest.raises(ValueError, match=r"The video 'notes.mp4' cannot be read"):
        VideoFrames(text)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match=r"'sound.wav' holds no video"):
        VideoFrames(sound)


def test_a_damaged_file_is_named_with_the_frame(short, tmp_path):
    cut = tmp_path / "cut.mp4"
    data = bytearray(short.read_bytes())
    start = data.index(b"mdat") + 100
    data[start : start + 400] = bytes(range(200)) * 2
    cut.write_bytes(data)
    source = VideoFrames(cut)
    try:
        frames = sum(1 for _ in source.read(range(source.length)))
    except RuntimeError as error:
        assert "of the video 'cut.mp4' cannot be decoded" in str(error)
    else:
        assert frames == source.length  # a decoder may conceal the damage; it never returns too few frames


@pytest.mark.parametrize("indices", [[], [3, 2], [1, 1], [-1], [0, 4]])
def test_indices_that_do_not_fit(indices):
    with pytest.raises(ValueError, match="must ascend within 0 to 3"):
        list(TensorFrames(torch.zeros(4, 8, 8, 3)).read(indices))


def test_frames_that_are_no_clip():
    for shape in ((8, 8, 3), (0, 8, 8, 3), (2, 8, 8, 1)):
        with pytest.raises(ValueError, match="A clip needs frames of shape"):
            TensorFrames(torch.zeros(shape))


# Memory ---------------------------------------------------------------------------------------------------------------


class TwoPlaces:
    """Finds a face in the left and in the right half of every frame; who it is never changes."""

    name, licence = "two places", "none needed"

    def analyze_frames(self, frames, on_frame=None):
        faces = []
        for place in (0, 1):
            box = np.array([4 + 32 * place, 8, 28 + 32 * place, 40], np.float32)
            faces.append(DetectedFace(box, 0.9, np.zeros((5, 2), np.float32), embedding(place, 0.8)))
        for _ in frames:
            on_frame()
        return [list(faces) for _ in frames]

    def describe(self):
        return {"name": self.name, "licence": self.licence}


def test_ten_minutes_need_no_more_memory_than_a_few_seconds(tmp_path):
    """Every frame of a real file: alive at once are a chunk and, while it is put together, its single frames."""
    height, width, fps = 48, 64, 6
    count = 600 * fps
    still = [np.full((height, width, 3), value, np.uint8) for value in (40, 90, 140)]
    path = write_video(tmp_path / "long.mp4", (still[index % 3] for index in range(count)), fps, (width, height), 250)
    source = VideoFrames(path)
    assert source.length == count and source.fps == fps
    seen = []
    with PeakStorage() as memory:
        evidence = gather_evidence(
            source, range(count), painted_cast(), TwoPlaces(), on_frame=lambda: seen.append(None)
        )
    assert len(seen) == len(evidence.faces) == count
    assert evidence.identity.coverage.tolist() == [1.0, 1.0] and evidence.identity.events == ()
    assert len(evidence.identity.tracks) == 2
    frame = height * width * 3 * 4
    assert MAX_CHUNK * frame <= memory.peak <= (2 * MAX_CHUNK + 4) * frame
    assert memory.peak < 0.02 * count * frame


def test_large_frames_come_in_smaller_chunks():
    sizes = []

    class Watch(PaintedFaceAnalyzer):
        def analyze_frames(self, frames, on_frame=None):
            sizes.append(tuple(frames.shape[:3]))
            return [[] for _ in frames]

    clip = torch.zeros(20, 1, 1, 3).expand(20, 720, 1280, 3)
    gather_evidence(TensorFrames(clip), range(20), painted_cast(), Watch())
    assert max(count for count, *_ in sizes) <= 9 and sum(count for count, *_ in sizes) == 20
    sizes.clear()
    gather_evidence(TensorFrames(clip[:2].repeat(1, 5, 5, 1)), range(2), painted_cast(), Watch())
    assert [count for count, *_ in sizes] == [1, 1]


# What never changes a score -------------------------------------------------------------------------------------------

SEEN = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 9]), st.sampled_from([0.1, 0.3, 0.6, 0.9]), st.integers(0, 2)),
    max_size=3,
    unique_by=lambda face: face[2],
)
CLIPS = st.lists(SEEN, min_size=1, max_size=8)
PHOTOS = ((1.0, 0.8, 0.6), (0.9, 0.7), (0.95,))
WHO = (0, 1, 2)


def record(clip, cast):
    return clip_record(evidence_of(clip, cast))


def same(a, b, places=5):
    """Two records are equal but for rounding; subjects and events in any order."""
    assert a["score"] == pytest.approx(b["score"], abs=10**-places)
    for field in ("missing", "extra", "swapped", "note"):
        assert a[field] == b[field]
    assert a["subjects"].keys() == b["subjects"].keys()
    for name, figures in a["subjects"].items():
        for field, value in figures.items():
            assert value == pytest.approx(b["subjects"][name][field], abs=10**-places), (name, field)
    assert told(a) == told(b)


def told(record):
    """Events without the order in which a swap names its people."""
    rows = [(e["kind"], tuple(sorted(e["subjects"])), e["first"], e["last"]) for e in record["events"]]
    return sorted(rows)


def subject(i, photos=None):
    values = PHOTOS[i] if photos is None else photos
    pixels = torch.stack([paint(blank(), WHO[i], 20, value) for value in values])
    return make_subject(f"S{i}", "person", "", pixels)


def cast_of(*subjects, no_face="error"):
    cast = make_cast(list(subjects))
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), no_face, "error"))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.permutations(range(3)))
@example([[(0, 0.1, 0)], [(2, 0.9, 0)], [(1, 0.1, 0), (1, 0.1, 2)], [(0, 0.1, 0), (2, 0.3, 2)]], [1, 2, 0])
@example([[(2, 0.3, 0)], [(1, 0.1, 0), (1, 0.1, 2)], [(0, 0.1, 0), (2, 0.3, 2)]], [1, 2, 0])
@example(
    [[(0, 0.1, 2)], [(1, 0.1, 2), (2, 0.3, 0)], [(1, 0.1, 0), (1, 0.1, 2)], [(0, 0.1, 0), (2, 0.1, 2)], [(2, 0.1, 2)]],
    [1, 2, 0],
)
def test_order_of_subjects(frames, order):
    clip = painted_clip(frames)
    same(record(clip, cast_of(*map(subject, range(3)))), record(clip, cast_of(*map(subject, order))))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.permutations(PHOTOS[0]), st.permutations(PHOTOS[1]))
def test_order_of_photos(frames, first, second):
    clip = painted_clip(frames)
    shuffled = cast_of(subject(0, first), subject(1, second))
    same(record(clip, cast_of(subject(0), subject(1))), record(clip, shuffled))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.integers(0, 2), st.integers(0, 2))
def test_subjects_that_are_not_scored_and_photos_without_a_face(frames, at, photo):
    """An object, an animal without a face, and a photo that only fills up a batch."""
    clip = painted_clip(frames)
    people = [subject(0), subject(1)]
    photos = list(people[0].photos)
    photos.insert(photo, blank())
    others = [make_subject("S0", "person", "", torch.stack(photos)), people[1]]
    others[at:at] = [make_subject(*each, "", blank()[None]) for each in (("lamp", "object"), ("cat", "animal"))]
    same(record(clip, cast_of(*people)), record(clip, cast_of(*others, no_face="skip")))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.integers(1, 16), st.integers(1, 16))
def test_borders_of_clip_and_photos(frames, x, y):
    """What a batch of pictures of different size, or a letterbox, puts around them."""

    def pad(images):
        around = blank(images.shape[1] + 2 * y, images.shape[2] + 2 * x).repeat(len(images), 1, 1, 1)
        around[:, y:-y, x:-x] = images
        return around

    clip = painted_clip(frames)
    plain = [subject(0), subject(1)]
    padded = [make_subject(each.name, each.kind, "", pad(torch.stack(each.photos))) for each in plain]
    same(record(clip, cast_of(*plain)), record(pad(clip), cast_of(*padded)))


@settings(max_examples=40, deadline=None)
@given(CLIPS)
def test_ranges(frames):
    found = record(painted_clip(frames), painted_cast())
    assert all(0 <= found[field] <= 1 for field in ("score", "similarity_mean", "similarity_min"))
    for figures in found["subjects"].values():
        assert 0 <= figures["coverage"] <= 1 and 0 <= figures["similarity"] <= 1
        assert figures["similarity_seen"] is None or -1 <= figures["similarity_seen"] <= 1
    for event in found["events"]:
        assert 0 <= event["first"] <= event["last"] < len(frames)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_a_frame_with_nan_is_named(index, value):
    clip = painted_clip([[(0, 0.8, 0), (1, 0.8, 2)]] * 6)
    clip[index, 3, 4, 1] = value
    with pytest.raises(NotFiniteError, match=rf"Frame {index + 1} of the clip holds NaN or infinite pixels"):
        evidence_of(clip, painted_cast())


def test_the_monitor_only_watches():
    clip = painted_clip([[(0, 0.8, 0), (1, 0.6, 2)], [(0, 0.8, 0)]] * 2)
    cast = painted_cast()
    plain = gather_evidence(TensorFrames(clip), range(4), cast)
    watched = gather_evidence(TensorFrames(clip), range(4), cast, monitor=PaintedFaceAnalyzer())
    assert plain.monitor is None and plain.identity.score == watched.identity.score
    np.testing.assert_allclose(watched.monitor, watched.identity.similarity, atol=1e-6)
    assert clip_record(watched)["subjects"]["S1"]["monitor_seen"] == pytest.approx(0.6, abs=1e-5)


def test_the_monitor_has_nothing_to_say_of_a_frame_without_faces():
    clip = painted_clip([[(0, 0.8, 0)], []] * 2)
    watched = gather_evidence(TensorFrames(clip), range(4), painted_cast(), monitor=PaintedFaceAnalyzer()).monitor
    assert np.isfinite(watched[[0, 2], 0]).all() and np.isnan(watched[[1, 3]]).all()


def test_a_clip_keeps_its_size_across_the_parts_that_are_read(monkeypatch):
    class Growing(TensorFrames):
        def read(self, indices):
            for index in indices:
                yield torch.zeros(64 if index < 2 else 80, 96, 3)

    monkeypatch.setattr(evidence, "MAX_CHUNK", 2)
    with pytest.raises(ValueError, match="Frame 3 of the clip has another size"):
        gather_evidence(Growing(torch.zeros(4, 64, 96, 3)), range(4), painted_cast())
