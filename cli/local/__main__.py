"""Runs a command with temporary services in DATABASE_URL and REDIS_URL: ``python -m headrace.cli.local COMMAND…``.

For checks that need a real database and must leave nothing behind.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.store.errors import HeadraceError
from headrace.store.settings import child_environment


def main(argv: list[str]) -> int:
    """Start the services, run ``argv``, stop them, and return its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="hr-"))
    folder.chmod(0o711)  # as root, PostgreSQL runs as another user and must be able to enter
    try:
        postgres = LocalPostgres(folder / "pg", folder / "postgres.log")
        valkey = LocalValkey(folder / "kv", folder / "valkey.log")
        try:
            postgres.start()
            valkey.start()
            env = child_environment({"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url})
            return subprocess.run(argv, env=env, check=False).returncode
        finally:
            valkey.stop()
            postgres.stop()
    except (HeadraceError, OSError) as error:
        sys.stderr.write(f"headrace: {error}\n")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
