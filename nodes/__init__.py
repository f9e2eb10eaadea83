"""The V3 nodes of the pack, one file a stage of the job."""

from . import cast, condition, faces, load, relate, sample, score

NODES = [
    *load.NODES,
    *cast.NODES,
    *faces.NODES,
    *relate.NODES,
    *condition.NODES,
    *sample.NODES,
    *score.NODES,
]
