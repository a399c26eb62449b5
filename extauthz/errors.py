"""The base of errors that a person can mend, and what may be said of the others."""

import traceback


class OperatorError(Exception):
    """Something outside the program is wrong. The text names the place and the remedy."""


def where(error: BaseException) -> str:
    """Of which kind an error is, and where it was raised, from the outermost frame on.

    Without its text, which may quote what the program was reading: a prompt, for instance.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = "".join(f"; {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{type(error).__name__}{places}"
