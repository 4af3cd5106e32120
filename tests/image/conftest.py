"""Where the image can be built: as root, with the programs of tests/debian.py. Elsewhere the report says that it was not."""

from __future__ import annotations

import os

import pytest

NEEDS_ROOT = "tests/image/test_image.py"


def pytest_ignore_collect(collection_path: os.PathLike[str], config: pytest.Config) -> bool | None:
    """Leave the tests out that build and run the image, where nobody may."""
    return True if str(collection_path).endswith(NEEDS_ROOT) and os.geteuid() != 0 else None


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say it, loudly."""
    return [] if os.geteuid() == 0 else [f"LEFT OUT, because only root can do it: {NEEDS_ROOT} (image built and run)"]
