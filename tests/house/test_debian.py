"""Programs that tests install start no daemon, and a policy of the machine's own is left alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.debian import nothing_started


def test_installing_starts_no_daemon_and_leaves_no_policy_behind(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"

    with nothing_started(policy):
        answer = subprocess.run([policy, "prometheus", "start"], check=False).returncode

    assert answer == 101
    assert not policy.exists()


def test_a_policy_that_is_there_holds(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 104\n")

    with nothing_started(policy):
        during = policy.read_text()

    assert during == policy.read_text() == "#!/bin/sh\nexit 104\n"
