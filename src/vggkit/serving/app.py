"""The application: routes, errors in one form, the page's files, and the description of all of it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vggkit._version import __version__
from vggkit.serving.bodies import BYTES_TYPE, FIELD, JSON_TYPE, MULTIPART_TYPE, ClientGone, JsonBody
from vggkit.serving.docs_page import DOCS_PATH, STYLE_PATH, read_style, write_docs
from vggkit.serving.guard import CLIENT_GONE
from vggkit.serving.metrics import CONTENT_TYPE
from vggkit.serving.page_files import PageFile, list_page_files
from vggkit.serving.refusals import Refusal
from vggkit.serving.responses import (
    Embedded,
    EmbedOptions,
    ErrorResponse,
    ModelDescription,
    ModelNames,
    ModelOptions,
    NoOptions,
    Predictions,
    PredictOptions,
    Status,
)
from vggkit.serving.service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]]

ROUTES: Final = frozenset(
    {"/predict", "/embed", "/model", "/models", "/health", "/ready", "/metrics", "/openapi.json"}
)
OPEN_ROUTES: Final = frozenset({"/health", "/ready", "/openapi.json", DOCS_PATH, STYLE_PATH})
"""Routes that need no token: they tell nothing of models or requests."""
NAMES: Final = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 422: "bad_parameters"}
BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/tiff", BYTES_TYPE)
ERRORS: Final = {
    400: "The body is malformed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another origin, or calls the service by another name.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request has too many bytes or images.",
    415: "The body is of another type.",
    422: "Every image has a problem, there is none, or an option is unknown or out of range.",
    431: "Address and headers have too many bytes.",
    503: "The service is busy, as Retry-After says, or stops.",
    504: "The result was not computed in time.",
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These errors, as OpenAPI's responses."""
    return {status: {"description": ERRORS[status], "model": ErrorResponse} for status in statuses}


def describe_body() -> dict[str, Any]:
    """The three kinds of bodies, as OpenAPI's requestBody."""
    files = {
        "type": "object",
        "properties": {FIELD: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
        "required": [FIELD],
        "additionalProperties": False,
    }
    content = {MULTIPART_TYPE: {"schema": files}, JSON_TYPE: {"schema": {"$ref": "#/components/schemas/JsonBody"}}}
    content |= dict.fromkeys(IMAGE_TYPES, BYTES)
    return {"requestBody": {"required": True, "description": "One image or several.", "content": content}}


def build_app(service: Service, lifespan: Lifespan, *, title: str) -> FastAPI:
    """The application of a service.

    Args:
        service: What responds.
        lifespan: Runs around it.
        title: Of the description.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        description="Images in, classes out: a VGG by vggkit.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    _add_errors(app)
    posted = describe_errors(400, 401, 403, 404, 408, 413, 415, 422, 431, 503, 504)
    read = describe_errors(401, 403, 422, 431)
    probed = describe_errors(403, 422, 431, 503)

    @app.post(
        "/predict",
        responses=posted,
        openapi_extra=describe_body(),
        tags=["images"],
        response_description="The classes of each image.",
    )
    async def predict(request: Request, options: Annotated[PredictOptions, Query()]) -> Predictions:
        """Classify images: the most probable classes of each, and with `explain=true` why."""
        return await service.predict(request, options)

    @app.post(
        "/embed",
        responses=posted,
        openapi_extra=describe_body(),
        tags=["images"],
        response_description="The vector of each image.",
    )
    async def embed(request: Request, options: Annotated[EmbedOptions, Query()]) -> Embedded:
        """Compute a feature vector of each image, to search or cluster."""
        return await service.embed(request, options.model)

    @app.get(
        "/model",
        responses=read | describe_errors(404),
        tags=["models"],
        response_description="The model.",
    )
    async def model(options: Annotated[ModelOptions, Query()]) -> ModelDescription:
        """Describe a model: labels, preprocessing, configuration, metrics, licence, version."""
        return service.describe(options.model)

    @app.get("/models", responses=read, tags=["models"], response_description="Their names.")
    async def models(_: Annotated[NoOptions, Query()]) -> ModelNames:
        """Name the models."""
        return ModelNames(models=list(service.models.names))

    @app.get("/health", responses=probed, tags=["operation"], response_description="It works.")
    async def health(_: Annotated[NoOptions, Query()]) -> Status:
        """Whether the process works; else it should be started again."""
        if not service.batcher.is_alive:
            raise Refusal(503, "not_ready", "the engine computes no more; start the service again")
        return Status(status="ok")

    @app.get("/ready", responses=probed, tags=["operation"], response_description="They may.")
    async def ready(_: Annotated[NoOptions, Query()]) -> Status:
        """Whether requests may be sent here."""
        if service.is_draining or not service.batcher.is_alive:
            raise Refusal(503, "not_ready", "the service is stopping; send requests to another one")
        return Status(status="ready")

    @app.get(
        "/metrics",
        responses=read
        | {200: {"description": "The counters.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        tags=["operation"],
    )
    def metrics(_: Annotated[NoOptions, Query()]) -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.write(), media_type=CONTENT_TYPE)

    _describe(app)
    return app


def list_open_paths() -> frozenset[str]:
    """Paths that need no token."""
    return OPEN_ROUTES | frozenset(list_page_files())


def _add_errors(app: FastAPI) -> None:
    """Every error in one form."""

    def respond(request: Request, refusal: Refusal) -> JSONResponse:
        values = refusal.to_dict(request.state.request_id)
        return JSONResponse(values, refusal.status, dict(refusal.headers))

    async def refuse(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refusal)
        return respond(request, problem)

    async def refuse_options(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, RequestValidationError)
        first = problem.errors()[0]
        place = ".".join(str(each) for each in first["loc"][1:])
        return respond(request, Refusal(422, "bad_parameters", f"{place[:100]}: {first['msg']}"))

    async def refuse_address(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        messages = {404: "there is no such address; GET /docs lists them", 405: "this address takes another method"}
        message = messages.get(problem.status_code, str(problem.detail))
        name = NAMES.get(problem.status_code, "bad_request")
        return respond(request, Refusal(problem.status_code, name, message, problem.headers or {}))

    async def report_bug(request: Request, problem: Exception) -> Response:
        message = "an error of the service; its log has the details under the request_id"
        return respond(request, Refusal(500, "internal", message))  # the guard logs it

    async def respond_to_nobody(request: Request, problem: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(RequestValidationError, refuse_options)
    app.add_exception_handler(HTTPException, refuse_address)
    app.add_exception_handler(ClientGone, respond_to_nobody)
    app.add_exception_handler(Exception, report_bug)


def _describe(app: FastAPI) -> None:
    """Serve the description and the page's files."""
    described = app.openapi()
    described["components"]["schemas"] |= _list_schemas(JsonBody)
    files = list_page_files() | {
        DOCS_PATH: PageFile("text/html; charset=utf-8", write_docs(described)),
        STYLE_PATH: PageFile("text/css; charset=utf-8", read_style()),
    }

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(described)

    def add(path: str, file: PageFile) -> None:
        @app.get(path, include_in_schema=False)
        async def send_file() -> Response:
            return Response(file.data, media_type=file.media_type, headers={"Cache-Control": "no-cache"})

    for path, file in files.items():
        add(path, file)


def _list_schemas(model: type[JsonBody]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    nested: dict[str, Any] = schema.pop("$defs")
    return nested | {model.__name__: schema}
