"""What is wrong with an archive, or with a store that does not fit to it."""

from extauthz.errors import OperatorError


class ArchiveError(OperatorError):
    """The archive cannot be read, or is not what was written; the text names file and line."""


class BehindError(OperatorError):
    """The store has lost rows that are archived, and with them what was spent."""
