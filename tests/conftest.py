"""One thread (the tests' tensors are tiny, and machines share cores), and the same examples on every run."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("laws")
