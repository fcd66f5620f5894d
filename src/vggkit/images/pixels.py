"""RGB pixels of images in memory: arrays, tensors and Pillow's images are read by the rules for files.

Shape letters: N images, C channels, H and W pixels.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggkit.errors import BadImage, BadInput
from vggkit.images.decoding import Pixels, read_pil_image, to_rgb

CHANNELS: Final = (1, 3, 4)
"""Grey, RGB, and RGB with transparency."""
RULE: Final = (
    "pixels are uint8, (H, W, 3), (H, W) or (H, W, 4), or uint16 of the full range; tensors uint8, (3, H, W); "
    "or a PIL image"
)


def read_pixels(given: object, *, name: str, keep_fourth: bool = False) -> Pixels:
    """RGB pixels (H, W, 3), uint8, of one image in memory, by the rules for files.

    Grey is three equal channels, transparency is laid over white, 16 bits are scaled to 8, and a PIL image is
    rotated according to its EXIF.

    Args:
        given: An array (H, W, 3), (H, W), (H, W, 1) or (H, W, 4), uint8 or uint16; a tensor of such, channels
            first; or a PIL image of any mode.
        name: The name in errors.
        keep_fourth: Four channels of an array, and RGBA of a PIL image, stay as they are, (H, W, 4).

    Raises BadInput for ambiguous values, such as floats, with the code that converts them; BadImage for a PIL image
    whose file is broken.
    """
    if isinstance(given, Image.Image):
        if not (given.width and given.height):
            raise BadInput(f"{name}: is a PIL image of {given.width}×{given.height} pixels, which is none")
        return read_pil_image(given, name=name, keep_fourth=keep_fourth)
    if is_tensor(given):
        return _to_rgb(_read_tensor(given, name), keep_fourth=keep_fourth)
    if isinstance(given, np.ndarray):
        _check_values(given, name, "array")
        _check_shape(given.shape, name, "array")
        return _to_rgb(given, keep_fourth=keep_fourth)
    raise BadInput(f"{name}: {RULE}; got {describe_type(given)}")


def holds_pixels(given: object) -> TypeGuard[Any]:
    """Whether it is an array, a tensor or a PIL image."""
    return isinstance(given, np.ndarray | Image.Image) or is_tensor(given)


def is_tensor(given: object) -> TypeGuard[Any]:
    """Whether it is a torch tensor; nothing can be one before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def list_batch(given: Any) -> list[Any]:
    """The images of an array (N, H, W, 3) or of a tensor (N, 3, H, W); raises BadInput for another shape."""
    kind, shape = ("tensor", tuple(given.shape)) if is_tensor(given) else ("array", given.shape)
    if not shape[0]:
        raise BadInput(f"the images: {kind} {shape} holds no image; give at least one")
    _check_values(given, "the images", kind)
    _check_shape(shape[1:], "the images", kind, whole=shape)
    return [given[number] for number in range(shape[0])]


def describe_type(given: object) -> str:
    """The type of an object for an error, with what to do where it holds an image."""
    kind = type(given)
    package = kind.__module__.partition(".")[0]
    described = kind.__name__ if package == "builtins" else f"{package}'s {kind.__name__}"
    if isinstance(given, dict) and "image" in given:
        return f'{described}; give its image: example["image"]'
    return f"{described}; numpy.asarray(it) may make an array of it" if hasattr(given, "__array__") else described


