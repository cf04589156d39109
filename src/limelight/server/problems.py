"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, and never a stack trace."""

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
    """What a client is told. ``message`` may be shown to anybody."""

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
    """The request cannot be answered as it is."""
    return ApiError(status, message, param=param, code=code)


def internal() -> ApiError:
    """Something broke here; the log has it, the client does not."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


def busy(why: str, seconds: int = 1) -> ApiError:
    """There is no room now; the client may try again in ``seconds``."""
    return ApiError(429, f"{why}, retry in {seconds} s", code="queue_full", headers={"Retry-After": str(seconds)})


def gone() -> ApiError:
    """Nobody answers here any more: the worker has died, and the process is about to end."""
    return ApiError(503, "the server's worker has died and is being restarted", code="worker_gone")


def late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not ready after {seconds:g} s", code="timeout")


def of_library(error: LimelightError) -> ApiError:
    """The library's errors: what the client can mend is told with its hint, the rest stays in the log."""
    told = without_paths(f"{error.message} ({error.hint})" if error.hint else error.message)
    if isinstance(error, MissingExtraError):
        return ApiError(501, f"not installed on this server: {without_paths(error.message)}", code="not_installed")
    if isinstance(error, MediaError):
        return invalid(told, param="messages", code="invalid_media")
    if isinstance(error, InputError):
        return invalid(told)
    if isinstance(error, UnsupportedError):
        return invalid(told, code="unsupported")
    return internal()


def without_paths(text: str) -> str:
    """A message with the absolute paths of this machine taken out."""
    return _PATH.sub("...", text)


def told(error: BaseException) -> ApiError:
    """What a client is told of any exception."""
    if isinstance(error, ApiError):
        return error
    return of_library(error) if isinstance(error, LimelightError) else internal()
