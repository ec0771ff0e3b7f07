"""What a client is told when a request can't be served."""

from __future__ import annotations


class ApiError(Exception):
    """One answer that isn't 2xx. Each family of endpoints writes it in its own shape.

    status: the HTTP status.
    message: what was given, what is allowed, what to do.
    param: the field of the request that is to blame, as a path (`messages.0.content`).
    code: a word for programs (`model_not_found`, `context_length_exceeded`, `unsupported_parameter`, ...).
    retry_after: seconds after which it may work (429 and 503).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """OpenAI's name for the kind of error."""
        names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return names.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def unsupported(param: str, why: str) -> ApiError:
    """400 for a parameter that isn't served. `why` says what is, or what to do."""
    return ApiError(400, f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def unexpected() -> ApiError:
    """500 for what nobody foresaw: nothing of the inside is shown."""
    return ApiError(500, "something went wrong in the server; its log says what", code="internal_error")
