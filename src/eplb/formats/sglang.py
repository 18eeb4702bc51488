"""SGLang's files: loads as `logical_count`, placements as `physical_to_logical_map`.

What `--init-expert-location` takes, read off SGLang 0.5.23: `{"logical_count": [L][E]}` or with
steps before the layers, and `{"physical_to_logical_map": [L][P]}` with no other key.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError
from eplb.loads import as_array
from eplb.placement import Placement

__all__ = ["placement_text", "read_json"]


def read_json(path: Path) -> NDArray[np.float64]:
    """Loads [L, E] or [T, L, E] in a JSON file: `logical_count` of an object, or a bare array."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not a JSON file (not UTF-8 text)") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: not a JSON file ({error})") from None
    except RecursionError:
        raise FormatError(f"{path}: not a JSON file of loads (nested too deep)") from None
    if isinstance(content, dict):
        if "logical_count" not in content:
            keys = ", ".join(map(repr, list(content)[:5])) or "none"
            raise FormatError(f"{path}: expected the key 'logical_count', found {keys}")
        content = content["logical_count"]
    if not isinstance(content, list):
        raise FormatError(f"{path}: expected rows of numbers, found {type(content).__name__}")
    try:
        return as_array(content)
    except (LoadsError, OverflowError) as error:
        raise FormatError(f"{path}: {error}") from None


def placement_text(placement: Placement) -> str:
    """The JSON text that SGLang's `--init-expert-location` loads, one layer a line."""
    rows = ",\n".join(json.dumps(row) for row in placement.phy2log.tolist())
    return f'{{"physical_to_logical_map": [\n{rows}\n]}}\n'
