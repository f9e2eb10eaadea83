"""The nano face pack: a detector and a recogniser for puppets, exported as ONNX that ``insightface.app.FaceAnalysis``
loads.

The recogniser is trained with a supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362) over puppets that
it sees only once, so it learns to compare faces rather than to name the training set. The detector is trained like
SCRFD, anchor points against boxes and five landmarks, without its assignment search: a face belongs to the one level
that fits its size.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ...training.loop import Trainer
from ..world import numbers_of_split, render_clip, render_photo, sample_clip_spec, sample_identity
from ..world.scene import FRAMES
from .core import device, use_comfyui
from .nets import ANCHORS, STRIDES, Detector, Recogniser, initialise

PACK, MONITOR_PACK = "idcrafter_nano", "idcrafter_nano_monitor"
RECOGNISER_STEPS, IDENTITIES, VIEWS, TEMPERATURE = 450, 48, 3, 0.1
DETECTOR_STEPS, DETECTOR_BATCH, DETECTOR_SIZE = 600, 32, 128


def _operations():
    use_comfyui()
    import comfy.ops

    return comfy.ops.disable_weight_init


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, noise and colour shifts such as small generated videos have; uint8 in and out."""
    import cv2

    out = image.astype(np.float32)
    if rng.uniform() < 0.5:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.3))
    if rng.uniform() < 0.3:
        out += rng.normal(0, rng.uniform(1, 8), out.shape)
    out = out * rng.uniform(0.92, 1.08, 3) + rng.uniform(-6, 6)
    return out.clip(0, 255).astype(np.uint8)


def aligned_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """112 x 112 crop by insightface's own five-point alignment."""
    from insightface.utils.face_align import norm_crop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm_crop(image, landmarks.astype(np.float32))


def _recognition_batch(seed: int, n: int) -> torch.Tensor:
    rng = np.random.default_rng((seed, n))
    numbers = numbers_of_split("train", int(rng.integers(0, 10_000_000)))
    crops = []
    for _ in range(IDENTITIES):
        identity = sample_identity(next(numbers))
        for _ in range(VIEWS):
            size = int(rng.integers(44, 110))
            image, face = render_photo(identity, int(rng.integers(0, 2**31)), size)
            eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
            landmarks = face.landmarks + rng.normal(0, 0.05 * eyes, (5, 2))
            crops.append(aligned_crop(degrade(image, rng), landmarks))
    batch = torch.from_numpy(np.stack(crops)).to(device())
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def _contrastive(model, n: int, seed: int) -> dict[str, torch.Tensor]:
    z = functional.normalize(model(_recognition_batch(seed, n)), dim=1)
    similarity = z @ z.T
    labels = torch.arange(IDENTITIES, device=z.device).repeat_interleave(VIEWS)
    same = labels[:, None] == labels[None]
    self_ = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (similarity / TEMPERATURE).masked_fill(self_, float("-inf"))
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    positive = same & ~self_
    loss = -log_probability[positive].mean()
    return {
        "loss": loss,
        "same": similarity[positive].mean().detach(),
        "other": similarity[~same].mean().detach(),
        "hardest": similarity.masked_fill(same, -1).amax(1).mean().detach(),
    }


