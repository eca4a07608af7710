"""What goes wrong with a request."""


class ProblemError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, code: str = "", param: str | None = None, retry: int | None = None
    ) -> None:
        """Hold the answer.

        Args:
            status: Of HTTP.
            message: What was expected, what was found, what to do.
            code: A word for programs.
            param: The parameter that is at fault.
            retry: Seconds after which it may be tried again.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry
