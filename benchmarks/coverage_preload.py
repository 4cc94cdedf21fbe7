"""Imported once by the server that forks a process for each network: what takes seconds, and no threads."""

from contextlib import suppress
from importlib import import_module

import torch

from sned.cli.zoo import import_torchvision
from sned.errors import NotFoundError

torch.set_num_threads(1)
with suppress(NotFoundError):
    import_torchvision()
for name in ("benchmarks.coverage_check", "benchmarks.coverage_peer", "sned.surgery", "timm", "transformers"):
    with suppress(ImportError):
        import_module(name)
