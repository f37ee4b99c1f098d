"""Tests that need a GPU; elsewhere each is skipped, and says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if HAS_GPU:  # cuBLAS reads it when CUDA starts, and a test that sets a variable is taken to leak it
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_GPU and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="no GPU here: torch.cuda.is_available() is false"))
