"""The ``headrace`` command as a process: runs the command tree, and says in one line what a caller can meet.

Imports nothing before ``main`` runs, and while the command is imported Ctrl-C ends the process as the system does: it
leaves no trace, and Python would drop an exception that comes in a callback of an import.

Exit codes: 0 done, 1 refused, failed or unreachable, 2 wrong usage or settings, 130 interrupted.
"""

import importlib
import signal
import sys


def main() -> None:
    """Run the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        importlib.import_module("cli.tree").app(prog_name="headrace")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # The user sees one line for an error that the user can mend; every other error is raised again.
        message, code = _plainly(error)
        if message is None:
            raise
        sys.stderr.write(f"headrace: {' '.join(message.split())}\n")
        sys.exit(code)


# Postgres's insufficient_privilege.
_NOT_ALLOWED = "42501"
# What the extras bring; of anything else a missing module is a defect.
_OF_EXTRAS = {"fastapi", "uvicorn", "multipart", "torch", "transformers", "safetensors", "flower", "gguf"}


def _plainly(error: Exception) -> tuple[str | None, int]:
    """Return an error's sentence, None for a defect, and the exit code."""
    errors = importlib.import_module("store.errors")
    if isinstance(error, errors.HeadraceError):
        return error.message, 2 if isinstance(error, errors.SettingsError) else 1
    if isinstance(error, ModuleNotFoundError) and error.name in _OF_EXTRAS:
        return f"the package {error.name} is missing: install Headrace with its extra `local` (see README)", 1
    refused = getattr(error, "orig", None)
    if getattr(refused, "sqlstate", None) == _NOT_ALLOWED:
        reason = str(refused).partition("\n")[0]
        return (
            f"the database lets the user of DATABASE_URL not do this ({reason}): log in as headrace_operator, "
            "or to migrate as the owner of the tables"
        ), 1
    return None, 1


if __name__ == "__main__":
    main()
