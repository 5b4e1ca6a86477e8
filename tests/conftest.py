"""What every test may use: real sound and golden tensors where they are, and no network anywhere."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Networks here are tiny: more threads than one only get in each other's way. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
# Nothing of the developer's own caches is read or written, in this process or in one it starts.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="beats_trainer_tests_")

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

_SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real sound: ``BEATS_TRAINER_TEST_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("BEATS_TRAINER_TEST_DATA", _SHARED / "data"))
    if not folder.is_dir():
        pytest.skip("needs real sound in ../shared/data or $BEATS_TRAINER_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_golden():
    """Folder of the reference's golden tensors beside the real sound."""
    data = Path(os.environ.get("BEATS_TRAINER_TEST_DATA", _SHARED / "data"))
    folder = data.parent / "golden"
    if not folder.is_dir():
        pytest.skip("needs golden tensors in ../shared/golden")
    return folder
