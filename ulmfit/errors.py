"""The one exception that a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user: file, column, option or model at fault.

    The message is one sentence that names the thing and the cure. The commands print it as the last
    line of stderr, without a traceback, and exit with code 2.
    """
