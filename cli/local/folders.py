"""Folders of the local stack: their permissions, and the length of socket paths.

If Headrace runs as root, the servers run as an unprivileged user, which must have access to the data and the sockets.
The mode of an existing folder is never changed; if it denies access, another folder is used.
"""

import contextlib
import hashlib
import os
import pwd
import secrets
import stat
import tempfile
from pathlib import Path

from headrace.store.errors import Unavailable

# The kernel's sun_path has 108 bytes, the last of them NUL.
MAX_SOCKET_PATH_BYTES = 107


def unprivileged_user() -> pwd.struct_passwd | None:
    """The user of PostgreSQL if this process is root, else None. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError as error:
        raise Unavailable("as root, PostgreSQL needs the user `nobody`, which this system lacks") from error


def private_folder(path: Path, owner: pwd.struct_passwd | None) -> Path:
    """Create ``path`` if it does not exist, and return it. Only ``owner`` (None: this user) has access.

    Raises Unavailable if it belongs to another user, which is possible in a shared ``/tmp``.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner and path.stat().st_uid == os.geteuid():
        os.chown(path, owner.pw_uid, owner.pw_gid)
    found = path.lstat()
    expected = owner.pw_uid if owner else os.geteuid()
    if found.st_uid != expected or not stat.S_ISDIR(found.st_mode):
        raise Unavailable(f"{path} belongs to user {found.st_uid}, not to {expected}: remove it or set HEADRACE_HOME")
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path


def reachable_folder(path: Path, owner: pwd.struct_passwd | None) -> Path:
    """Return ``path`` as a private folder, or a substitute if ``owner`` has no access to its parents.

    The substitute is in /var/lib, and ``path`` becomes a link to it, so that the next start finds it.
    """
    if path.is_symlink():
        return private_folder(path.resolve(), owner)
    if owner is None or all(
        parent.stat().st_mode & stat.S_IXOTH for parent in path.absolute().parents if parent.exists()
    ):
        return private_folder(path, owner)
    stand_in = Path("/var/lib/headrace") / secrets.token_hex(8)
    stand_in.parent.mkdir(mode=0o755, exist_ok=True)
    private_folder(stand_in, owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(stand_in)
    return stand_in


def socket_folder(preferred: Path, longest_name: str, owner: pwd.struct_passwd | None) -> Path:
    """Return ``preferred``, or a folder with a short path if a socket called ``longest_name`` would not fit in it."""
    if len(os.fsencode(preferred.absolute() / longest_name)) <= MAX_SOCKET_PATH_BYTES:
        return private_folder(preferred.absolute(), owner)
    digest = hashlib.sha256(os.fsencode(preferred.absolute())).hexdigest()[:12]
    for root in (Path("/run/user") / str(os.geteuid()), Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - made private, and checked
        with contextlib.suppress(OSError):
            folder = root / f"headrace-{digest}"
            if root.is_dir() and (owner is None or root.stat().st_mode & stat.S_IXOTH):
                return private_folder(folder, owner)
    raise Unavailable(
        f"no folder with a path short enough for sockets: set HEADRACE_HOME to a shorter one than {preferred}"
    )
