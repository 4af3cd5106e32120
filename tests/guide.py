"""The commands of documents, so that tests do what these tell their readers to do."""

from __future__ import annotations

import re
from typing import Final

from tests.server import REPOSITORY

GUIDE: Final = (REPOSITORY / "docs" / "deployment.md").read_text()


def block(name: str, document: str = "deployment.md") -> str:
    """Return the commands between the marks of this name in a file of docs/."""
    text = (REPOSITORY / "docs" / document).read_text()
    found = re.findall(rf"^<!-- {name} -->\n```\w+\n(.*?)^```\n<!-- /{name} -->$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"docs/{document} has {len(found)} blocks {name}"
    return str(found[0])
