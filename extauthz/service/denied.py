"""How a phase of Check says no."""

from extauthz.reasons import Reason


class Denied(Exception):  # noqa: N818 - a phase's answer, not an error
    """A phase says no."""

    def __init__(self, reason: Reason, status: int, message: str) -> None:
        super().__init__(reason, status, message)
        self.reason = reason
        self.status = status
        self.message = message
