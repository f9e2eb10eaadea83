"""Fixtures: groups of tiny takes, and a folder for them."""

import pytest

from support import rollouts


@pytest.fixture
def make_part():
    return rollouts.make_part


@pytest.fixture
def store(tmp_path):
    from idcrafter.rollouts.store import RolloutStore

    return RolloutStore(tmp_path / "rollouts")


@pytest.fixture
def fill(store):
    """Stores that many groups of distinct shots; returns their parts."""

    def fill(count=3, **changes):
        parts = [rollouts.make_part(prompt=f"shot {i}", **changes) for i in range(count)]
        for part in parts:
            assert store.save(part)
        return parts

    return fill
