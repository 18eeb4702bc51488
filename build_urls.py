"""The project's addresses in its metadata, all from one setting: the variable REPOSITORY.

Without it there are none. `make dist REPOSITORY=https://...` sets it, and so does the workflow in
.github, from where it runs.
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Urls(MetadataHookInterface):
    """Fills `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the addresses of the repository, its issues and its changes."""
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
