"""Read manifests and the Dockerfile as checkov does; run by test_manifests.py with the linters on its path.

Arguments: files of manifests. Prints a JSON object: `passed`, how many checks of manifests and of the Dockerfile; `failed`,
lists of [check, what it asks, object]; `unread`, files that could not be parsed.
"""

import json
import sys

from checkov.dockerfile.runner import Runner as DockerfileRunner  # type: ignore[import-not-found]
from checkov.kubernetes.runner import Runner  # type: ignore[import-not-found]
from checkov.runner_filter import RunnerFilter  # type: ignore[import-not-found]

if __name__ == "__main__":
    reports = [
        Runner().run(root_folder=None, files=sys.argv[1:], runner_filter=RunnerFilter(framework=["kubernetes"])),
        DockerfileRunner().run(root_folder=None, files=["Dockerfile"], runner_filter=RunnerFilter(framework=["dockerfile"])),
    ]
    failed = [[check.check_id, check.check_name, check.resource] for report in reports for check in report.failed_checks]
    unread = [error for report in reports for error in report.parsing_errors]
    print(json.dumps({"passed": [len(report.passed_checks) for report in reports], "failed": failed, "unread": unread}))
