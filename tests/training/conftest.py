"""Fixtures: tiny models by family, loaded as nodes load them, and a data set of three clips."""

import pytest

from support import tiny_dataset, tiny_training
from support.tiny_stack import stack, tiny_files  # noqa: F401


@pytest.fixture(scope="session")
def model_of(pack, tmp_path_factory):
    loaded = {}

    def model_of(family):
        if family not in loaded:
            loaded[family] = tiny_training.load(pack, tmp_path_factory.mktemp("training"), family)
        return loaded[family].clone()

    return model_of


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The folder of the data set; not to be changed."""
    return tiny_dataset.write(tmp_path_factory.mktemp("clips") / "set")
