"""Ids for requests that bring none."""

import itertools
import os
import secrets


class RequestIds:
    """Unique request ids: a random prefix per process and a counter. A forked child gets its own prefix."""

    def __init__(self) -> None:
        """Begin; a fork begins again."""
        self.restart()
        os.register_at_fork(after_in_child=self.restart)

    def restart(self) -> None:
        """Begin again under a new prefix of 64 random bits."""
        prefix = secrets.token_hex(8)
        self.next = map((prefix + "-{:x}").format, itertools.count(1)).__next__


ids = RequestIds()
