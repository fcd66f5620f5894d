"""Requests' options and responses as JSON: the records that OpenAPI describes.

Shape letters: K classes, F numbers of a vector.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class PredictOptions(BaseModel):
    """Options of POST /predict, in the address."""

    model_config = ConfigDict(extra="forbid")
    top: int = Field(default=5, ge=1, le=1000, description="Number of classes to name.")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Probability below which the label is `unknown`, or, of a multi-label model, from which every "
        "class is predicted; else the model's own.",
    )
    explain: bool = Field(default=False, description="Also say which regions of each image support its class.")
    model: str | None = Field(default=None, max_length=64, description="The model's name; else the first one.")


class EmbedOptions(BaseModel):
    """Options of POST /embed, in the address."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(default=None, max_length=64, description="The model's name; else the first one.")


class ModelOptions(EmbedOptions):
    """Options of GET /model, in the address."""


class NoOptions(BaseModel):
    """No options."""

    model_config = ConfigDict(extra="forbid")


class Heatmap(BaseModel):
    """Which regions of an image support a class: Grad-CAM."""

    image: str = Field(
        description="A PNG as a data: address, to be stretched over `box`: transparent where nothing supports "
        "the class, else matplotlib's inferno with an alpha of up to 0.85, scaled to the map's largest value.",
        pattern="^data:image/png;base64,",
    )
    label: str = Field(description="The class that is explained: the most probable one.")
    layer: str = Field(description="The layer whose map is explained.")
    box: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom edge in pixels of the upright image. Edges lie outside of the "
        "image where the network sees padding there."
    )


class PredictedImage(BaseModel):
    """The most probable classes of one image, or why there are none."""

    name: str = Field(description="The last part of the file's name, or `image 0`.")
    width: int | None = Field(description="Of the upright image, in pixels; null where there is a problem.")
    height: int | None = Field(description="Of the upright image, in pixels; null where there is a problem.")
    label: str | None = Field(
        description="The most probable class; `unknown` where its probability is below the threshold. Of a "
        "multi-label model its predicted labels, joined for people."
    )
    predicted: list[str] | None = Field(
        default=None,
        description="Of a multi-label model: every class whose probability reaches its threshold, the most "
        "probable first; perhaps none. Else null.",
    )
    unknown: bool = Field(description="Whether the highest probability is below the threshold.")
    labels: list[str] = Field(description="The most probable classes, best first.")
    probabilities: list[float] = Field(
        description="Their probabilities in [0, 1]; over all classes they sum to 1, but for a multi-label model."
    )
    heatmap: Heatmap | None = Field(description="Where `explain=true`.")
    problem: str | None = Field(description="Why the image was not classified.")


class Predictions(BaseModel):
    """The response of POST /predict."""

    model: str = Field(description="The model's name.")
    version: str = Field(description="Of the model: differs where weights, labels or preprocessing do.")
    predictions: list[PredictedImage] = Field(description="One for each image, in order.")
    seconds: float = Field(description="From the request's arrival to its response.")


class EmbeddedImage(BaseModel):
    """One image as a vector."""

    name: str = Field(description="The last part of the file's name, or `image 0`.")
    vector: list[float] | None = Field(description="F numbers; null where there is a problem.")
    problem: str | None = Field(description="Why there is no vector.")


class Embedded(BaseModel):
    """The response of POST /embed."""

    model: str = Field(description="The model's name.")
    version: str = Field(description="Of the model: differs where weights, labels or preprocessing do.")
    layer: str = Field(description="The layer that the numbers are of (--layer).")
    embeddings: list[EmbeddedImage] = Field(description="One for each image, in order.")
    seconds: float = Field(description="From the request's arrival to its response.")


class RequestLimits(BaseModel):
    """What a request may have."""

    max_request_bytes: int
    max_images: int
    max_image_pixels: int
    timeout_seconds: float


class EngineRecord(BaseModel):
    """What computes."""

    name: str = Field(description="`openvino`, `onnx`, `ncnn` or `pytorch`.")
    precision: str = Field(description="`fp32`, `bf16` or `int8`.")
    device: str = Field(description="`cpu`, `cuda` or `mps`.")
    version: str
    weight_bits: int | None


class ModelDescription(BaseModel):
    """The response of GET /model."""

    name: str
    version: str = Field(description="Differs where weights, labels or preprocessing do.")
    loaded_at: str = Field(description="Time in UTC, ISO 8601.")
    architecture: str = Field(description="The network, such as `vgg16`.")
    configuration: dict[str, Any] = Field(description="Everything about the network but its weights.")
    preprocessing: dict[str, Any] = Field(description="How an image becomes the network's input.")
    labels: list[str] = Field(description="K class names, in the order of the logits.")
    task: str = Field(description="`single-label`: exactly one class an image. `multi-label`: any number of them.")
    temperature: float = Field(description="Logits are divided by it before the softmax or the sigmoid.")
    threshold: float = Field(description="Probability below which the label is `unknown`; 0: never.")
    thresholds: list[float] = Field(
        description="Multi-label: probability from which each class is predicted; empty: 0.5 for each."
    )
    metrics: dict[str, Any] = Field(description="As measured when it was trained; empty where that is not known.")
    licence: str | None = Field(description="Of the weights; null where it is not known.")
    engine: EngineRecord
    layer: str = Field(description="The layer of POST /embed.")
    explains: str | None = Field(description="The layer of heatmaps; null where the network has none.")
    reload_problem: str | None = Field(
        description="Why the changed file was not loaded; the model from before is used."
    )
    vggkit: str = Field(description="Version of vggkit.")
    limits: RequestLimits


class ModelNames(BaseModel):
    """The response of GET /models."""

    models: list[str] = Field(description="The first is used where a request names none.")


class Status(BaseModel):
    """The response of GET /health and GET /ready."""

    status: str


class ProblemImage(BaseModel):
    """An image that cannot be classified."""

    name: str
    problem: str


class ErrorResponse(BaseModel):
    """The response to a request that is refused."""

    error: str = Field(description="The error's name, for programs.")
    message: str = Field(description="The rule, what was received, and what to do.")
    request_id: str = Field(description="The request's X-Request-ID, which the service's logs have too.")
    images: list[ProblemImage] = Field(default=[], description="Where every image has a problem.")
