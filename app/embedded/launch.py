"""Become one server process, with the account, the capability and the death signal it needs.

Run as `python -I -S launch.py ORDER` by `app.embedded.child`, where ORDER is a JSON object:

    parent_pid    pid that must still be our parent, else nobody would stop the server
    death_signal  signal number that the kernel sends to the server when that parent dies
    account       [uid, gid] to switch to, or null to stay who we are
    cwd           directory to stand in; entered before the account changes
    reach         directories that the server must be able to read by their full path
    argv          program (absolute path) and its arguments

PostgreSQL refuses to run as root, and the account it runs as may not be able to enter the data directory
or the virtual environment (below a 0700 /root, say). Instead of opening those directories to everybody,
the server keeps CAP_DAC_READ_SEARCH as an ambient capability, and only where a directory needs it.
Exits with 126 and one line on stderr when the server cannot be started this way.

Source: capabilities(7), prctl(2), PR_SET_PDEATHSIG(2const).
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import Final, NoReturn, TypedDict

EXIT_CANNOT_START: Final = 126  # what a shell answers for a program that it found and could not run

PR_SET_PDEATHSIG: Final = 1
PR_SET_KEEPCAPS: Final = 8
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
CAPABILITY_VERSION_3: Final = 0x20080522
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2


class Order(TypedDict):
    """What to become; see the module text."""

    parent_pid: int
    death_signal: int
    account: tuple[int, int] | None
    cwd: str
    reach: list[str]
    argv: list[str]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def refuse(reason: str) -> NoReturn:
    """Say on stderr (the server's log) why the server cannot be started, and end."""
    sys.stderr.write(f"shieldx launcher: {reason}\n")
    sys.stderr.flush()
    os._exit(EXIT_CANNOT_START)


class Kernel:
    """The Linux calls that Python does not offer. Each raises OSError with the errno of the call."""

    def __init__(self) -> None:
        """Load the C library of this process."""
        self._libc = ctypes.CDLL(None, use_errno=True)

    def prctl(self, option: int, *arguments: int) -> int:
        """Call prctl with up to four unsigned long arguments; the rest are zero."""
        padded = [*arguments, 0, 0, 0, 0][:4]
        answer = self._libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in padded))
        return self._checked(answer)

    def permitted_capabilities(self) -> int:
        """Bit mask of the lower 32 permitted capabilities of this process."""
        header, data = _CapabilityHeader(CAPABILITY_VERSION_3, 0), (_CapabilityData * 2)()
        self._checked(self._libc.capget(ctypes.byref(header), data))
        return int(data[0].permitted)

    def set_capabilities(self, *, effective: int, permitted: int) -> None:
        """Hold exactly these capabilities (bit masks); `effective` becomes inheritable too."""
        header, data = _CapabilityHeader(CAPABILITY_VERSION_3, 0), (_CapabilityData * 2)()
        data[0].effective, data[0].permitted, data[0].inheritable = effective, permitted, effective
        self._checked(self._libc.capset(ctypes.byref(header), data))

    @staticmethod
    def _checked(answer: int) -> int:
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return answer


def switch_account(kernel: Kernel | None, uid: int, gid: int) -> int:
    """Change to `uid` and `gid` without other groups; keep what may be kept of the two DAC capabilities.

    returns  bit mask of the capabilities still permitted; none of them is effective yet
    """
    keep = 0
    if kernel is not None:
        keep = kernel.permitted_capabilities() & (1 << CAP_DAC_READ_SEARCH | 1 << CAP_DAC_OVERRIDE)
        kernel.prctl(PR_SET_KEEPCAPS, 1)
        # access(2) ignores the capabilities of a process that is not root unless this bit is set, and
        # postgres finds its own program file with access(2). Where CAP_SETPCAP is not permitted, the
        # capabilities still open the data directory.
        with contextlib.suppress(PermissionError):
            kernel.prctl(PR_SET_SECUREBITS, kernel.prctl(PR_GET_SECUREBITS) | SECBIT_NO_SETUID_FIXUP)
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        refuse(
            f"cannot switch from root to uid {uid} ({error.strerror}), and the database server refuses to "
            "run as root. Run shieldx as an ordinary user, or permit CAP_SETUID and CAP_SETGID, or set "
            "REDIS_URL and DATABASE_URL."
        )
    if kernel is not None:
        kernel.set_capabilities(effective=0, permitted=keep)
        kernel.prctl(PR_SET_NO_NEW_PRIVS, 1)
    return keep


def first_unreachable(program: str, directories: list[str]) -> str | None:
    """The first of the paths that this process, as it is now, cannot run or read; None if it can use all."""
    if not os.access(program, os.R_OK | os.X_OK):
        return program
    for directory in directories:
        try:
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        except OSError:
            return directory
    return None


def keep_least_capability(kernel: Kernel | None, permitted: int, order: Order) -> None:
    """Make the weakest capability ambient with which every path is reachable; none at all if possible."""
    program = order["argv"][0]
    blocked = first_unreachable(program, order["reach"])
    ambient = 0
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if blocked is None or kernel is None:
            break
        if permitted & 1 << capability:
            ambient |= 1 << capability
            kernel.set_capabilities(effective=ambient, permitted=permitted)
            kernel.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)
            blocked = first_unreachable(program, order["reach"])
    if blocked is not None:
        refuse(
            f"uid {os.getuid()} cannot use {blocked}, and the capabilities that would let it "
            "(CAP_DAC_READ_SEARCH, and CAP_SETPCAP for a program) are not permitted here. Put the data "
            "directory and the Python environment below directories that every user may enter, or run "
            "shieldx as an ordinary user."
        )


def become(order: Order) -> NoReturn:
    """Carry out `order`; on success this process is the server."""
    kernel = Kernel() if sys.platform == "linux" else None
    os.umask(0o077)
    os.chdir(order["cwd"])
    if order["account"] is not None:
        permitted = switch_account(kernel, *order["account"])
        keep_least_capability(kernel, permitted, order)
    # What the shell or Python ignores or blocks would stay ignored or blocked in the server.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if kernel is not None:
        # The kernel forgets this at every change of account or capabilities, so it comes last.
        kernel.prctl(PR_SET_PDEATHSIG, order["death_signal"])
    if os.getppid() != order["parent_pid"]:
        refuse(f"the process {order['parent_pid']} that asked for this server is gone")
    os.execv(order["argv"][0], order["argv"])  # noqa: S606 - no shell is wanted


def main() -> NoReturn:
    """Read the order from the command line and carry it out."""
    order: Order = json.loads(sys.argv[1])
    try:
        become(order)
    except OSError as error:
        refuse(f"cannot start {order['argv'][0]}: {error}")


if __name__ == "__main__":
    main()
