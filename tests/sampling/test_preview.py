"""Scores of previews: which frames are decoded, and that the score is the one of finished takes."""

import pytest
import torch

from support.painted_faces import PaintedFaceAnalyzer, blank, paint


@pytest.fixture(scope="module")
def preview(pack):
    return pack.submodule("idcrafter.sampling.preview")


@pytest.fixture(scope="module")
def people(pack):
    subjects, faces = pack.submodule("idcrafter.subjects.subject"), pack.submodule("idcrafter.subjects.faces")
    cast = subjects.make_cast(
        [subjects.make_subject(name, "person", "", paint(blank(), k, 20)[None]) for k, name in enumerate(["Ada", "Bo"])]
    )
    return cast.with_faces(faces.extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))


class Vae:
    """Causal in time as Wan's: 1 frame for the first latent frame, 4 for each further one. The latent's channels are
    the likenesses of Ada and Bo."""

    def __init__(self):
        self.decoded = []

    def decode(self, samples):
        self.decoded.append(tuple(samples.shape[:3:2]))
        clips = []
        for latent in samples:
            clip = blank(count=4 * latent.shape[1] - 3)
            for t, frame in enumerate(clip):
                ada, bo = latent[:, (t + 3) // 4].amax((1, 2)).tolist()
                paint(paint(frame, 0, 10, ada), 1, 60, bo)
            clips.append(clip)
        return torch.stack(clips)


def latent_of(*likenesses):
    """[1, 2, T, 2, 2] from (Ada, Bo) for each latent frame."""
    return torch.tensor(likenesses).T.reshape(1, 2, -1, 1, 1).repeat(1, 1, 1, 2, 2)


def test_a_short_clip_is_seen_whole(preview, people):
    vae, whole = Vae(), latent_of((0.9, 0.5), (0.8, 0.6), (0.7, 0.7))
    frames = preview.decode_some(vae, whole, 5)
    assert torch.equal(frames[:, 8:], Vae().decode(whole)[0][:, 8:])  # below the stripe that marks the frame
    assert vae.decoded == [(1, 1), (2, 2)]  # the first latent frame, then two pairs in one batch


def test_of_a_long_clip_a_few_latent_frames_are_decoded_with_the_one_before(preview, people):
    whole = latent_of(*[(t / 21, 1 - t / 21) for t in range(21)])
    vae = Vae()
    frames = preview.decode_some(vae, whole, 3)
    all_frames = Vae().decode(whole)[0]
    assert vae.decoded == [(1, 1), (2, 2)]
    assert torch.equal(frames[:, 8:], all_frames[[0, 37, 38, 39, 40, 77, 78, 79, 80], 8:])
    assert len(preview.decode_some(Vae(), whole, 1)) == 1


def test_the_score_is_that_of_finished_takes_on_these_frames(preview, pack, people):
    record = pack.submodule("idcrafter.rewards.record")
    whole = latent_of((0.9, 0.5), (0.8, 0.6), (0.7, 0.7))
    frames, score = Vae().decode(whole)[0], preview.PreviewScorer(Vae(), people)
    assert score(whole) == pytest.approx(record.score_clip(frames, range(9), people)["score"], abs=1e-4)
    assert score.seconds["decode"] > 0 and score.seconds["score"] > 0
    better = latent_of((0.9, 0.8), (0.9, 0.8), (0.9, 0.8))
    assert score(better) > score(whole)
    seen = []
    score(whole, lambda: seen.append(1))
    assert len(seen) == 9  # where an interrupt takes effect


def test_the_real_vae_gives_the_frames_of_the_clip(preview, stack):
    samples = torch.randn((1, 16, 4, 6, 8), generator=torch.Generator().manual_seed(1))
    frames = preview.decode_some(stack.vae, samples, 5)
    whole = stack.vae.decode(samples)[0]
    assert frames.shape == whole.shape == (13, *whole.shape[1:])
    assert torch.allclose(frames[:5], whole[:5], atol=1e-3)  # nothing is missing before the second latent frame


def test_a_picture_is_decoded_too(preview):
    class PictureVae:
        def decode(self, samples):
            return torch.zeros((len(samples), 16, 16, 3))

    assert preview.decode_some(PictureVae(), torch.zeros((1, 4, 2, 2)), 5).shape == (1, 16, 16, 3)


def test_what_is_not_finite_has_no_score(preview, people):
    class Broken(Vae):
        def decode(self, samples):
            return super().decode(samples) * float("nan")

    whole = latent_of((0.9, 0.5), (0.8, 0.6))
    assert preview.PreviewScorer(Vae(), people)(whole * float("inf")) is None
    assert preview.PreviewScorer(Broken(), people)(whole) is None


def test_a_cast_without_faces_is_refused(preview, people):
    with pytest.raises(ValueError, match="IDCrafterExtractFaces"):
        preview.PreviewScorer(Vae(), people.with_faces(None))
