"""The picture of a relation graph: everybody, every arrow in its direction, and nothing over a face."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from idcrafter import drawing
from idcrafter.relations.graph import Relation, RelationGraph
from idcrafter.relations.picture import PHOTO, graph_picture
from idcrafter.subjects.subject import MAX_SUBJECTS, make_cast, make_subject


def made(count, relations=(), **more):
    names = tuple(f"Name {i + 1}" for i in range(count))
    cast = make_cast([make_subject(n, "person", "", torch.full((1, 40, 40, 3), 0.5)) for n in names])
    return cast, RelationGraph(names, ("a person",) * count, tuple(relations), **more)


def pixels(cast, graph) -> np.ndarray:
    image = graph_picture(cast, graph, "note")
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[2:] == (1280, 3)
    assert 0.0 <= float(image.min()) and float(image.max()) <= 1.0
    return (image[0].numpy() * 255).round().astype(int)


def grey(image) -> int:
    """Pixels that show a photo."""
    return int((np.abs(image - 128) <= 1).all(-1).sum())


@pytest.mark.parametrize("count", range(1, MAX_SUBJECTS + 1))
def test_nobody_is_covered(count):
    every = [Relation(a, "does something long to", b, "and more", "then") for a in range(count) for b in range(count)
             if a != b][:32]  # fmt: skip
    alone = [Relation(a, "waves for a long time with the left hand", None) for a in range(count)]
    cast, graph = made(count, [*every, *alone])
    shown, bare = pixels(cast, graph), pixels(cast, replace(graph, relations=tuple(alone)))
    assert grey(bare) == count * PHOTO**2
    assert grey(shown) >= 0.98 * count * PHOTO**2
    assert shown.shape[0] < 2200


def test_arrows_have_the_colour_of_who_acts_and_point_at_the_other():
    def coloured(relation):
        cast, graph = made(2, [relation])
        image, bare = pixels(cast, graph), pixels(*made(2))
        changed = (image != bare[: image.shape[0]]).any(-1)
        return image, changed

    for subject, other in ((0, 1), (1, 0)):
        image, changed = coloured(Relation(subject, "hugs", other))
        ink = (image == drawing.subject_colour(subject)).all(-1) & changed
        columns = np.nonzero(ink.any(0))[0]
        tall = ink.sum(0)
        head = columns[np.argmax(tall[columns])]
        # The head is the tallest part of the arrow apart from the label's frame, which is in the middle.
        left, right = tall[columns[0] : columns[0] + 20].max(), tall[columns[-1] - 20 : columns[-1] + 1].max()
        assert (right > left) == (other == 1), head


def test_words_are_on_it():
    cast, graph = made(2, [Relation(0, "hugs", 1)])
    plain = pixels(cast, graph)
    for other in (
        replace(graph, scene="a park"),
        replace(graph, camera="zoom"),
        replace(graph, relations=(Relation(0, "kisses", 1),)),
        replace(graph, relations=(*graph.relations, Relation(1, "nods"))),
    ):
        image = pixels(cast, other)
        assert image.shape != plain.shape or (image != plain).any()


def test_other_scripts_are_drawn():
    names = ("\u5c0f\u660e", "Zo\u00eb \U0001f600")
    cast = make_cast([make_subject(n, "person", "", torch.zeros(1, 20, 20, 3)) for n in names])
    graph = RelationGraph(names, ("x", "y"), (Relation(0, "\u62e5\u62b1", 1, "w" * 300),))
    assert pixels(cast, graph).shape[0] > 100
