"""The kind of a file, by its name, or by its first bytes where the name does not determine it."""

from typing import Final, Literal

from vggkit.images.decoding import HEIC_BRANDS, SIGNATURE_JPEG


def _dotted(endings: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in endings.split())


SUFFIXES: Final = _dotted(
    "jpg jpeg jpe jfif png webp avif bmp dib gif tif tiff ppm pgm pbm heic heif jp2 j2k jpx tga pcx psd"
)
"""File endings of images; whether the contents can be read is found out by decoding."""

OTHER_SUFFIXES: Final = _dotted(
    # texts, tables, code
    "txt md rst csv tsv json jsonl ndjson xml html htm yaml yml ini cfg toml log lst cls tex rtf py pyc ipynb "
    # documents, archives
    "pdf doc docx xls xlsx ods ppt pptx odt zip tar gz tgz bz2 xz zst 7z rar exe dll md5 sha1 sha256 "
    # arrays, weights, databases
    "npy npz mat h5 hdf5 pkl pickle pt pth ckpt safetensors onnx tflite parquet pq arrow tfrecord db sqlite mdb "
    # films, sounds, drawings
    "mp4 m4v mov avi mkv webm wmv mpg mpeg 3gp mp3 m4a wav flac ogg svg svgz eps ps ai ico cur icns xcf "
    # what cameras and scanners write: much of it begins as a TIFF does, whose first image is a thumbnail
    "dng nef nrw cr2 cr3 crw arw srf sr2 orf rw2 raf pef srw 3fr erf kdc dcr mef mos raw x3f xmp thm aae "
    "dcm nii svs ndpi scn czi lsm exr hdr"
)
"""File endings that are never images that vggkit reads; the first bytes of such files are not looked at."""

JUNK: Final = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "$recycle.bin"),
        *("system volume information", "lost+found", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot"),
        *(
            "@recently-snapshot",
            "__macosx",
            "__pycache__",
            ".ds_store",
            ".thumbnails",
            ".git",
            ".svn",
            ".hg",
            ".dvc",
        ),
        *(".gitignore", ".gitattributes", ".gitkeep", ".keep", ".ipynb_checkpoints", ".directory", ".nomedia"),
        *(".picasa.ini", ".picasaoriginals", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"),
        *(".apdisk", ".documentrevisions-v100", ".cache", ".idea", ".vscode", ".snapshot", ".stfolder", ".sync"),
    }
)
"""Names of files that file managers, network drives and programs leave behind, in small letters; they are skipped
without a message."""

FIRST_BYTES: Final = 32
"""Number of bytes from the start of a file that `is_image_start` needs."""

_SIGNATURES: Final = (
    *(SIGNATURE_JPEG, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"8BPS\0\1", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xffO\xffQ"),
)
_BRANDS: Final = HEIC_BRANDS | {b"avif", b"avis"}
_BMP_HEADERS: Final = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
"""Lengths of a BMP's second header; `BM` alone begins many a text."""

Kind = Literal["image", "other", "unknown"]


def tell_by_name(name: str) -> Kind:
    """The kind of a file by its ending."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    return "image" if ending in SUFFIXES else "other" if ending in OTHER_SUFFIXES else "unknown"


def is_image_start(start: bytes) -> bool:
    """Whether a file that begins so is an image of a format that is decoded; what follows may still be broken."""
    if start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return True
    if start[4:8] == b"ftyp":
        return not _BRANDS.isdisjoint({start[8:12], *(start[place : place + 4] for place in range(16, 32, 4))})
    if start[:2] == b"BM":
        return int.from_bytes(start[14:18], "little") in _BMP_HEADERS
    return start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace() and start[3:4] in b"#0123456789"


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is left behind by a program, and is neither an image nor a class."""
    return name.lower() in JUNK or name.startswith(("._", ".Trash-", ".fuse_hidden", ".nfs"))
