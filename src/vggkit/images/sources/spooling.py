"""A local copy of images whose storage is slow to read in random order, such as compressed archives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vggkit.errors import BadImage, BadOutput
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.sources.locations import Place, Ranges


def spool(
    images: ImageDataset, path: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> ImageDataset:
    """The same images, fast to read in any order; none of them is decoded.

    Args:
        images: The dataset; where all of it is fast already, it is returned unchanged, and no file is written.
        path: The file to copy the others' bytes to; it must last as long as the images are used.
        on_progress: Called with the number of images copied and of all that are to be.

    An image that cannot be read stays where it is. Raises BadOutput where the file cannot be written.
    """
    slow = [p for split in images.splits.values() for p in split if p.storage is not None and not p.storage.quick]
    if not slow:
        return images
    storage = Ranges(Place(str(path)))
    copied: dict[int, ImageSample] = {}
    try:
        with open(path, "wb") as file:
            for done, image in enumerate(slow, start=1):
                try:
                    data = image.read()
                except BadImage:
                    continue  # decoding it reports why
                copied[id(image)] = replace(image, storage=storage, key=(file.tell(), len(data)))
                file.write(data)
                if on_progress:
                    on_progress(done, len(slow))
    except OSError as problem:
        raise BadOutput(f"{path}: images cannot be copied there ({problem.strerror or problem})") from problem
    return images.keep({name: [copied.get(id(p), p) for p in split] for name, split in images.splits.items()})