def _detection_sample(rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """A square canvas with a picture in its upper left corner (as insightface pads), and the faces on it."""
    import cv2

    numbers = numbers_of_split("train", int(rng.integers(0, 10_000_000)))
    faces: list = []
    if rng.uniform() < 0.7:
        identities = tuple(sample_identity(next(numbers)) for _ in range(int(rng.integers(1, 4))))
        clip = render_clip(sample_clip_spec(identities, int(rng.integers(0, 2**31))), (int(rng.integers(0, FRAMES)),))
        image, faces = clip.frames[0], [x for x in clip.faces[0] if x is not None]
    else:
        image, face = render_photo(
            sample_identity(next(numbers)), int(rng.integers(0, 2**31)), int(rng.integers(64, 200))
        )
        faces = [face]
    image = image.copy()
    if rng.uniform() < 0.2:  # a head painted over is no face
        for face in faces:
            x0, y0, x1, y1 = np.clip(face.box.astype(int), 0, None)
            image[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = (
                rng.integers(0, 255, 3) if rng.uniform() < 0.5 else rng.integers(0, 255, (1, 1, 3))
            )
        faces = []
    image = degrade(image, rng)
    scale = DETECTOR_SIZE / max(image.shape[:2]) * (1.0 if rng.uniform() < 0.6 else rng.uniform(0.45, 1.0))
    small = cv2.resize(image, None, fx=scale, fy=scale)
    canvas = np.zeros((DETECTOR_SIZE, DETECTOR_SIZE, 3), np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small[:DETECTOR_SIZE, :DETECTOR_SIZE]
    return canvas, [(face.box * scale, face.landmarks * scale) for face in faces]


def _level_of(size: float) -> int:
    return 0 if size < 26 else 1 if size < 52 else 2


def _detection_batch(seed: int, n: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Images [B, 3, S, S] and, per stride, targets [B, h, w, 16]: weight of the score, score, distances, landmark
    offsets.
    """
    rng = np.random.default_rng((seed, n))
    images, targets = (
        [],
        [np.zeros((DETECTOR_BATCH, DETECTOR_SIZE // s, DETECTOR_SIZE // s, 16), np.float32) for s in STRIDES],
    )
    for t in targets:
        t[..., 0] = 1
    for b in range(DETECTOR_BATCH):
        canvas, faces = _detection_sample(rng)
        images.append(canvas)
        for box, landmarks in faces:
            centre, size = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max())
            for level, stride in enumerate(STRIDES):
                count = DETECTOR_SIZE // stride
                ys, xs = np.mgrid[:count, :count] * stride
                distance = np.maximum(abs(xs - centre[0]), abs(ys - centre[1]))
                near = distance < 0.5 * size
                inside = distance < max(0.22 * size, 0.55 * stride)
                target = targets[level][b]
                if level != _level_of(size):  # there it is background: an eye is no small face
                    continue
                target[..., 0][near & (target[..., 1] == 0)] = 0  # neither face nor background
                target[inside, 0], target[inside, 1] = 1, 1
                points = np.stack([xs[inside], ys[inside]], axis=1)
                target[inside, 2:6] = np.concatenate([points - box[:2], box[2:] - points], axis=1) / stride
                target[inside, 6:] = ((landmarks[None] - points[:, None]) / stride).reshape(-1, 10)
    batch = torch.from_numpy(np.stack(images)).to(device()).permute(0, 3, 1, 2).float()
    return (batch - 127.5) / 128, [torch.from_numpy(t).to(device()) for t in targets]


def _detection(model, n: int, seed: int) -> dict[str, torch.Tensor]:
    images, targets = _detection_batch(seed, n)
    scores = boxes = points = positives = 0.0
    for out, target in zip(model.features(images), targets, strict=True):
        target = target[:, :, :, None].expand(-1, -1, -1, ANCHORS, -1)
        logits, weight, label = out[..., 0], target[..., 0], target[..., 1]
        probability = logits.sigmoid()
        focal = (
            weight
            * functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
            * (label - probability).abs().pow(2).detach()
        )
        scores = scores + focal.sum()
        hit = label > 0
        positives = positives + hit.sum()
        # in pixels relative to the level's typical face, so that no level dominates
        boxes = boxes + functional.smooth_l1_loss(out[..., 1:5][hit], target[..., 2:6][hit], reduction="sum", beta=0.1)
        points = points + functional.smooth_l1_loss(out[..., 5:][hit], target[..., 6:][hit], reduction="sum", beta=0.1)
    positives = positives.clamp(min=1)
    loss = 4 * scores / positives + boxes / positives / 4 + points / positives / 5
    return {
        "loss": loss,
        "score": (scores / positives).detach(),
        "box": (boxes / positives / 4).detach(),
        "points": (points / positives / 10).detach(),
    }


def _export(model, path: Path, shape: tuple[int, ...], outputs: list[str], dynamic: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model.float().cpu().eval(),
            (torch.zeros(shape),),
            str(path),
            input_names=["input.1"],
            output_names=outputs,
            dynamic_axes=dynamic,
            dynamo=False,
            opset_version=13,
        )
    return path


def train_recogniser(folder: Path, seed: int = 11, name: str = "recogniser", pack: str = PACK) -> Path:
    model = Recogniser(_operations())
    initialise(model, seed)
    model.to(device())
    Trainer(model, folder, name, RECOGNISER_STEPS, 3e-3, weight_decay=0.02, dtype=torch.float32).run(
        lambda m, n: _contrastive(m, n, seed)
    )
    _settle(model, lambda n: model(_recognition_batch(seed + 1, n)))
    return _export(
        model,
        folder / pack / "rec_nano.onnx",
        (1, 3, 112, 112),
        ["embedding"],
        {"input.1": {0: "batch"}, "embedding": {0: "batch"}},
    )


def train_monitor(folder: Path, seed: int = 61) -> Path:
    """A second recogniser, from another start and other puppets: it checks what was chosen by the first."""
    return train_recogniser(folder, seed, "monitor", MONITOR_PACK)


def train_detector(folder: Path, seed: int = 12) -> Path:
    model = Detector(_operations())
    initialise(model, seed)
    for head in model.heads:
        head.weight.data.mul_(0.1)
        head.bias.data.view(ANCHORS, 15)[:, 0] = -4.0
    model.to(device())
    Trainer(model, folder, "detector", DETECTOR_STEPS, 3e-3, dtype=torch.float32, adam=("heads",)).run(
        lambda m, n: _detection(m, n, seed)
    )
    _settle(model, lambda n: model.features(_detection_batch(seed + 1, n)[0]))
    names = [f"{kind}_{s}" for kind in ("score", "bbox", "kps") for s in STRIDES]
    dynamic = {"input.1": {2: "height", 3: "width"}} | {name: {0: f"{name}_count"} for name in names}
    return _export(model, folder / PACK / "det_nano.onnx", (1, 3, DETECTOR_SIZE, DETECTOR_SIZE), names, dynamic)


@torch.no_grad()
def _settle(model, forward, batches: int = 20) -> None:
    """Recomputes batch-norm statistics for the averaged weights."""
    model.train()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.reset_running_stats()
            module.momentum = None
    for n in range(batches):
        forward(n)
    model.eval()


def evaluate(pack: Path, split: str = "val", identities: int = 100, clips: int = 32) -> dict[str, float]:
    """Through insightface itself: detection recall and precision on clip frames, landmark error, and retrieval among
    ``identities``.
    """
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(pack), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(DETECTOR_SIZE, DETECTOR_SIZE))
    numbers = numbers_of_split(split)
    people = [sample_identity(next(numbers)) for _ in range(identities)]

    def embed(image: np.ndarray) -> np.ndarray | None:
        faces = app.get(image[..., ::-1])
        return max(faces, key=lambda f: f.det_score).normed_embedding if faces else None

    gallery = [[embed(render_photo(p, 1000 + s, 128)[0]) for s in range(3)] for p in people]
    portraits = np.mean([[x is not None for x in g] for g in gallery])
    means = np.stack([np.mean([x for x in g if x is not None] or [np.zeros(512)], axis=0) for g in gallery])
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-9
    found = truth = extra = 0
    errors, top1, same = [], [], []
    for i in range(clips):
        pair = (2 * i % identities, (2 * i + 1) % identities)
        clip = render_clip(sample_clip_spec((people[pair[0]], people[pair[1]]), i))
        for f in (0, 4, 8):
            detected = list(app.get(np.ascontiguousarray(clip.frames[f][..., ::-1])))
            for who, face in zip(pair, clip.faces[f], strict=True):
                if face is None:
                    continue
                truth += 1
                centre = face.landmarks.mean(0)
                match = [d for d in detected if d.bbox[0] < centre[0] < d.bbox[2] and d.bbox[1] < centre[1] < d.bbox[3]]
                if match:
                    found += 1
                    detected = [d for d in detected if d is not match[0]]
                    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
                    errors.append(np.linalg.norm(match[0].kps - face.landmarks, axis=1).mean() / eyes)
                    similarity = means @ match[0].normed_embedding
                    top1.append(similarity.argmax() == who)
                    same.append(similarity[who])
            extra += len(detected) if all(face is not None for face in clip.faces[f]) else 0
    off = means @ means.T
    return {
        "recall": found / truth,
        "extra_per_frame": extra / (3 * clips),
        "portrait_recall": float(portraits),
        "landmark_error": float(np.mean(errors)),
        "top1": float(np.mean(top1)),
        "similarity_same": float(np.mean(same)),
        "similarity_other": float(off[~np.eye(len(off), dtype=bool)].mean()),
        "hardest_other": float((off - 2 * np.eye(len(off))).max(1).mean()),
    }
