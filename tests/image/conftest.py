"""Where the image can be built: as root, with the programs of tests/debian.py. Elsewhere the summary says that it was not."""

from __future__ import annotations

import os

import pytest

from tests.conftest import NEEDS_ROOT


def pytest_ignore_collect(collection_path: os.PathLike[str], config: pytest.Config) -> bool | None:
    """Leave the tests out that build and run the image, where nobody may."""
    return True if str(collection_path).endswith(NEEDS_ROOT) and os.geteuid() != 0 else None
