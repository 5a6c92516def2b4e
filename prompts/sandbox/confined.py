"""Runs another program in confinement: ``confined.py ORDER PROGRAM ARGUMENT…``, with the ``Order`` as JSON.

The program reads the files of Python and of the system, and those that the order names. It opens no TCP connection,
writes in one folder, and reads neither the memory nor the environment of another process, also as root. Linux's
Landlock does this (5.13 and later), and root has no capabilities there. Where the kernel has no Landlock, files and
connections stay open, and ``process`` makes the parent unreadable for a process without capabilities.

It imports nothing of Headrace, because it is started as a file.
"""

import ctypes
import json
import os
import resource
import runpy
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

_LIBC: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_NO_NEW_PRIVS, _DUMPABLE = 38, 4
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _CAPSET = 444, 445, 446, {"x86_64": 126, "aarch64": 91}
_ASK_VERSION, _PATH_BENEATH = 1, 1
_CAPABILITIES_VERSION = 0x20080522

_ALL_OF_FILES = (1 << 13) - 1  # of the first version of Landlock
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_OF_ONE_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_TCP, _SIGNALS_AND_SOCKETS = 3, 3
_HAS_TCP, _HAS_SCOPES = 4, 6  # versions

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/sys")
# Landlock lets no process look into the environment or the memory of one outside of its confinement.
_PROC = "/proc"
_OF_ETC = ("ld.so.cache", "localtime", "timezone", "mime.types", "fonts", "os-release", "alternatives")
_DEVICES = ("null", "zero", "random", "urandom")


class Order(TypedDict):
    """How a program is confined. ``limits``: (resource, most) as of ``setrlimit``. ``nice``: as of ``os.nice``.

    ``readable``: files and folders beside Python's and the system's. ``folder``: where it may write, if anywhere.
    ``landlock``: the kernel's version of Landlock, 0 for none.
    """

    limits: list[tuple[int, int]]
    nice: int
    readable: list[str]
    folder: str | None
    landlock: int


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has; 0 if it has none, or does not let us use it."""
    if _LIBC is None:
        return 0
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))))


def hide_from_others() -> None:
    """Let no process without CAP_SYS_PTRACE read the memory or the environment of this one, also of the same user."""
    if _LIBC is not None:
        _LIBC.prctl(_DUMPABLE, 0, 0, 0, 0)


def confine(order: Order) -> None:
    """Confine this process. Raises OSError if the kernel refuses a part of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit, most in order["limits"]:
        resource.setrlimit(limit, (most, most))
    os.nice(order["nice"])
    if _LIBC is None:
        return
    _checked(_LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    if order["landlock"]:
        _restrict(order)
    # With Landlock too: CAP_PERFMON reads the memory of every process.
    _drop_capabilities()


def _restrict(order: Order) -> None:
    version = order["landlock"]
    words = [_ALL_OF_FILES]
    words += [_TCP] if version >= _HAS_TCP else []
    words += [_SIGNALS_AND_SOCKETS] if version >= _HAS_SCOPES else []
    rules = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, ctypes.byref(rules), size, ctypes.c_uint32(0)))
    own = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, *order["readable"]]
    _allow(ruleset, [*_SYSTEM, _PROC, *(f"/etc/{name}" for name in _OF_ETC), *filter(None, own)], _READ)
    _allow(ruleset, [f"/dev/{name}" for name in _DEVICES], _READ_FILE | _WRITE_FILE)
    if order["folder"] is not None:
        _allow(ruleset, [order["folder"]], _ALL_OF_FILES)
    _checked(_LIBC.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in dict.fromkeys(paths):
        with suppress(OSError):  # what is not there needs no rule
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                allowed = rights if Path(path).is_dir() else rights & _OF_ONE_FILE
                # A packed structure: the rights, and the file descriptor of the place.
                rule = allowed.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
                number, kind = ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH)
                _checked(_LIBC.syscall(_ADD_RULE, number, kind, rule, ctypes.c_uint32(0)))
            finally:
                os.close(place)


def _drop_capabilities() -> None:
    """Be a process that may not look into one with capabilities. A process of a usual user has none anyway."""
    number = _CAPSET.get(os.uname().machine)
    if number is None or os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    _checked(_LIBC.syscall(number, ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def main() -> None:
    """Confine this process, and become the program."""
    order: Order = json.loads(sys.argv[1])
    program = sys.argv[2]
    order["readable"].append(str(Path(program).parent))
    confine(order)
    sys.argv = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
