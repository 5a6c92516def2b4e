"""Prints the JSON schemas of all pydantic models in the packages that are named, a line of JSON each.

Runs in the environment of a client, so it uses the standard library and that environment's pydantic alone.
"""

import contextlib
import importlib
import io
import json
import pkgutil
import sys
import warnings

from pydantic import BaseModel


def modules(package: str) -> None:
    """Import every module of a package that can be imported."""
    with contextlib.suppress(BaseException):
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(getattr(root, "__path__", []), f"{package}.", onerror=lambda _: None):
            if not any(part.startswith("test") or part == "__main__" for part in found.name.split(".")):
                with contextlib.suppress(BaseException):
                    importlib.import_module(found.name)


def subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return all classes below a model."""
    below = model.__subclasses__()
    return below + [deeper for one in below for deeper in subclasses(one)]


def main() -> None:
    """Print ``{"package": …, "name": …, "schema": …}`` for each model whose schema can be made."""
    packages = sys.argv[1:]
    warnings.simplefilter("ignore")
    lines: list[str] = []
    # Packages print things when they are imported.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for package in packages:
            modules(package)
        for model in subclasses(BaseModel):
            package = model.__module__.split(".")[0]
            if package in packages:
                with contextlib.suppress(Exception):
                    schema = model.model_json_schema()
                    name = f"{model.__module__}.{model.__qualname__}"
                    lines.append(json.dumps({"package": package, "name": name, "schema": schema}))
    print("\n".join(sorted(set(lines))))


if __name__ == "__main__":
    main()
