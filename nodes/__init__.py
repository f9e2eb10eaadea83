"""The V3 nodes of the pack, one file a stage of the job."""

from . import (
    cast,
    condition,
    faces,
    identity,
    inject,
    judge,
    load,
    relate,
    reward,
    sample,
    score,
    score_video,
    text_encoder,
)

NODES = [
    *load.NODES,
    *text_encoder.NODES,
    *cast.NODES,
    *faces.NODES,
    *relate.NODES,
    *condition.NODES,
    *inject.NODES,
    *identity.NODES,
    *sample.NODES,
    *judge.NODES,
    *reward.NODES,
    *score.NODES,
    *score_video.NODES,
]
