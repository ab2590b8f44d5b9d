"""Why a command did not do what was asked; each text is for people, on one line."""


class Usage(Exception):
    """The command line asks for something that can't be done."""


class ClientFailure(Exception):
    """What was asked is not done, or not known to be done."""

    uncertain = False  # whether a write may have been applied all the same


class Refused(ClientFailure):
    """The server understood, and said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status


class Unavailable(ClientFailure):
    """No usable answer came within the time that the caller is ready to wait."""

    def __init__(self, reason: str, *, uncertain: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.uncertain = uncertain
        self.retry_after_s = retry_after_s


class BadAnswer(ClientFailure):
    """The server answered with something that the protocol does not know."""

    def __init__(self, reason: str, *, uncertain: bool = False) -> None:
        super().__init__(reason)
        self.uncertain = uncertain


class BadInput(ClientFailure):
    """What was given can't be appended."""
