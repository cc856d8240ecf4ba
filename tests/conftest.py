"""One thread (the tests' tensors are tiny, and machines share cores), and the same examples on every run."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def _no_ones_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the library keeps for a user goes into a folder of these tests, also that of processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
