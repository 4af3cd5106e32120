"""Programs of other people that the tests run for real: where they are, and their Debian packages.

`python tests/debian.py` installs what is missing, as root and without starting a daemon, and else names the command; `make
test` calls it. A test asks `program("prometheus")` and fails, loudly, where it is not there: what is not tested with the
real program cannot be promised for it. For another program add a row.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

INSTALL_TIMEOUT_S: Final = 300
PATHS: Final = "/usr/bin:/usr/local/bin:/usr/sbin"
POLICY: Final = Path("/usr/sbin/policy-rc.d")


class Wanted(NamedTuple):
    """A program: its Debian package, and the least major version; 0 for any, also for one that does not tell its own."""

    package: str
    major: int = 0


PROGRAMS: Final[dict[str, Wanted]] = {
    "redis-server": Wanted("redis-server", 7),
    # They build and run the image without a daemon.
    "buildah": Wanted("buildah"),
    "runc": Wanted("runc"),
    "prometheus": Wanted("prometheus", 2),
    "promtool": Wanted("prometheus"),
    "chromium": Wanted("chromium"),
    "prometheus-alertmanager": Wanted("prometheus-alertmanager"),
    "amtool": Wanted("prometheus-alertmanager"),
    # Debian builds its Prometheus without consul_sd; this one has it.
    "victoria-metrics": Wanted("victoria-metrics"),
}


def find(name: str) -> Path | None:
    """Return the program if it is there and new enough."""
    found = shutil.which(name, path=f"{PATHS}:{os.environ.get('PATH', '')}")
    if found is None or not PROGRAMS[name].major:
        return None if found is None else Path(found)
    run = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    version = re.search(r"(?:\bv=|version )(\d+)", run.stdout + run.stderr)
    return Path(found) if version is not None and int(version[1]) >= PROGRAMS[name].major else None


def program(name: str) -> Path:
    """Return a program. AssertionError, naming what to install, where there is none."""
    found = find(name)
    wanted = PROGRAMS[name]
    assert found is not None, (
        f"{name} {wanted.major or ''} is not installed: `apt-get install {wanted.package}` as root, or `make test` as root"
    )
    return found


@contextlib.contextmanager
def nothing_started(policy: Path = POLICY) -> Iterator[None]:
    """For as long as this is open, packages do not start the daemons that they install. A policy that is there holds.

    Debian asks `policy-rc.d` before it starts anything; 101 forbids it (invoke-rc.d(8)).
    """
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def main() -> int:
    """Install what is missing if this may be done here; name it otherwise. The tests that need it say the rest."""
    missing = [wanted.package for name, wanted in PROGRAMS.items() if find(name) is None]
    if not missing:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.stderr.write(f"the tests need programs that are missing: apt-get install {' '.join(missing)}\n")
        return 0
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with nothing_started():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-q", *words], env=environment, timeout=INSTALL_TIMEOUT_S, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
