"""Definitions that a user gives in a file, as JSON or YAML: prompt templates, tools and pipelines."""

import json
import sys
from pathlib import Path

import yaml

from headrace.cli.render import Json
from headrace.store.errors import InvalidRequest


def read_object(file: Path) -> Json:
    """Return the object of JSON or the mapping of YAML in a file; - is stdin. Raises InvalidRequest."""
    try:
        given = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        # YAML takes JSON too, but its messages about faults in JSON help less.
        found = json.loads(given) if given.lstrip().startswith("{") else yaml.safe_load(given)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{file} is neither an object of JSON nor a mapping of YAML")
    return found
