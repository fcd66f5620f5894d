"""Pictures from places that are slow in any but their own order, copied once to a file that is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vggkit.errors import BadImage, BadOutput
from vggkit.images.dataset import Picture, PictureSet
from vggkit.images.sources.locations import Place, Ranges


def spool(pictures: PictureSet, path: Path, *, on_progress: Callable[[int, int], None] | None = None) -> PictureSet:
    """The same pictures, quick in any order; none of them is decoded.

    Args:
        pictures: A set; where all of it is quick already, it comes back as it is, and no file is made.
        path: The file to copy the others' bytes to; it must last as long as the pictures are used.
        on_progress: Called with the number of pictures copied and of all that are to be.

    A picture that cannot be read stays where it is. Raises BadOutput where the file cannot be written.
    """
    slow = [p for part in pictures.splits.values() for p in part if p.storage is not None and not p.storage.quick]
    if not slow:
        return pictures
    storage = Ranges(Place(str(path)))
    copied: dict[int, Picture] = {}
    try:
        with open(path, "wb") as file:
            for done, picture in enumerate(slow, start=1):
                try:
                    data = picture.read()
                except BadImage:
                    continue  # whoever decodes it is told why
                copied[id(picture)] = replace(picture, storage=storage, key=(file.tell(), len(data)))
                file.write(data)
                if on_progress:
                    on_progress(done, len(slow))
    except OSError as problem:
        raise BadOutput(f"{path}: pictures cannot be copied there ({problem.strerror or problem})") from problem
    return pictures.keep({name: [copied.get(id(p), p) for p in part] for name, part in pictures.splits.items()})
