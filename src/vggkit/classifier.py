"""The Classifier: a Model with the methods to predict, evaluate, embed, explain, compare and publish.

Shape letters: N images, H height, W width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from vggkit.arguments import demand_path
from vggkit.benchmarking.timings import Bench
from vggkit.engines.averaged_views import Views
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.evaluation.comparison import PairedComparison, compare_predictions
from vggkit.evaluation.evaluation import Evaluation, ProtocolName
from vggkit.evaluation.measure import evaluate
from vggkit.explanations.explain import explain
from vggkit.explanations.explanation import Explanations
from vggkit.explanations.plan import Method
from vggkit.exporting.formats import FormatName
from vggkit.exporting.plan import StoredPrecision
from vggkit.exporting.record import Export
from vggkit.images.dataset import ImageDataset
from vggkit.images.given import ImageSources
from vggkit.images.labelled import LabelledImages
from vggkit.inference.embed import Embeddings, embed
from vggkit.inference.predict import Prediction, predict
from vggkit.notebook import write_html
from vggkit.weights.hub import push, read_name, write_repository
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model
from vggkit.weights.storage import Storage
from vggkit.workflows.bench import bench
from vggkit.workflows.export import export


class Classifier(Model):
    """A VGG with its preprocessing and class names, and the methods to predict, evaluate, embed and compare.

    One `.safetensors` file holds network, preprocessing, labels and provenance. `Classifier.create` makes one to
    train, `vggkit.load` or `Classifier.from_pretrained` opens one.

    Args:
        network: The VGG; its number of classes is the number of labels.
        labels: Class names in the order of the logits, or a mapping of names to numbers or of numbers to names.
        preprocessing: How an image becomes the network's input.
        task: Whether an image has exactly one class (single-label) or any number of them (multi-label).
        temperature: Logits are divided by it before the softmax or the sigmoid.
        threshold: Single-label: probability in [0, 1) below which the prediction is "unknown"; 0: never.
        thresholds: Multi-label: probability from which each class is predicted; empty: 0.5 for each.
        activation_ranges: Smallest and largest input of each layer, for int8.
        provenance: Data, recipe, metrics, licence of the weights, versions; any JSON values.

    Raises BadConfiguration where these do not fit together.
    """

    @classmethod
    def of(cls, model: Model) -> Self:
        """The same model with prediction methods; it shares the network, so that training one trains the other."""
        made = cls(model.network, labels=model.labels, preprocessing=model.preprocessing, task=model.task)
        made.card = model.card
        return made

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """A pretrained Classifier.

        Args:
            model: A model's name such as `vgg16`, for the published ImageNet weights with their 1,000 labels, or
                `digits`, which comes with vggkit; the file of a Classifier; a run's folder, for its best epoch; a
                folder that `save_pretrained` wrote; or `owner/name` or `hf://owner/name`, a repository of the
                Hugging Face hub. An existing path comes first.
            revision: A branch, tag or commit of that repository; None: `main`.

        Raises BadCheckpoint; and for what has to be downloaded BadDownload and MissingExtra.
        """
        return cls.load(locate_model(read_name(model, revision)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what a repository of the Hugging Face hub holds: `model.safetensors`, and a model card `README.md`.

        `from_pretrained` and `vggkit.load` open the folder again; `push_to_hub` publishes the same two files.

        Args:
            folder: The folder; it is made where there is none, and files of these names in it are replaced.

        Raises BadOutput.
        """
        write_repository(self, Path(demand_path(folder)))

    def _repr_html_(self) -> str:
        card = self._card  # the last valid one, where the network was changed since
        side, most = card.preprocessing.crop_pixels, 12
        more = f" … ({len(card.labels):,} in all)" if len(card.labels) > most else ""
        rows = [
            ("network", f"{card.configuration.model}, head {card.configuration.head}"),
            ("parameters", f"{sum(value.numel() for value in self.network.parameters()):,}"),
            ("input", f"{card.configuration.in_channels} × {side} × {side}"),
            ("classes", ", ".join(card.labels[:most]) + more),
            ("weights", f"{card.origin.kind}{f', {card.origin.source}' if card.origin.source else ''}"),
        ]
        if card.temperature != 1:
            rows.append(("temperature", f"{card.temperature:.3g}"))
        if card.threshold:
            rows.append(("unknown below", f"{card.threshold:.3g}"))
        return write_html("Classifier", rows)

    def predict(
        self,
        images: ImageSources,
        *,
        top: int = 5,
        batch_size: int = 32,
        device: str = "auto",
        precision: WantedPrecision = "fp32",
        engine: WantedEngine = "auto",
        reduced_decoding: bool = False,
        views: Views = "one",
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> list[Prediction]:
        """The most probable classes of each image, in the order of the images.

        Args:
            images: One image or several: a path, which may be a folder, a table of paths or an archive; the bytes
                of an image file; an open file; a PIL image; uint8 pixels as an array (H, W, 3) or a tensor
                (3, H, W); a list of any of these; an array (N, H, W, 3) or a tensor (N, 3, H, W).
            top: Number of classes to name, at most as many as there are.
            batch_size: Number of images that pass through the network together.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `fp32`, `bf16`, `int8` (on a CPU, with measured activation ranges), or `auto`: bf16 where
                the device supports it natively.
            engine: `pytorch`, `openvino`, `onnx`, `ncnn`, or `auto`: PyTorch on CUDA and on MPS, else the
                fastest one that is installed.
            reduced_decoding: Decode large JPEGs at a smaller scale, even where the preprocessing does not: it is
                faster, reads some that are too large otherwise, and changes pixels slightly.
            views: The views of each image whose probabilities are averaged. `one`: the image. `mirror`: also its
                mirror image, for images whose sides have no meaning. `mirror-shift`: both, and both moved by one
                pixel to two sides, six views in all, for small images. The time grows with their number.
            on_progress: Called with the number of images done and, where it is known, the number of all.

        The first call compiles the network, which takes a fraction of a second; later calls with the same device,
        precision and engine use the compiled network again, which is cached in this Classifier as long as the
        weights do not change. Threads may call this at the same time.

        An image that cannot be read becomes a Prediction whose `problem` gives the reason. Raises BadInput,
        BadData, BadConfiguration and MissingExtra.

        >>> from vggkit import Classifier
        >>> import numpy as np
        >>> classifier = Classifier.create("vgg11", labels=["cat", "dog"], until="pool1", seed=0)
        >>> [prediction] = classifier.predict(np.zeros((64, 64, 3), np.uint8))
        >>> sorted(prediction.labels)
        ['cat', 'dog']
        """
        return predict(
            self,
            images,
            top=top,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            views=views,
            on_progress=on_progress,
        )

    def embed(
        self,
        images: ImageSources,
        *,
        layer: str = "features",
        batch_size: int = 32,
        device: str = "auto",
        precision: WantedPrecision = "fp32",
        engine: WantedEngine = "auto",
        reduced_decoding: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Embeddings:
        """Each image as a vector, in the order of the images.

        Args:
            images: One image or several: a path, which may be a folder, a table of paths or an archive; the bytes
                of an image file; an open file; a PIL image; uint8 pixels as an array (H, W, 3) or a tensor
                (3, H, W); a list of any of these; an array (N, H, W, 3) or a tensor (N, 3, H, W).
            layer: The layer: `features`, the input of the last fully connected layer; `statistics`,
                mean and standard deviation of each channel of the trunk's last map; `logits`; `probabilities`;
                or a layer's name, such as `relu7` or `pool5`, whose maps are averaged over their area.
            batch_size: Number of images that pass through the network together.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `fp32`, `bf16`, `int8` (on a CPU, with measured activation ranges), or `auto`: bf16 where
                the device supports it natively.
            engine: `pytorch`, `openvino`, `onnx`, `ncnn`, or `auto`: PyTorch on CUDA and MPS, else the fastest
                one that is installed.
            reduced_decoding: Decode large JPEGs at a smaller scale, even where the preprocessing does not: it is
                faster, reads some that are too large otherwise, and changes pixels slightly.
            on_progress: Called with the number of images done and, where it is known, the number of all.

        An image that cannot be read has a row of NaN, and its `problem` gives the reason. Raises UnknownName for a
        layer that the network does not have, BadInput, BadData, BadConfiguration and MissingExtra.
        """
        return embed(
            self,
            images,
            layer=layer,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=on_progress,
        )

    def explain(
        self,
        images: ImageSources,
        *,
        method: Method = "grad-cam",
        label: str | None = None,
        contrast: Sequence[str] | None = None,
        layer: str | None = None,
        batch_size: int = 32,
        device: str = "auto",
        precision: WantedPrecision = "fp32",
        engine: WantedEngine = "auto",
        reduced_decoding: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Explanations:
        """Saliency maps of the regions of each image that support a class, in the order of the images.

        Args:
            images: One image or several, as `predict` takes them.
            method: `grad-cam`: the channels of a layer's map, weighed by the gradient of the class's score
                (Selvaraju et al., 2017). `layer-cam`: the same with a weight for each place, which is finer in
                early layers (Jiang et al., 2021). `integrated-gradients`, `occlusion` and `saliency` explain the
                pixels of the network's input, by captum (extra `explain`).
            label: The class to explain. None: of each image the most probable one.
            contrast: Two classes, A and B: regions that support A and not B.
            layer: For grad-cam and layer-cam, a layer with a map. None: what the last pool reads, which is the last
                convolution's map after its ReLU, such as `relu5_3`.
            batch_size: Number of images that pass through the network together.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `fp32`, `bf16`, `int8` or `auto`, where an engine explains; by gradients it is fp32.
            engine: `pytorch`, `openvino`, `onnx`, `ncnn` or `auto`. Any of them computes grad-cam at the default
                layer or behind the last pool, in closed form; all else is computed by PyTorch.
            reduced_decoding: Decode large JPEGs at a smaller scale, even where the preprocessing does not: it is
                faster, reads some that are too large otherwise, and changes pixels slightly.
            on_progress: Called with the number of images done and, where it is known, the number of all.

        The network is left as it is: mode, gradients, hooks. `explain("cat.jpg").save("why.png")` writes the
        image beside the image under its map; of several images it writes a contact sheet.

        An image that cannot be read becomes an Explanation whose `problem` gives the reason. Raises UnknownName
        with the nearest name, BadInput, BadData, BadConfiguration and MissingExtra.
        """
        return explain(
            self,
            images,
            method=method,
            label=label,
            contrast=contrast,
            layer=layer,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=on_progress,
        )

    def evaluate(
        self,
        data: LabelledImages,
        *,
        split: str | None = None,
        protocol: ProtocolName = "single",
        scales: Sequence[int] = (),
        train_scales: Sequence[int] = (),
        mirror: bool | None = None,
        views: Views = "one",
        wanted_precision: float | None = None,
        batch_size: int = 32,
        device: str = "auto",
        precision: WantedPrecision = "fp32",
        engine: WantedEngine = "auto",
        reduced_decoding: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Metrics on labelled images, each with its 95 % confidence interval.

        Args:
            data: Labelled images: a folder with a subfolder for each class, a table, tar shards, the name of a
                public data set, images from Python, or what `open_dataset` gave. Classes are matched by name.
            split: `train`, `val`, `test` or `all`. None: the test split, else the validation split, else all that
                the Classifier was not trained on.
            protocol: `single`: one view of each image, as `predict` uses. The paper's: `dense`, the network slid
                over the whole image; `multi-scale`, the same at three sizes; `multi-crop`, 25 crops at each of
                them; `dense+crops`, both averaged (Simonyan and Zisserman, sections 3.2 and 4).
            scales: Short sides in pixels for these protocols, in place of the paper's.
            train_scales: Short side in pixels that the network was trained at, or both ends of its range; the
                paper's test scales follow from it.
            mirror: Whether to average over each image and its mirror image. None: in all protocols but `single`.
            views: With the protocol `single`: the views of each image that are averaged, as for `predict`: `one`,
                `mirror`, or `mirror-shift`.
            wanted_precision: Find the probability threshold above which predictions have this precision, such
                as 0.95.
            batch_size: Number of images that pass through the network together.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `fp32`, `bf16`, `int8` or `auto`; other precisions than fp32 are noted beside the metrics.
            engine: `pytorch`, `openvino`, `onnx`, `ncnn` or `auto`.
            reduced_decoding: Decode large JPEGs at a smaller scale, even where the preprocessing does not: it is
                faster, reads some that are too large otherwise, and changes pixels slightly.
            on_progress: Called with the number of images done and the number of all.

        Raises BadData where no class of the data is known to the Classifier, BadInput, BadConfiguration, and
        MissingExtra without scikit-learn.
        """
        return evaluate(
            self,
            data,
            split=split,
            protocol=protocol,
            scales=scales,
            train_scales=train_scales,
            mirror=mirror,
            views=views,
            wanted_precision=wanted_precision,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=on_progress,
        )

    def compare(
        self,
        other: Model | str | Path,
        data: str | Path | ImageDataset,
        *,
        names: tuple[str, str] = ("this", "other"),
        split: str | None = None,
        protocol: ProtocolName = "single",
        batch_size: int = 32,
        device: str = "auto",
        precision: WantedPrecision = "fp32",
        engine: WantedEngine = "auto",
    ) -> PairedComparison:
        """Compare with another Classifier on the same labelled images.

        The result holds both accuracies, their difference with its 95 % confidence interval, McNemar's test, and
        the images whose predictions differ.

        Args:
            other: A Classifier with the same classes, or its place, as `from_pretrained` takes it.
            data: Labelled images, as `evaluate` takes them.
            names: Names of the two in the result.
            split: `train`, `val`, `test` or `all`. None: the test split, else the validation split, else all that
                the Classifier was not trained on.
            protocol: The evaluated views of each image, as in `evaluate`.
            batch_size: Number of images that pass through the network together.
            device: `auto`, `cpu`, `cuda` or `mps`.
            precision: `fp32`, `bf16`, `int8` or `auto`.
            engine: `pytorch`, `openvino`, `onnx`, `ncnn` or `auto`.

        Raises BadInput where the classes or the images differ, and what `evaluate` does.
        """
        second = other if isinstance(other, Model) else Model.load(locate_model(other))
        one, two = (
            Classifier.of(model).evaluate(
                data,
                split=split,
                protocol=protocol,
                batch_size=batch_size,
                device=device,
                precision=precision,
                engine=engine,
            )
            for model in (self, second)
        )
        return compare_predictions(one.predictions, two.predictions, names=names)

    def bench(
        self,
        images: ImageSources = (),
        *,
        batch_sizes: Sequence[int] = (1, 8, 32),
        rounds: int = 5,
        seconds: float = 1.0,
        device: str = "auto",
        keep_ranges: bool = False,
        on_progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Bench:
        """The speed of every engine and precision that runs on this machine, each in a separate process.

        Args:
            images: Images to compare the engines' predictions on, as `predict` takes them; up to 256 are used.
                Without any, noise is used, and only the speed is meaningful.
            batch_sizes: Numbers of images that pass through the network together; 1 is always among them.
            rounds: Number of turns that each engine has; a figure is the median of its turns.
            seconds: Length of a turn, for each batch size.
            device: `auto`: all there are; or `cpu`, `cuda`, `mps`.
            keep_ranges: Store the activation ranges that int8 needs, measured on other images, in this Classifier.
            on_progress: Called with the current task, how much of it is done, and of how much.

        Raises BadInput, BadData where no image can be read, and MissingExtra where ranges are to be measured
        without OpenVINO.
        """
        return bench(
            self,
            images,
            batch_sizes=batch_sizes,
            rounds=rounds,
            seconds=seconds,
            device=device,
            keep_ranges=keep_ranges,
            on_progress=on_progress,
        )

    def export(
        self,
        out: str | Path,
        *,
        to: FormatName | None = None,
        data: ImageSources = (),
        resize: bool = False,
        precision: StoredPrecision = "fp32",
        on_progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Export:
        """Write a file that runs without vggkit, and check it before it gets its name.

        ONNX, torch.export and OpenVINO files are programs from uint8 RGB images (N, H, W, 3) to probabilities
        (N, K), with normalisation, temperature and labels inside.

        Args:
            out: The file; its ending says the format: `.onnx`, `.pt2`, `.xml` (OpenVINO, with a `.bin` beside it),
                `.pth`, `.pt` or `.safetensors` (torchvision), `.h5`, `.weights.h5` or `.npz` (Keras). With `web` a
                folder.
            to: The format, where several have the ending: `onnx`, `pt2`, `openvino`, `torchvision`, `timm` or
                `keras`; `web`: a folder for any static host, whose page classifies images in the browser.
            data: Images that a program is checked on, as `predict` takes them; up to 16 are used. None: synthetic
                ones.
            resize: Resize and crop in the program, so that it takes images of any size.
            precision: `fp16` stores the weights in half the bytes, and `int8` (ONNX and web) in a quarter; programs
                compute in float32 in any case.
            on_progress: Called with the current task, how much of it is done, and of how much.

        The result has the check's figures, and in `snippet` code that runs the file. Raises UnknownName for an
        unknown ending, BadOutput if the file cannot be written or its results differ, BadConfiguration if the
        format cannot represent the network, MissingExtra, BadData and BadInput.
        """
        return export(self, out, to=to, data=data, resize=resize, precision=precision, on_progress=on_progress)

    def compress(
        self,
        data: LabelledImages | None = None,
        *,
        max_size: str | int | None = None,
        max_loss: float | None = None,
        min_speedup: float | None = None,
        head: Literal["pool"] | None = None,
        prune: float | None = None,
        ranks: Sequence[int] = (),
        energy: float | None = None,
        storage: Storage | None = None,
        epochs: int = 5,
        learning_rate: float | None = None,
        seed: int = 0,
        device: str = "auto",
        quiet: bool = False,
    ) -> "Classifier":
        """A smaller and faster Classifier; this one is not changed.

        With goals (`max_size`, `max_loss`, `min_speedup`) a combination of steps is searched, without goals the
        named steps alone are done; see `vggkit.compress`, which returns every measured network too. What was
        measured before and after is in `provenance["compression"]`.

        Args:
            data: Labelled images of its classes, as `train` takes them: networks are fitted on the training split,
                compared on the validation split, and the result is measured on the test split.
            max_size: Largest size of the file: bytes, or text such as `12MB`.
            max_loss: Largest loss of top-1 accuracy, in [0, 1).
            min_speedup: Least throughput at batch 8 on this machine, over this Classifier's in float32.
            head: `pool`: one matrix on the means of the channels in place of the fully connected layers.
            prune: Share in (0, 1) of the multiply-adds to remove, as channels of convolutions.
            ranks: Rank of each fully connected layer but the last; one for all, or one for each.
            energy: Share in (0, 1] of the energy of these layers to keep, by which their ranks are chosen.
            storage: How a file holds the weights: `fp32`, `fp16`, `int8` or `int4`.
            epochs: Passes over the training images after channels or the head changed, with this Classifier as the
                teacher; 0: none.
            learning_rate: Of these; None: half of that of this Classifier's own training.
            seed: Seed of every random draw.
            device: `auto`, `cpu`, `cuda` or `mps`.
            quiet: No progress on standard error.

        Raises BadInput for goals that cannot be reached, with the closest that was found, and what
        `vggkit.compress` does.
        """
        # One of the imports upwards; see docs/decisions/rooms.md.
        from vggkit.workflows.compress import compress

        return compress(
            self,
            data,
            max_size=max_size,
            max_loss=max_loss,
            min_speedup=min_speedup,
            head=head,
            prune=prune,
            ranks=ranks,
            energy=energy,
            storage=storage,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            quiet=quiet,
        ).classifier

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        message: str = "A Classifier from vggkit",
    ) -> str:
        """Publish on the Hugging Face hub, with a model card; `vggkit.load("hf://owner/name")` loads it from there.

        Args:
            repository: The repository, `owner/name`; it is created where it does not exist.
            private: Whether a new repository is visible to its owner only.
            token: An access token of the hub. None: the one that `hf auth login` stored, or HF_TOKEN.
            message: The first line of the commit's message.

        Returns its web address. Raises BadOutput where the hub refuses, and MissingExtra without huggingface_hub.
        """
        return push(self, repository, private=private, token=token, message=message)


def load(model: str | Path) -> Classifier:
    """A trained Classifier: network, weights, preprocessing, labels and provenance.

    Args:
        model: A model's name such as `vgg16`, for the published ImageNet weights with their 1,000 labels, or
            `digits`, which comes with vggkit; the file of a Classifier; a run's folder, for its best epoch; a
            folder that `save_pretrained` wrote; or `hf://owner/name`, a repository of the Hugging Face hub, with
            `@revision` for one of its revisions.

    Raises BadCheckpoint; and for what has to be downloaded BadDownload and MissingExtra.
    """
    return Classifier.load(locate_model(model))
