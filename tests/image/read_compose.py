"""Read a Compose file, given as JSON on stdin, by the Compose Specification; run with the linters on the path.

Prints nothing when it is right. Ends with the reason otherwise.
"""

import sys

from compose_spec import PyCompose  # type: ignore[import-not-found]

if __name__ == "__main__":
    PyCompose.from_json(sys.stdin.read()).validate()
