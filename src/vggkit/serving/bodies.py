"""The images of a request's body: multipart, one image's bytes, or JSON with base64. Nothing is fetched."""

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from vggkit.serving.limits import Lease, ServeLimits
from vggkit.serving.refusals import Refusal

FIELD: Final = "files"
"""The multipart field of the images."""
JSON_TYPE: Final = "application/json"
MULTIPART_TYPE: Final = "multipart/form-data"
BYTES_TYPE: Final = "application/octet-stream"
MOST_NAME: Final = 255
"""Characters of an image's name."""
LARGE_BYTES: Final = 2**19
"""Bodies from this size on are parsed in a thread."""
COMMAS_AN_IMAGE: Final = 64
"""Commas in JSON for each permitted image: more of them would make millions of objects of a small body."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it was sent."""

    name: str
    """The last part of its file's name, or `image 0`."""
    data: bytes
    """Its file."""


class JsonImage(BaseModel):
    """An image in JSON."""

    model_config = ConfigDict(extra="forbid")
    data: str = Field(description="The image's file in base64.", json_schema_extra={"contentEncoding": "base64"})
    name: str | None = Field(default=None, description="What the result calls it.", max_length=MOST_NAME)


class JsonBody(BaseModel):
    """Images in JSON."""

    model_config = ConfigDict(extra="forbid")
    images: list[JsonImage] = Field(min_length=1)


async def read_body(receive: Receive, headers: Headers, limits: ServeLimits, lease: Lease) -> bytes:
    """The whole body, within its limits; the lease takes its bytes.

    Raises Refusal: 413, 408 where it does not arrive in time, 503 where no memory is left, and ClientGone.
    """
    most = limits.max_request_bytes
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(int(declared), most)
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(limits.upload_seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                lease.take(len(piece))
                pieces.append(piece)
                if lease.taken > most:
                    raise _too_large(lease.taken, most)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refusal(
            408,
            "too_slow",
            f"a request must arrive within {limits.upload_seconds:g} s (--upload-seconds); {lease.taken:,} did",
            {"Connection": "close"},
        ) from None
    return b"".join(pieces)


class ClientGone(Exception):
    """The client closed the connection; nobody would receive a response."""


def _too_large(size: int, most: int) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"a request has up to {most:,} bytes (--max-request-bytes); got {size:,} or more: send fewer images",
    )


def parse_body(body: bytes, content_type: str, limits: ServeLimits) -> list[Upload]:
    """The images of a body; raises Refusal for anything else."""
    kind, options = parse_options_header(content_type)
    kind = kind.strip().lower()
    if kind == MULTIPART_TYPE.encode():
        uploads = _parse_multipart(body, options.get(b"boundary", b""), limits)
    elif kind == JSON_TYPE.encode():
        uploads = _parse_json(body, limits)
    elif kind == BYTES_TYPE.encode() or re.fullmatch(rb"image/[a-z0-9.+-]+", kind):
        uploads = [Upload("image 0", body)] if body else []
    else:
        raise Refusal(
            415,
            "unsupported_type",
            f"Content-Type must be {MULTIPART_TYPE} with files in the field {FIELD}, image/… or {BYTES_TYPE} with "
            f"one image's bytes, or {JSON_TYPE}; got {content_type[:100]!r}",
        )
    if not uploads:
        raise Refusal(422, "bad_parameters", f"there is no image in the request; send one in the field {FIELD}")
    return uploads


def _parse_multipart(body: bytes, boundary: bytes, limits: ServeLimits) -> list[Upload]:
    if not boundary:
        raise _malformed("the Content-Type of multipart/form-data states no boundary")
    collector = _Collector(limits)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_part_data": collector.add_data,
                "on_part_end": collector.end,
                "on_header_field": collector.add_name,
                "on_header_value": collector.add_value,
                "on_header_end": collector.end_header,
                "on_headers_finished": collector.end_headers,
                "on_end": collector.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as problem:
        raise _malformed(f"the multipart body is malformed ({problem})") from problem
    if not collector.is_whole:
        raise _malformed("the multipart body ends before its last boundary")
    return collector.uploads


class _Collector:
    """Collects the files of a multipart body."""

    def __init__(self, limits: ServeLimits) -> None:
        self._most = limits.max_images
        self.uploads: list[Upload] = []
        self.is_whole = False
        self.begin()

    def begin(self) -> None:
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._file = ""

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise Refusal(
                422,
                "bad_parameters",
                f"images are sent in the field {FIELD}, and options in the address, such as /predict?top=3; got "
                f"the field {field[:100]!r}",
            )
        if len(self.uploads) >= self._most:
            raise _too_many(self._most)
        self._file = options.get(b"filename", b"").decode("utf-8", "replace")

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def end(self) -> None:
        self.uploads.append(Upload(_shorten(self._file, len(self.uploads)), b"".join(self._pieces)))

    def finish(self) -> None:
        self.is_whole = True


def _parse_json(body: bytes, limits: ServeLimits) -> list[Upload]:
    if body.count(b",") > COMMAS_AN_IMAGE * limits.max_images:
        raise _too_many(limits.max_images)
    try:
        given = JsonBody.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}" if place else first["msg"]
        if first["type"] == "json_invalid":
            raise _malformed(f"the body is not JSON ({first['msg']})") from None
        raise Refusal(
            422, "bad_parameters", f'the body must be {{"images": [{{"data": "<base64>"}}]}}; {message}'
        ) from None
    if len(given.images) > limits.max_images:
        raise _too_many(limits.max_images)
    uploads = []
    for number, image in enumerate(given.images):
        try:
            data = base64.b64decode(image.data, validate=True)
        except (binascii.Error, ValueError) as problem:
            raise Refusal(
                422, "bad_parameters", f"images.{number}.data: is not base64 of an image's file ({problem})"
            ) from None
        uploads.append(Upload(_shorten(image.name or "", number), data))
    return uploads


def _shorten(name: str, number: int) -> str:
    """The last part of a file's name, whatever system it is from."""
    last = re.split(r"[/\\]", name)[-1].strip()
    return last[-MOST_NAME:] if last else f"image {number}"


def _too_many(most: int) -> Refusal:
    return Refusal(413, "too_many_images", f"a request has up to {most} images (--max-images); got more")


def _malformed(message: str) -> Refusal:
    return Refusal(400, "bad_request", message)
