"""Compiles what the processes of an image import: where they run, nothing can be written beside the sources.

All other modules stay as they are: their bytecode would be as large as they are. The build of the image fails here if a
module of Headrace cannot be imported for another reason than a package that the image leaves out.
"""

import compileall
import importlib
import pkgutil
import sys

import headrace

# Scripts: they run when they are imported.
_SCRIPTS = ("__main__", "env")

for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
    if module.name.rpartition(".")[2] in _SCRIPTS:
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if (error.name or "headrace").partition(".")[0] == "headrace":
            raise
sys.exit(not all(compileall.compile_dir(folder, quiet=1) for folder in headrace.__path__))
