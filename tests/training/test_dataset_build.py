"""A data set of rendered clips, of which is known who is where: people, references, labels, captions, and going on."""

import json
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from idcrafter.nano import world
from idcrafter.nano.recipes import data
from idcrafter.rewards.evidence import VideoFrames
from idcrafter.rewards.lossy_video import write_h264
from idcrafter.training.dataset import BuildSettings, build_dataset, clip_cast, read_dataset, token_owners
from support.planted import portraits

ROOT = Path(__file__).resolve().parents[2]
FACES = ROOT / "idcrafter" / "nano" / "weights" / "insightface" / "models" / "idcrafter_nano"
# Nano's faces are 30 pixels large, and its recogniser gives strangers up to 0.6.
SETTINGS = BuildSettings(frames=9, min_face=20, same=0.7, gap=0.25)
IDENTITIES = [world.sample_identity(number) for number in islice(world.numbers_of_split("val", 900), 6)]
SLOW = 3  # 25 frames
CASTS = {"a_pair.mp4": (0, 1), "b_cut.mp4": (2, 3), "c_short.mp4": (0, 2), "sub/d_three.mp4": (1, 3, 4)}
LICENCE = "Apache-2.0, rendered"


class Counting:
    """An analyzer that counts the frames it has seen."""

    def __init__(self, analyzer):
        self.analyzer, self.frames = analyzer, 0

    def __getattr__(self, name):
        return getattr(self.analyzer, name)

    def analyze_frames(self, frames, on_frame=None):
        self.frames += len(frames)
        return self.analyzer.analyze_frames(frames, on_frame)


@pytest.fixture(scope="module")
def analyzer(pack):
    return Counting(pack.submodule("model_loaders.faces").load_face_analyzer(FACES, 128, "cpu", "Apache-2.0"))


