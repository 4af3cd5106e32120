"""Read manifests as Kubernetes would; run by test_manifests.py with the linters on its path.

Arguments: Kubernetes versions, then `--`, then files of manifests. Prints a JSON list of [version, kind, name, what is wrong].
"""

import json
import sys
from pathlib import Path

import kubernetes_validate  # type: ignore[import-not-found]
import yaml

UNKNOWN_KIND = "no schema"


def schema_errors(versions: list[str], files: list[str]) -> list[list[str]]:
    """Validate every object strictly, an unknown field is an error, against the schema of each version."""
    found = []
    for one in (one for file in files for one in yaml.load_all(Path(file).read_text(), yaml.CSafeLoader)):
        for version in versions:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                found.append([version, one["kind"], one["metadata"]["name"], UNKNOWN_KIND])
            except kubernetes_validate.ValidationError as error:
                found.append([version, one["kind"], one["metadata"]["name"], str(error.message)])
    return found


if __name__ == "__main__":
    end = sys.argv.index("--")
    print(json.dumps(schema_errors(sys.argv[1:end], sys.argv[end + 1 :])))
