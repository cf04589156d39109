"""The FastAPI application: routes and error handlers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import limelight
from limelight.errors import LimelightError
from limelight.media import worker as decoders
from limelight.models.adapter import Adapter
from limelight.server.audits import Audits
from limelight.server.chat import Chat
from limelight.server.endpoint import AppState
from limelight.server.forms import SpeechRequest
from limelight.server.guard import Guard
from limelight.server.metrics import Counted, Metrics
from limelight.server.openapi import EVENTS, HTML, REFUSALS, TEXT, body, with_requests
from limelight.server.pages import Pages, PageStore, served
from limelight.server.problems import ApiError, internal, invalid, of_library
from limelight.server.responses import AuditReply, ChatCompletion, Health, Model, Models, Transcription
from limelight.server.schema import AuditRequest, ChatRequest
from limelight.server.state import ServerConfig
from limelight.server.transcriptions import Transcriptions
from limelight.server.worker import Worker

STOP_SECONDS = 30.0
log = logging.getLogger("limelight.server")


def create_app(adapter: Adapter, config: ServerConfig, pages: Pages | None = None) -> FastAPI:
    """Create the ASGI application for a loaded model; its worker runs as long as the application.

    Args:
        pages: storage of report pages; None: in memory, bounded.

    Example:
        >>> app = create_app(limelight.load("demo-vision"), ServerConfig("demo-vision"))  # doctest: +SKIP
    """
    if config.prefix_cache:
        adapter.prefix_cache = limelight.PrefixCache(config.prefix_cache)
    worker = Worker(config.batch)
    state = AppState(adapter, config, worker, Metrics(worker), PageStore() if pages is None else pages)
    chat, speech, audits = Chat(state), Transcriptions(state), Audits(state)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        decoders.start()
        yield
        state.parsers.shutdown(wait=False)
        if not worker.stop(STOP_SECONDS):
            log.error("the worker did not stop within %g s", STOP_SECONDS)

    app = FastAPI(
        title="limelight", version=limelight.__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="OpenAI-compatible chat completions with training-free grounding.", responses=REFUSALS,
    )  # fmt: skip
    app.state.chat, app.state.worker, app.state.limits = chat, worker, config.limits
    app.add_middleware(Guard, key=config.api_key, hosts=config.host_names)
    app.add_middleware(Counted, metrics=state.metrics)  # outermost: also counts rejected requests
    _routes(app, chat, speech, audits)
    _about(app, state)
    _errors(app)
    with_requests(app)
    return app


def _routes(app: FastAPI, chat: Chat, speech: Transcriptions, audits: Audits) -> None:
    @app.post(
        "/v1/chat/completions", response_model=ChatCompletion, responses={200: {"content": EVENTS}},
        openapi_extra=body("application/json", ChatRequest),
    )  # fmt: skip
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, or stream server-sent events with ``stream: true``."""
        return await chat(request)

    @app.post(
        "/v1/audio/transcriptions", response_model=Transcription, responses={200: {"content": EVENTS | TEXT}},
        openapi_extra=body("multipart/form-data", SpeechRequest),
    )  # fmt: skip
    async def transcriptions(request: Request) -> Response:
        """Transcribe audio to text, JSON or subtitles, or stream server-sent events with ``stream=true``."""
        return await speech(request)

    @app.post("/v1/grounding", response_model=AuditReply, openapi_extra=body("application/json", AuditRequest))
    async def grounding(request: Request) -> Response:
        """Which words of a finished answer the media support: the last of the messages is the assistant's."""
        return await audits(request)

    @app.get("/pages/{name}", response_class=Response, responses={200: {"content": HTML}})
    async def page(name: str) -> Response:
        """Return a report page; it expires after an hour, or when many newer ones are stored."""
        return served(await chat.state.pages.get(name))


def _about(app: FastAPI, state: AppState) -> None:
    config, worker = state.config, state.worker
    card: Model = {
        "id": config.model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "limelight",
        "limelight": {"strategy": config.strategy.name, "strategies": sorted(config.strategies)},
    }

    @app.get("/v1/models")
    async def models() -> Models:
        """List the served model."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        if name != config.model:
            raise invalid("unknown model", status=404, code="model_not_found", param="model")
        return card

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "the worker has died"}})
    async def health() -> JSONResponse:
        """Return 200 while the worker is alive."""
        alive = worker.alive
        body: Health = {"status": "ok" if alive else "the worker has died", "waiting": len(worker.queue)}
        return JSONResponse(body, 200 if alive else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": TEXT}})
    async def metrics() -> Response:
        """Return the metrics in Prometheus text format."""
        return Response(state.metrics.page(), media_type=state.metrics.content_type)


def _errors(app: FastAPI) -> None:
    def shaped(problem: ApiError) -> JSONResponse:
        return JSONResponse(problem.payload(), problem.status, headers=problem.headers)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return shaped(error)

    @app.exception_handler(LimelightError)
    async def library(_: Request, error: LimelightError) -> JSONResponse:
        return shaped(of_library(error))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return shaped(ApiError(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        return shaped(internal())