def save(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_h264(file, (torch.from_numpy(np.ascontiguousarray(frame)) for frame in frames), Fraction(8), 4, 2)


def planted(cast, seed, slow=SLOW, plan="plain"):
    return world.plant_clip(plan, tuple(IDENTITIES[i] for i in cast), IDENTITIES[5], seed, 1, slow)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder of raw clips, and {file: (faces [frame][place], identities [place])}."""
    folder = tmp_path_factory.mktemp("raw")
    truth = {}
    for seed, (file, cast) in enumerate(CASTS.items(), 1):
        clip = planted(cast, seed, 1 if "short" in file else SLOW)
        frames, faces = clip.frames, clip.faces
        if "cut" in file:
            other = planted(cast, seed + 40)
            frames, faces = np.concatenate([frames, other.frames]), faces + other.faces
        save(folder / file, frames)
        truth[file] = (faces, cast)
    blurred = planted((1, 4), 9).frames.copy()
    blurred[:, :, 48:] = np.stack([cv2.GaussianBlur(frame[:, 48:], (0, 0), 4) for frame in blurred])
    save(folder / "e_blurred.mp4", blurred)
    (folder / "f_copy.mp4").write_bytes((folder / "a_pair.mp4").read_bytes())
    (folder / "g_broken.mp4").write_bytes(b"no video")
    save(folder / "h_empty.mp4", np.full((12, 64, 96, 3), 90, np.uint8))
    (folder / "a_pair.txt").write_text("subjects: Ada = a blue puppet; Bo\nAda looks\nat Bo.\n", "utf-8")
    return folder, truth


@pytest.fixture(scope="module")
def built(raw, analyzer, tmp_path_factory):
    """(folder, report, data set) of all of them, with references across clips."""
    out = tmp_path_factory.mktemp("built")
    settings = BuildSettings(frames=9, min_face=20, same=0.7, gap=0.25, across=True)
    report = build_dataset(raw[0], out, analyzer, LICENCE, settings)
    return out, report, read_dataset(out)


def left_out(report, clip):
    return [(entry["what"], entry["reason"]) for entry in report["left_out"] if entry["clip"] == clip]


def place_of(box, faces):
    """The place whose true box this box (fractions) overlaps by more than half, else None."""
    box = np.array(box) * (96, 64, 96, 64)
    for place, face in enumerate(faces):
        if face is not None:
            shared = np.prod(np.maximum(np.minimum(box[2:], face.box[2:]) - np.maximum(box[:2], face.box[:2]), 0))
            if shared > 0.5 * max(np.prod(box[2:] - box[:2]), np.prod(face.box[2:] - face.box[:2])):
                return place
    return None


def rows(built, raw):
    """(clip, its part of the report, true faces of its frames, true identities) of the clips with a known truth."""
    _, report, dataset = built
    for clip, own in zip(dataset.clips, report["clips"], strict=True):
        if own["clip"] in raw[1]:
            faces, cast = raw[1][own["clip"]]
            yield clip, own, faces[own["first"] - 1 : own["last"]], cast


def test_everybody_is_found_where_they_are(built, raw):
    files = [own["clip"] for own in built[1]["clips"]]
    assert {file: files.count(file) for file in CASTS} == dict(zip(CASTS, (2, 4, 1, 2), strict=True))
    for clip, own, faces, cast in rows(built, raw):
        assert (clip.length, clip.width, clip.height, clip.fps) == (9, 96, 64, 8.0)
        assert clip.licence == LICENCE and clip.source.startswith(own["clip"])
        assert len(clip.subjects) == len(cast)
        for subject in clip.subjects:
            seen = [place_of(box, frame) for box, frame in zip(subject.faces, faces, strict=True) if box is not None]
            known = [place for place in seen if place is not None]
            assert len(set(known)) == 1 and len(known) >= 0.8 * len(faces)
        middles = [np.mean([(b[0] + b[2]) / 2 for b in s.faces if b is not None]) for s in clip.subjects]
        assert middles == sorted(middles)


def test_the_frames_are_those_of_the_window(built, raw):
    for clip, own, _, _ in rows(built, raw):
        frames = list(VideoFrames(raw[0] / own["clip"]).read(range(own["first"] - 1, own["last"])))
        made = list(VideoFrames(clip.video).read(range(clip.length)))
        assert max(float((a - b).abs().mean()) for a, b in zip(frames, made, strict=True)) < 0.02


def test_no_window_has_a_cut(built):
    spans = [(own["first"], own["last"]) for own in built[1]["clips"] if own["clip"] == "b_cut.mp4"]
    assert all(last <= 25 or first > 25 for first, last in spans)
    assert all(b[0] > a[1] for a, b in zip(spans, spans[1:], strict=False))


def test_references_are_from_other_moments_and_as_the_report_says(built, raw):
    count = across = 0
    for clip, own, _, _ in rows(built, raw):
        for subject, made in zip(clip.subjects, own["subjects"], strict=True):
            pictures = iter(subject.references)
            for origin in made["references"]:
                gap = 8 * SETTINGS.gap
                outside = origin["frame"] < own["first"] - gap or origin["frame"] > own["last"] + gap
                assert origin["clip"] != own["clip"] or outside
                across += origin["clip"] != own["clip"]
                frame = next(VideoFrames(raw[0] / origin["clip"]).read([origin["frame"] - 1]))
                for _ in origin["margins"]:
                    crop = np.asarray(Image.open(next(pictures)), np.float32)
                    found = cv2.matchTemplate((frame.numpy() * 255).astype(np.float32), crop, cv2.TM_SQDIFF)
                    assert found.min() / crop.size < 1  # it is a piece of that very frame
                    count += 1
            assert next(pictures, None) is None
    assert count > 30 and across > 5


def test_references_show_the_right_person(built, raw, analyzer):
    known = portraits(analyzer, IDENTITIES)
    right = total = 0
    for clip, _, faces, cast in rows(built, raw):
        for subject, one in zip(clip.subjects, clip_cast(clip).subjects, strict=True):
            places = [place_of(box, frame) for box, frame in zip(subject.faces, faces, strict=True) if box is not None]
            who = cast[next(place for place in places if place is not None)]
            for photo in one.photos:
                seen = max(analyzer.analyze(photo), key=lambda face: np.prod(face.box[2:] - face.box[:2]), default=None)
                total += 1
                right += seen is not None and int((known @ seen.embedding).argmax()) == who
    assert right / total >= 0.95, (right, total)


def test_labels_agree_with_the_truth(built, raw):
    """Where both the nano recipe, which knows the truth, and the labels made of tracked faces name somebody."""
    both = agree = named = 0
    for clip, _, faces, _ in rows(built, raw):
        labels = token_owners(clip, 96, 64)
        order = [
            next(p for p in map(place_of, s.faces, faces) if p is not None) for s in clip.subjects
        ]  # place of each subject
        whole = data._owners(world.Clip(None, None, tuple(tuple(frame[p] for p in order) for frame in faces)))
        truth = whole[..., : labels.shape[-1]]  # the recipe's are as wide as its widest clip
        assert labels.shape == truth.shape
        shared = (labels >= 0) & (truth >= 0)
        both, agree = both + int(shared.sum()), agree + int((labels == truth)[shared].sum())
        named += int((truth >= 0).sum())
    assert agree / both >= 0.98, (agree, both)
    assert both / named >= 0.6, (both, named)


def test_what_is_left_out_says_why(built):
    report = built[1]
    assert left_out(report, "g_broken.mp4")[0][0] == "clip"
    assert "cannot be read" in left_out(report, "g_broken.mp4")[0][1]
    assert left_out(report, "f_copy.mp4") == [("clip", "it is the same file as 'a_pair.mp4'")]
    assert left_out(report, "h_empty.mp4") == [("clip", "no face is found in it")]
    blurred = left_out(report, "e_blurred.mp4")
    assert blurred and all(what == "person Person 2" and "is blurred" in why for what, why in blurred)
    assert report["raw_clips"] == 8 and report["faces"]["licence"] == "Apache-2.0"
    for own in (own for own in report["clips"] if own["clip"] == "e_blurred.mp4"):
        assert [subject["name"] for subject in own["subjects"]] == ["Person 1"]


def test_captions(built):
    clips = {own["video"]: clip for own, clip in zip(built[1]["clips"], built[2].clips, strict=True)}
    pair = next(clip for video, clip in clips.items() if "a-pair" in video)
    assert (pair.caption, [s.name for s in pair.subjects]) == ("Ada looks at Bo.", ["Ada", "Bo"])
    assert pair.prompt() == "A blue puppet looks at a person."
    three = next(clip for video, clip in clips.items() if "d-three" in video)
    assert three.caption == "From left to right there are Person 1, Person 2 and Person 3."
    assert three.prompt() == "From left to right there are a person, a person and a person."


def test_masks_are_the_regions_of_the_faces(built):
    """Labels from the mask files are those from the faces, which the same regions are made of."""
    from dataclasses import replace

    for clip in built[2].clips[:3]:
        plain = replace(clip, subjects=tuple(replace(subject, masks=None) for subject in clip.subjects))
        assert torch.equal(token_owners(clip, 96, 64), token_owners(plain, 96, 64))
        assert all("no segmentation" in subject.mask_source for subject in clip.subjects)


def test_without_other_clips_a_short_one_has_no_references(raw, analyzer, built, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    (one / "c_short.mp4").write_bytes((raw[0] / "c_short.mp4").read_bytes())
    with pytest.raises(ValueError, match="Nothing of the clips .* no other moment of this clip"):
        build_dataset(one, tmp_path / "out", analyzer, LICENCE, SETTINGS)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["clips"] == [] and not (tmp_path / "out" / "metadata.jsonl").exists()
    short = next(own for own in built[1]["clips"] if own["clip"] == "c_short.mp4")
    origins = {origin["clip"] for subject in short["subjects"] for origin in subject["references"]}
    assert "c_short.mp4" not in origins and origins <= set(CASTS)


class Stopped(Exception):
    pass


def test_an_interrupted_build_goes_on_and_ends_the_same(raw, analyzer, built, tmp_path):
    """Stopped while clips are looked at, then while windows are written; then everything is known already."""
    settings = BuildSettings(frames=9, min_face=20, same=0.7, gap=0.25, across=True)
    before = analyzer.frames
    told = []

    def stop_at(words):
        def tell(done, total, what):
            told.append((done, total, what))
            if words in what and "known" not in what:
                raise Stopped

        return tell

    with pytest.raises(Stopped):
        build_dataset(raw[0], tmp_path, analyzer, LICENCE, settings, on_progress=stop_at("c_short.mp4"))
    with pytest.raises(Stopped):
        build_dataset(raw[0], tmp_path, analyzer, LICENCE, settings, on_progress=stop_at("b-cut-"))
    assert not (tmp_path / "metadata.jsonl").exists()
    build_dataset(raw[0], tmp_path, analyzer, LICENCE, settings, on_progress=lambda *step: told.append(step))
    assert "a_pair.mp4 (known)" in {what for _, _, what in told}
    assert told[-1][0] == told[-1][1]
    # every clip once; the one in which it stopped may have been begun twice
    assert 25 + 50 + 9 + 25 + 25 + 12 <= analyzer.frames - before <= 25 + 50 + 2 * 9 + 25 + 25 + 12
    for name in ("metadata.jsonl", "report.json"):
        assert (tmp_path / name).read_bytes() == (built[0] / name).read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".part")]

    frames, times = analyzer.frames, {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    build_dataset(raw[0], tmp_path, analyzer, LICENCE, settings)
    assert analyzer.frames == frames
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()} == times
    next((tmp_path / "references").rglob("*.png")).unlink()  # a file that is lost is made again
    build_dataset(raw[0], tmp_path, analyzer, LICENCE, settings)
    assert (tmp_path / "metadata.jsonl").read_bytes() == (built[0] / "metadata.jsonl").read_bytes()
    read_dataset(tmp_path)


def test_captions_by_a_callback_and_people_who_are_not_kept(raw, analyzer, tmp_path):
    folder = tmp_path / "clips"
    for name in ("a_pair.mp4", "a_pair.txt", "e_blurred.mp4"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes((raw[0] / name).read_bytes())
    (folder / "e_blurred.txt").write_text("subjects: Cy; Di\nCy and Di talk.")

    def caption(source, indices, names):
        return f"{' and '.join(names)} in {len(indices)} of {source.length} frames."

    report = build_dataset(folder, tmp_path / "one", analyzer, LICENCE, SETTINGS, caption)
    reasons = [reason for what, reason in left_out(report, "e_blurred.mp4") if what == "window"]
    assert reasons == ["its caption speaks of 'Di', who is left out"] * 2
    assert {clip.caption for clip in read_dataset(tmp_path / "one").clips} == {"Ada looks at Bo."}
    (folder / "a_pair.txt").unlink()
    (folder / "e_blurred.txt").write_text("subjects: Cy; Di; Ed\nCy.")
    report = build_dataset(folder, tmp_path / "two", analyzer, LICENCE, SETTINGS, caption)
    assert left_out(report, "e_blurred.mp4") == [("clip", "its caption names 3 people, and 2 have been found")]
    captions = {clip.caption for clip in read_dataset(tmp_path / "two").clips}
    assert captions == {"Person 1 and Person 2 in 9 of 25 frames."}


def test_what_cannot_be_built_is_said(raw, analyzer, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no clips"):
        build_dataset(tmp_path, tmp_path.parent / "out", analyzer, LICENCE)
    with pytest.raises(ValueError, match="lie in each other"):
        build_dataset(raw[0], raw[0] / "out", analyzer, LICENCE)
    with pytest.raises(ValueError, match="licence of the clips is missing"):
        build_dataset(raw[0], tmp_path, analyzer, " ")
    for wrong, message in (
        ({"frames": 8}, r"give 4 n \+ 1"),
        ({"fps": 0.0}, "above 0"),
        ({"min_face": 4}, "too small to be references"),
        ({"references": 0}, "at least 1 reference"),
        ({"same": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            BuildSettings(**wrong)
