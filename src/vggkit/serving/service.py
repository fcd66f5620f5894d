"""What a request passes through: its body is read, its images decoded and computed, and its response written.

Shape letters: C channels, H and W pixels.
"""

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Receive

from vggkit._version import __version__
from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.stream import StreamResult
from vggkit.errors import BadImage
from vggkit.explanations.overlay import encode_heat
from vggkit.images.dataset import ImageSample
from vggkit.images.image_header import read_head
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.storages import HeldBytes
from vggkit.inference.predict import Prediction, describe_prediction
from vggkit.serving.batcher import Batcher, Job
from vggkit.serving.bodies import LARGE_BYTES, ClientGone, Upload, parse_body, read_body
from vggkit.serving.limits import Budget, ServeLimits
from vggkit.serving.loaded_model import ComputedImage, LoadedModel, Wanted
from vggkit.serving.metrics import Metrics
from vggkit.serving.named_models import NamedModels
from vggkit.serving.refusals import ImageProblem, Refusal
from vggkit.serving.responses import (
    Embedded,
    EmbeddedImage,
    EngineRecord,
    Heatmap,
    ModelDescription,
    PredictedImage,
    Predictions,
    PredictOptions,
    RequestLimits,
)
from vggkit.weights.card import read_entry

HEAT_PIXELS: Final = 112
"""Side of a heatmap's PNG: eight times that of VGG's last map; browsers enlarge it smoothly."""


class UploadedImage:
    """One image of a request.

    Args:
        upload: What was sent.
        preprocessing: The model's.
        most_pixels: What is decoded at most.
    """

    def __init__(self, upload: Upload, preprocessing: Preprocessing, most_pixels: int) -> None:
        self.name = upload.name
        self.sample = ImageSample(upload.name, storage=HeldBytes(upload.data))
        self._data, self._preprocessing, self._most = upload.data, preprocessing, most_pixels
        self.size = (0, 0)
        """H and W of the upright image, once it is decoded."""

    def prepare(self) -> NDArray[np.float32]:
        """The network's input (C, H, W); raises BadImage."""
        if not self._data:
            raise BadImage(f"{self.name}: is empty (0 bytes)")
        head = read_head(self._data, name=self.name)
        if head.width * head.height > self._most:
            raise BadImage(
                f"{self.name}: has {head.width}×{head.height} pixels; images of up to {self._most:,} are read "
                "(--max-image-pixels)"
            )
        preprocessing = self._preprocessing
        pixels = self.sample.decode(least_side=preprocessing.least_side, channels=preprocessing.decoded_channels)
        # Where a JPEG is decoded at a smaller scale, its pixels are fewer than the image has.
        self.size = (head.height, head.width) if preprocessing.reduced_decoding else pixels.shape[:2]
        return preprocessing.normalize(preprocessing.fit(pixels))


Outcome = tuple[UploadedImage, ComputedImage | BadImage]


