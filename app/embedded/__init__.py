"""The embedded default: a private Redis and PostgreSQL in a data directory, without configuration."""

from app.embedded.directory import Endpoints, checkpoint_keys, existing_root_key, read_endpoints, root_key, secret_file
from app.embedded.errors import (
    BinaryMissing,
    DataDirectoryBusy,
    DataDirectoryRefused,
    EmbeddedFault,
    ServersNotRunning,
    ServerStartFailed,
)
from app.embedded.servers import EmbeddedServers

__all__ = [
    "BinaryMissing",
    "DataDirectoryBusy",
    "DataDirectoryRefused",
    "EmbeddedFault",
    "EmbeddedServers",
    "Endpoints",
    "ServerStartFailed",
    "ServersNotRunning",
    "checkpoint_keys",
    "existing_root_key",
    "read_endpoints",
    "root_key",
    "secret_file",
]
