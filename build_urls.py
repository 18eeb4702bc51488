"""The project's addresses in its metadata, all from one setting: the variable REPOSITORY.

Without it there are none. `make dist REPOSITORY=https://...` sets it, and so does the workflow in
.github, from where it runs. An index shows the README alone, so its links then lead to the
repository.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!https?:|#)([^)]+\))")


def with_address(readme: str, address: str) -> str:
    """A README whose relative links and pictures lead to the repository of that address."""
    return _LINK.sub(
        lambda link: f"{link[1]}{link[2]}{address}/{'raw' if link[1] else 'blob'}/main/{link[3]}",
        readme,
    )


class Urls(MetadataHookInterface):
    """Fills `urls` and `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the addresses of the repository, its issues and its changes, and the README."""
        address = os.environ.get("REPOSITORY", "").rstrip("/")
        metadata["urls"] = (
            {
                "Repository": address,
                "Issues": f"{address}/issues",
                "Changes": f"{address}/blob/main/CHANGELOG.md",
            }
            if address
            else {}
        )
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_address(readme, address) if address else readme,
        }
