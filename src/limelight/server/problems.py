"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``, without stack traces."""

from __future__ import annotations

import re
from collections.abc import Mapping

from limelight.errors import InputError, LimelightError, MediaError, MissingExtraError, UnsupportedError
from limelight.server.responses import Error

_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?[/\\](?:[\w.~+@-]+[/\\])+[\w.~+@-]*")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An error returned to the client. ``message`` contains nothing confidential."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def payload(self) -> Error:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """Error for an invalid request."""
    return ApiError(status, message, param=param, code=code)


def internal() -> ApiError:
    """Internal error; the details go to the log, not to the client."""
    return ApiError(500, "internal server error; see the server log", code="internal_error")


def busy(why: str, seconds: int = 1) -> ApiError:
    """The server is at capacity; the client may retry in ``seconds``."""
    return ApiError(429, f"{why}, retry in {seconds} s", code="queue_full", headers={"Retry-After": str(seconds)})


def gone() -> ApiError:
    """The worker has died, and the process is about to exit."""
    return ApiError(503, "the server's worker has died and is being restarted", code="worker_gone")


def late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not ready after {seconds:g} s", code="timeout")


def of_library(error: LimelightError) -> ApiError:
    """Convert a library error: errors that the client can fix are reported with their hint, others are only logged."""
    message = without_paths(f"{error.message} ({error.hint})" if error.hint else error.message)
    if isinstance(error, MissingExtraError):
        return ApiError(501, f"not installed on this server: {without_paths(error.message)}", code="not_installed")
    if isinstance(error, MediaError):
        return invalid(message, param="messages", code="invalid_media")
    if isinstance(error, InputError):
        return invalid(message)
    if isinstance(error, UnsupportedError):
        return invalid(message, code="unsupported")
    return internal()


def without_paths(text: str) -> str:
    """Remove absolute paths of this machine from a message."""
    return _PATH.sub("...", text)


def api_error(error: BaseException) -> ApiError:
    """Convert any exception to the error returned to the client."""
    if isinstance(error, ApiError):
        return error
    return of_library(error) if isinstance(error, LimelightError) else internal()