def _read_tensor(tensor: Any, name: str) -> NDArray[Any]:
    """An array (H, W) or (H, W, C) of a tensor (H, W) or (C, H, W)."""
    _check_values(tensor, name, "tensor")
    _check_shape(tuple(tensor.shape), name, "tensor")
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def _check_values(given: Any, name: str, kind: str) -> None:
    """Raise BadInput where the data type does not determine which value is white, or there are no values."""
    found = given.dtype.name if kind == "array" else str(given.dtype).removeprefix("torch.")
    shape = tuple(given.shape)
    if 0 in shape:
        raise BadInput(f"{name}: {kind} {found} {shape} is empty; {RULE}")
    to_bytes = '.astype("uint8")' if kind == "array" else ".to(torch.uint8)"
    if found == "uint8":
        return
    if found == "bool":
        raise BadInput(f"{name}: {kind} bool {shape}; {RULE}. Convert it: pixels{to_bytes} * 255")
    if not found.startswith(("float", "bfloat", "int", "uint")):
        listed = ". Of several images give a list: list(images)" if found == "object" else ""
        raise BadInput(f"{name}: {kind} of {found} {shape}; {RULE}{listed}")
    values = given.cpu().numpy() if found == "uint16" and kind == "tensor" else given  # torch has no least of these
    low, high = float(values.min()), float(values.max())
    about = f"{name}: {kind} {found} {shape} from {low:.4g} to {high:.4g}"
    if found == "uint16":
        if 0 < high <= 255:
            raise BadInput(
                f"{about}; uint16 reaches to 65535, and these may be 8-bit levels: convert them: "
                f"pixels{to_bytes}. For an image of 16 bits that is nearly black use (pixels // 257){to_bytes}"
            )
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadInput(f"{about}; {RULE}: find out where its NaN or infinite values come from")
    if low < 0:
        raise BadInput(
            f"{about}; {RULE}. Negative values may be normalised: undo that, (pixels * std + mean) * 255, and then "
            f".round(){to_bytes}"
        )
    if high > 255:
        raise BadInput(f"{about}; {RULE}. Scale it: (pixels / pixels.max() * 255).round(){to_bytes}")
    if found.startswith(("int", "uint")):
        raise BadInput(f"{about}; {RULE}. Convert it: pixels{to_bytes}")
    scale = "(pixels * 255)" if high <= 1 else "pixels"
    raise BadInput(f"{about}; {RULE}. Convert it: {scale}.round(){to_bytes}")


def _check_shape(shape: Sequence[int], name: str, kind: str, *, whole: Sequence[int] = ()) -> None:
    """Raise BadInput where a shape does not determine which axis has the channels, or no axis can."""
    first, last = kind == "tensor", kind == "array"
    axes = "(H, W, 3)" if last else "(3, H, W)"
    about = f"{name}: {kind} of shape {tuple(whole or shape)}"
    if len(shape) == 2 and not whole:
        return
    if len(shape) == 4:
        raise BadInput(f"{about} is several images, where one is expected; pass one of them, or list(pixels)")
    if len(shape) != 3:
        raise BadInput(f"{about}; {RULE}")
    at_first, at_last = shape[0] in CHANNELS, shape[2] in CHANNELS
    before = "0, " if whole else ""
    moved = {
        "array": f".transpose({before}{'2, 3, 1' if whole else '1, 2, 0'})",
        "tensor": f".permute({before}{'3, 1, 2' if whole else '2, 0, 1'})",
    }[kind]
    if shape[0] == 3 and at_last:
        array = "pixels" if kind == "array" else "pixels.numpy()"
        raise BadInput(
            f"{about} may have its channels first or last. Give a PIL image: Image.fromarray({array}) if they are "
            f"last, Image.fromarray({array}.transpose(1, 2, 0)) if they are first"
        )
    if (last and at_last) or (first and at_first):
        return
    if not (at_first or at_last):
        raise BadInput(f"{about}, and {kind}s are {axes}; {RULE}")
    where = "first" if last else "last"
    raise BadInput(f"{about}, and {kind}s are {axes}. Its channels seem to be {where}. Convert it: pixels{moved}")


def match_channels(pixels: Pixels, channels: int, *, name: str) -> Pixels:
    """Pixels (H, W, 3) or (H, W, 4) with so many channels: a fourth is transparency where 3 are wanted.

    Raises BadImage where a fourth is wanted and there is none.
    """
    if pixels.shape[2] == channels:
        return pixels
    if channels == 4:
        raise BadImage(f"{name}: has 3 channels, and the network takes 4")
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _to_rgb(array: NDArray[Any], *, keep_fourth: bool) -> Pixels:
    """RGB of (H, W) or (H, W, C), uint8 or uint16, as Pillow reads such files; four channels may stay."""
    grey = array.ndim == 2 or array.shape[2] == 1
    if grey and array.dtype != np.uint8:
        plane = np.ascontiguousarray(array.reshape(array.shape[:2]), np.uint16)
        return to_rgb(Image.fromarray(plane))
    if array.dtype != np.uint8:
        array = (array >> 8).astype(np.uint8)  # of colours Pillow takes the upper byte
    if grey:
        return np.broadcast_to(array.reshape(*array.shape[:2], 1), (*array.shape[:2], 3))
    return array if array.shape[2] == 3 or keep_fourth else match_channels(array, 3, name="pixels")
