"""The base of errors that a person can mend."""


class OperatorError(Exception):
    """Something outside the program is wrong. The text names the place and the remedy."""
