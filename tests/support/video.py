"""What ffprobe and ffmpeg say about a video file; they are programs of the system, and a test without them fails."""

import json
import subprocess
from pathlib import Path

import numpy as np


def probe(path: Path) -> dict:
    """The one video stream's fields, with `nb_read_frames` counted by decoding."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    assert [stream["codec_type"] for stream in streams] == ["video"]
    return streams[0]


def frames(path: Path) -> np.ndarray:
    """All frames, [T, H, W, 3] uint8. ffmpeg ends with an error on the first broken one."""
    stream = probe(path)
    command = ["ffmpeg", "-v", "error", "-xerror", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, stream["height"], stream["width"], 3)
