"""The ``headrace`` command as a process: runs the command tree, and prints expected errors as one line.

Nothing is imported before ``main`` runs. While the command is imported, Ctrl-C ends the process directly: Python would
drop an exception in a callback of an import.

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
        importlib.import_module("headrace.cli.tree").app(prog_name="headrace")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # One line for errors that the user can correct; other errors are raised again.
        message, code = explained(error)
        if message is None:
            raise
        sys.stderr.write(f"headrace: {' '.join(message.split())}\n")
        sys.exit(code)


# Postgres's insufficient_privilege.
_NOT_ALLOWED = "42501"
# Modules of the extras; any other missing module is a defect.
_OF_EXTRAS = {"fastapi", "uvicorn", "multipart", "torch", "transformers", "safetensors", "flower", "gguf"}


def explained(error: Exception) -> tuple[str | None, int]:
    """Return an error's message (None for a defect) and the exit code."""
    errors = importlib.import_module("headrace.store.errors")
    if isinstance(error, errors.HeadraceError):
        return error.message, 2 if isinstance(error, errors.SettingsError) else 1
    client = importlib.import_module("headrace.client")
    if isinstance(error, client.ClientError):
        hint = " (is `headrace up` running?)" if isinstance(error, client.ConnectionLost) else ""
        return error.message + hint, 1
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
