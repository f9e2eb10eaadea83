"""What is cut out of clips: scenes, people, windows, boxes between sightings, names and pictures of references."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.training.dataset import BuildSettings
from idcrafter.training.dataset.people import Person, Scene, find_people, find_scenes
from idcrafter.training.dataset.plan import (
    Candidate,
    choose_references,
    default_caption,
    fill_gaps,
    judge_person,
    name_people,
    place_windows,
    unknown_name,
)
from idcrafter.training.dataset.raw import Caption, clip_names, find_clips, read_caption
from idcrafter.training.dataset.seen import SeenClip
from support.painted_faces import embedding

ONE, TWO, THREE = 0, 1, 2


def seen(*moments, size=(100, 200), change=None, sharp=100.0):
    """A clip in which moment t shows faces (who, x) or (who, x, side), by `moments[t]`."""
    rows = [(t, who, x, rest[0] if rest else 20) for t, faces in enumerate(moments) for who, x, *rest in faces]
    return SeenClip(
        np.array(size),
        np.array([t for t, *_ in rows], np.int64),
        np.array([(x, 10, x + side, 10 + side) for _, _, x, side in rows], float).reshape(-1, 4),
        np.full(len(rows), 0.9),
        np.array([embedding(who) for _, who, *_ in rows], np.float32).reshape(len(rows), -1),
        np.full(len(rows), sharp),
        np.zeros(len(moments)) if change is None else np.array(change),
    )


def people_of(clip, scenes=None, across=False):
    return find_people([clip], [scenes or [Scene(0, clip.length)]], [8.0], 0.5, across)[0]


def test_cuts_are_where_the_picture_changes_at_once():
    change = np.full(30, 0.02)
    change[[0, 12]] = 0.0, 0.3
    assert find_scenes(change) == [Scene(0, 12), Scene(12, 30)]
    assert find_scenes(np.full(30, 0.2)) == [Scene(0, 30)]  # everything moves all the time: a pan
    assert find_scenes(np.full(30, 0.01)) == [Scene(0, 30)]
    change[13] = 0.3
    assert find_scenes(change) == [Scene(0, 12), Scene(12, 13), Scene(13, 30)]
    assert find_scenes(np.zeros(1)) == [Scene(0, 1)]


def test_tracks_of_one_person_are_joined_over_gaps_and_cuts():
    shown = [(ONE, 20), (TWO, 100)]
    clip = seen(*[shown] * 6, *[[]] * 10, *[[(TWO, 20), (ONE, 100)]] * 6)
    found = people_of(clip, [Scene(0, 12), Scene(12, 22)])
    assert [list(person.faces) for person in found] == [[*range(6), *range(16, 22)]] * 2
    assert [int(clip.embeddings[person.faces[20]].argmax()) for person in found] == [ONE, TWO]  # as they first stood


def test_two_who_look_alike_and_are_there_together_stay_two():
    found = people_of(seen(*[[(ONE, 20), (ONE, 150)]] * 5))
    assert len(found) == 2 and found[0].number != found[1].number


def test_people_are_joined_across_clips_only_when_they_should_be():
    clips, scenes = [seen(*[[(ONE, 20)]] * 3), seen(*[[(TWO, 20), (ONE, 99)]] * 3)], [[Scene(0, 3)]] * 2
    apart = find_people(clips, scenes, [8, 8], 0.5, False)
    together = find_people(clips, scenes, [8, 8], 0.5, True)
    assert apart[0][0].number not in [person.number for person in apart[1]]
    assert together[0][0].number == together[1][1].number != together[1][0].number


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 200), st.integers(0, 9), st.integers(0, 99))
def test_windows_lie_in_their_scene_and_do_not_touch(length, start, seed):
    scene, wanted = Scene(start, start + length), BuildSettings(frames=5)
    windows = place_windows(scene, wanted, np.random.default_rng(seed))
    assert len(windows) == length // 5
    assert all(window.length == 5 for window in windows)
    assert windows[0].start >= scene.start and windows[-1].stop <= scene.stop
    assert all(a.stop <= b.start for a, b in zip(windows, windows[1:], strict=False))
    if len(windows) == 1:
        assert windows[0].start == scene.start or windows[0].stop == scene.stop


def test_boxes_move_straight_over_short_gaps_only():
    box = (0.0, 0.0, 0.2, 0.2)
    moved = (0.4, 0.0, 0.6, 0.2)
    filled = fill_gaps({1: box, 5: moved, 12: box}, 14)
    assert filled[0] is None and filled[1] == box and filled[5] == moved
    assert filled[3] == pytest.approx((0.2, 0.0, 0.4, 0.2))
    assert filled[6:12] == (None,) * 6 and filled[12] == box and filled[13] is None


def judged(clip, **changes):
    person = people_of(clip)[0]
    return judge_person(person, clip, Scene(0, clip.length), BuildSettings(frames=9, min_face=16, **changes))


def test_who_counts_in_a_window():
    candidate, reason = judged(seen(*[[(ONE, 20)]] * 9))
    assert reason == "" and (candidate.side, candidate.left) == (20, 30)
    assert candidate.boxes[0] == pytest.approx((0.1, 0.1, 0.2, 0.3))
    assert judged(seen(*[[(ONE, 20)]] * 5, *[[]] * 4))[1].startswith("the face is found in 5 of 9 frames")
    assert "is 12 px large, smaller than 16" in judged(seen(*[[(ONE, 20, 12)]] * 9))[1]
    assert "blurred (sharpness 9, less than 40)" in judged(seen(*[[(ONE, 20)]] * 9, sharp=9.0))[1]


def references(clip, window, **changes):
    """(moment, margins) of the references of the first person."""
    wanted = BuildSettings(frames=5, min_face=16, **changes)
    people = people_of(clip)
    candidate = Candidate(people[0], 20, 0, ())
    return [(m.moment, m.margins) for m in choose_references(candidate, 0, window, [clip], [8.0], [people], wanted)]


def test_references_keep_their_distance_from_the_window():
    clip = seen(*[[(ONE, 20)]] * 20)
    chosen = references(clip, Scene(8, 13), references=20, gap=0.25)  # two frames
    assert {moment for moment, _ in chosen} == {*range(6), *range(15, 20)}
    assert references(clip, Scene(0, 20)) == []
    assert len(references(clip, Scene(8, 13))) == 3


def test_a_reference_shows_nobody_else():
    alone = references(seen(*[[(ONE, 20), (TWO, 150)]] * 20), Scene(0, 5))
    assert all(margins == (0.4, 1.0) for _, margins in alone)
    near = references(seen(*[[(ONE, 20), (TWO, 53)]] * 20), Scene(0, 5))  # 13 px between them
    assert all(margins == (0.4, 0.8) for _, margins in near)
    close = references(seen(*[[(ONE, 20), (TWO, 42)]] * 20), Scene(0, 5))
    assert close and all(margins == (0.2,) for _, margins in close)
    assert references(seen(*[[(ONE, 20), (TWO, 25)]] * 20), Scene(0, 5)) == []


def test_names_go_to_those_who_fill_most_of_the_clip():
    clip = seen(*[[(ONE, 10), (TWO, 60, 18), (THREE, 120)]] * 9)
    people = people_of(clip)
    caption = Caption("Ada and Cy.", ("Ada", "Cy"), ("a woman", ""))
    names, descriptions = name_people(people, clip, caption)
    assert names == {people[0].number: "Ada", people[2].number: "Cy"}
    assert descriptions == {people[0].number: "a woman", people[2].number: ""}
    assert list(name_people(people, clip, Caption("They talk."))[0].values()) == ["Person 1", "Person 2", "Person 3"]
    with pytest.raises(ValueError, match="names 2 people, and 1 have been found"):
        name_people([Person(0, {0: 0})], clip, caption)
    assert unknown_name(caption, ["Ada"]) == "Cy" and unknown_name(caption, ["Cy", "Ada"]) is None


def test_default_captions():
    assert default_caption(["Ada"]) == "Ada is in the picture."
    assert default_caption(["Ada", "Bo", "Cy"]) == "From left to right there are Ada, Bo and Cy."


def test_names_for_files(tmp_path):
    for name in ("B (1).mp4", "a/clip.mov", "a_clip.mp4", "note.txt", "c.MKV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files = find_clips(tmp_path)
    assert [path.name for path in files] == ["B (1).mp4", "clip.mov", "a_clip.mp4", "c.MKV"]
    names = clip_names(files, tmp_path)
    assert names[0] == "b-1" and names[3] == "c" and names[1] != names[2]
    assert all(name.startswith("a-clip-") for name in names[1:3])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("They talk.", Caption("They talk.")),
        (
            "Subjects: Ada = a woman  in red; Bo\n Ada\nhugs Bo.",
            Caption("Ada hugs Bo.", ("Ada", "Bo"), ("a woman in red", "")),
        ),
        ("", Caption()),
    ],
)
def test_captions_beside_clips(tmp_path, text, expected):
    (tmp_path / "a.txt").write_text(text, "utf-8")
    assert read_caption(tmp_path / "a.mp4") == expected
    assert read_caption(Path("nowhere.mp4")) == Caption()


@pytest.mark.parametrize(
    "data", [b"subjects: Ada; ADA\nx", b"subjects: Ada;\nx", b"\xff\xfe", b"subjects:" + b"x;" * 9]
)
def test_captions_that_cannot_be_used(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError):
        read_caption(tmp_path / "a.mp4")
