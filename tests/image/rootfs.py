"""A root file system with this machine's Python in place of the base image, which no test can pull.

It holds what the stages of the Dockerfile use of `python:slim`: Python with its library and pip at /usr/local, a shell, and
the few programs that make a user and change modes. Everything else of the image is then made by the Dockerfile itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Final

import pip

PROGRAMS: Final = ("sh", "chmod", "groupadd", "useradd")
# Parts of the C library that every base image has, and wheels built for old ones ask for by name.
C_LIBRARIES: Final = ("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2", "libm.so.6", "libgcc_s.so.1",
                      "libstdc++.so.6")  # fmt: skip
# The parts of Python's library that no image has: its tests, and windows that nobody would see.
LEFT_OUT: Final = ("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "site-packages", "dist-packages",
                   "__pycache__")  # fmt: skip
FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/login.defs": "UID_MIN 1000\nGID_MIN 1000\nUSERGROUPS_ENAB yes\n",
    # Packages are given: the build must not depend on a network.
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /wheels\n",
}


def libraries(program: Path) -> set[Path]:
    """Return the shared libraries that a program or library needs, by the paths where the loader finds them."""
    run = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=60, check=False)
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", run.stdout)}


def _add(tar: tarfile.TarFile, source: Path, name: str) -> None:
    tar.add(source.resolve(), name, recursive=False)


def write_rootfs(path: Path) -> None:
    """Write the tar file. Symbolic links are followed: each file stands where its users look for it."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.base_prefix, "bin", python)
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    programs = [Path(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or name) for name in PROGRAMS]
    extensions = list((library / "lib-dynload").glob("*.so"))
    needed = set().union(*(libraries(one) for one in (interpreter, *programs, *extensions)))
    c_library = next(one for one in needed if one.name == "libc.so.6").parent
    needed |= {found for name in C_LIBRARIES if (found := c_library / name).exists()}
    with tarfile.open(path, "w") as tar:
        for name in ("tmp", "wheels", "root", "proc", "dev", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        _add(tar, interpreter, f"usr/local/bin/{python}")
        for link in ("python", "python3"):
            entry = tarfile.TarInfo(f"usr/local/bin/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, python
            tar.addfile(entry)
        _add_tree(tar, library, f"usr/local/lib/{python}")
        _add_tree(tar, Path(pip.__file__).parent, f"usr/local/lib/{python}/site-packages/pip")
        for program in programs:
            _add(tar, program, f"bin/{program.name}")
        for one in needed:
            _add(tar, one, str(one).lstrip("/"))
    _add_files(path)


def _add_tree(tar: tarfile.TarFile, source: Path, name: str) -> None:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.is_file() and not set(parts) & set(LEFT_OUT) and path.suffix != ".a":
            _add(tar, path, f"{name}/{'/'.join(parts)}")


def _add_files(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            with (path.parent / "entry").open("w+b") as content:
                content.write(text.encode())
                content.seek(0)
                tar.addfile(entry, content)