class Service:
    """The models, the batcher and the limits of one process.

    Args:
        models: What computes.
        batcher: Where images wait.
        limits: What a request may take.
        metrics: Count images.
    """

    def __init__(self, models: NamedModels, batcher: Batcher, limits: ServeLimits, metrics: Metrics) -> None:
        self.models, self.batcher, self.limits, self.metrics = models, batcher, limits, metrics
        self.is_draining = False
        """Whether the service stops, and computes only what it has."""
        self._budget = Budget(limits.max_buffer_bytes)

    async def predict(self, request: Request, options: PredictOptions) -> Predictions:
        """The response of POST /predict; raises Refusal and ClientGone."""
        model = self.models.find(options.model)
        if options.explain and model.plan is None:
            raise Refusal(
                422,
                "bad_parameters",
                f"the last map of {model.name} has a single place, so there is no heatmap; leave explain out",
            )
        wanted = Wanted.CLASSES | Wanted.MAP if options.explain else Wanted.CLASSES
        outcomes = await self._compute(request, model, wanted)
        described = [_predict(each, model, options) for each in outcomes]
        self._finish(request, model, [(each.path, each.problem) for each in described])
        heats = [
            None if each.problem or isinstance(computed, BadImage) else computed.map
            for each, (_, computed) in zip(described, outcomes, strict=True)
        ]
        encoded: list[str | None] = [None] * len(heats)
        if options.explain:
            encoded = await self.batcher.run_in_thread(lambda: [None if h is None else _encode(h) for h in heats])
        predictions = [
            _write_prediction(each, image, heat, model)
            for each, (image, _), heat in zip(described, outcomes, encoded, strict=True)
        ]
        return Predictions(
            model=model.name, version=model.version, predictions=predictions, seconds=_measure(request)
        )

    async def embed(self, request: Request, name: str | None) -> Embedded:
        """The response of POST /embed; raises Refusal and ClientGone."""
        model = self.models.find(name)
        outcomes = await self._compute(request, model, Wanted.VECTOR)
        embeddings = [_embed(each) for each in outcomes]
        self._finish(request, model, [(each.name, each.problem) for each in embeddings])
        return Embedded(
            model=model.name,
            version=model.version,
            layer=model.layer,
            embeddings=embeddings,
            seconds=_measure(request),
        )

    def describe(self, name: str | None) -> ModelDescription:
        """The response of GET /model; raises Refusal."""
        model = self.models.find(name)
        card = model.card
        licence = card.provenance.get("licence") or read_entry(card.provenance, "weights").get("licence")
        return ModelDescription(
            name=model.name,
            version=model.version,
            loaded_at=model.loaded_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            architecture=card.configuration.model,
            configuration=card.configuration.to_dict(),
            preprocessing=card.preprocessing.to_dict(),
            labels=list(card.labels),
            task=card.task,
            temperature=card.temperature,
            threshold=card.threshold,
            thresholds=list(card.thresholds),
            metrics=dict(read_entry(card.provenance, "metrics")),
            licence=None if licence is None else str(licence),
            engine=EngineRecord(**asdict(model.info)),
            layer=model.layer,
            explains=None if model.plan is None else model.plan.layer,
            reload_problem=self.models.problems.get(model.name),
            vggkit=__version__,
            limits=RequestLimits(**{each: getattr(self.limits, each) for each in RequestLimits.model_fields}),
        )

    async def _compute(self, request: Request, model: LoadedModel, wanted: Wanted) -> list[Outcome]:
        """What is wanted of each image of a request, or why it cannot be read."""
        with self._budget.lease() as lease:
            body = await read_body(request.receive, request.headers, self.limits, lease)
            kind = request.headers.get("content-type", "")
            parse = partial(parse_body, body, kind, self.limits)
            uploads = parse() if len(body) < LARGE_BYTES else await self.batcher.run_in_thread(parse)
            del body, parse
            most = self.limits.max_image_pixels
            images = [UploadedImage(each, model.card.preprocessing, most) for each in uploads]
            found = await self._wait(images, model, wanted, request.receive)
        return list(zip(images, found, strict=True))

    async def _wait(
        self, images: Sequence[UploadedImage], model: LoadedModel, wanted: Wanted, receive: Receive
    ) -> list[ComputedImage | BadImage]:
        """The results of the batcher; raises Refusal where they take too long, and ClientGone."""
        loop, seconds = asyncio.get_running_loop(), self.limits.timeout_seconds
        deadline = time.monotonic() + seconds
        jobs = [
            Job[ComputedImage](
                model=model,
                prepare=image.prepare,
                wanted=wanted,
                deadline=deadline,
                loop=loop,
                future=loop.create_future(),
            )
            for image in images
        ]
        self.batcher.submit(jobs)
        results = asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        gone = asyncio.ensure_future(_wait_until_gone(receive))
        waited: tuple[asyncio.Future[Any], ...] = results, gone
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            is_whole = results.done()
            for job in jobs:  # what still waits is not computed
                job.future.cancel()
        if not is_whole:
            if gone.done():
                raise ClientGone
            raise _too_late(seconds)
        found: list[ComputedImage | BadImage] = []
        for result in results.result():
            if isinstance(result, asyncio.CancelledError):
                raise _too_late(seconds)
            if isinstance(result, BaseException) and not isinstance(result, BadImage):
                raise result
            found.append(result)
        return found

    def _finish(self, request: Request, model: LoadedModel, named: Sequence[tuple[str, str | None]]) -> None:
        """Count the images; raises Refusal where every one of them has a problem."""
        problems = [ImageProblem(name, problem) for name, problem in named if problem is not None]
        self.metrics.images.labels(model.name, "computed").inc(len(named) - len(problems))
        self.metrics.images.labels(model.name, "problem").inc(len(problems))
        request.state.log_fields = {"model": model.name, "images": len(named), "problems": len(problems)}
        if len(problems) == len(named):
            raise Refusal(422, "bad_image", problems[0].problem, images=problems)


async def _wait_until_gone(receive: Receive) -> None:
    """Returns when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_late(seconds: float) -> Refusal:
    return Refusal(504, "timeout", f"the result was not computed within {seconds:g} s (--timeout-seconds)")


def _measure(request: Request) -> float:
    started: float = request.state.started
    return round(time.perf_counter() - started, 4)


def _predict(outcome: Outcome, model: LoadedModel, options: PredictOptions) -> Prediction:
    image, computed = outcome
    if isinstance(computed, BadImage):
        result = StreamResult(image.sample, None, str(computed))
    else:
        assert computed.logits is not None
        overflow = describe_overflow(computed.logits)
        result = StreamResult(
            image.sample, None if overflow else computed.logits, overflow and f"{image.name}: {overflow}"
        )
    return describe_prediction(result, model.card, top=options.top, threshold=options.threshold)


def _write_prediction(
    found: Prediction, image: UploadedImage, heat: str | None, model: LoadedModel
) -> PredictedImage:
    height, width = image.size
    heatmap = None
    if heat is not None and model.plan is not None:
        heatmap = Heatmap(
            image=heat,
            label=found.labels[0],
            layer=str(model.plan.layer),
            box=model.card.preprocessing.locate(height, width),
        )
    return PredictedImage(
        name=found.path,
        width=None if found.problem else width,
        height=None if found.problem else height,
        label=found.label,
        unknown=found.unknown,
        predicted=None if found.predicted is None else list(found.predicted),
        labels=list(found.labels),
        probabilities=list(found.probabilities),
        heatmap=heatmap,
        problem=found.problem,
    )


def _encode(heat: NDArray[np.float32]) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_heat(heat, HEAT_PIXELS)).decode("ascii")


def _embed(outcome: Outcome) -> EmbeddedImage:
    image, computed = outcome
    if isinstance(computed, BadImage):
        return EmbeddedImage(name=image.name, vector=None, problem=str(computed))
    assert computed.vector is not None
    overflow = describe_overflow(computed.vector)
    if overflow:
        return EmbeddedImage(name=image.name, vector=None, problem=f"{image.name}: {overflow}")
    return EmbeddedImage(name=image.name, vector=computed.vector.tolist(), problem=None)
