"""Checkpoints that several modules of tests prune; each module has files of its own, since outputs go beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pruning import write


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("resnet"), "resnet20", shortcut="projection")
