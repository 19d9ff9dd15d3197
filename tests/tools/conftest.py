"""A process for programs that a file of tests runs many times, each for a moment."""

import os

import pytest
from warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("warm"), os.environ) as warm:
        yield warm
