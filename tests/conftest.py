"""What every test may use. Real data and models are used where they are found, never needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
for variable, folder in (("RADIXLAB_DATA", "data"), ("RADIXLAB_MODELS", "models")):
    beside = REPOSITORY.parent / "shared" / folder
    if not os.environ.get(variable) and beside.is_dir():
        os.environ[variable] = str(beside)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)  # no test asserts on wall-clock time
settings.load_profile("any machine")


def _folder(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} isn't set: no real data on this machine")
    return Path(path)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets."""
    return _folder("RADIXLAB_DATA")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder with the trained models."""
    return _folder("RADIXLAB_MODELS")
