"""Reads the JSON files of a tokenizer or model directory."""

import json
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds. Raises ConfigError, naming the file, if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{path}: not valid JSON (nested too deeply).") from None
    except ValueError as e:  # not UTF-8, not JSON, or integers of thousands of digits
        raise ConfigError(f"{path}: not valid JSON ({e}).") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value
