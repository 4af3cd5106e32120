"""Faults of the embedded servers. All of them are for the person who starts shieldx: the message says
what is wrong and what to do.

    EmbeddedFault
    +-- DataDirectoryBusy      another server holds the data directory
    +-- DataDirectoryRefused   the directory belongs to another user, or other versions wrote it
    +-- ServersNotRunning      somebody asked for the URLs of servers that do not run
    +-- BinaryMissing          no usable server program was found
    +-- ServerStartFailed      a server ended before it was ready
"""


class EmbeddedFault(Exception):
    """Anything that keeps the embedded servers from working."""


class DataDirectoryBusy(EmbeddedFault):
    """Another process serves from this data directory."""


class DataDirectoryRefused(EmbeddedFault):
    """The data directory cannot be opened by this user or with the server programs at hand."""


class ServersNotRunning(EmbeddedFault):
    """No server runs on this data directory."""


class BinaryMissing(EmbeddedFault):
    """No usable PostgreSQL or Redis-compatible server program was found."""


class ServerStartFailed(EmbeddedFault):
    """A server ended before it answered."""
