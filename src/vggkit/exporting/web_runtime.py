"""ONNX Runtime for browsers: the package onnxruntime-web, one version, known by its digest.

It is fetched once, by npm, into `VGGKIT_HOME/web`; a file that was put there is used without a network.
"""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from vggkit.errors import BadDownload
from vggkit.files import move_file, take_turn
from vggkit.paths import find_home, is_offline
from vggkit.weights.downloads import hash_file

VERSION: Final = "1.30.0"
SHA256: Final = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
ARCHIVE: Final = f"onnxruntime-web-{VERSION}.tgz"
FILES: Final = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs: the library, and WebAssembly with its loader."""
NOTICE: Final = f"""ONNX Runtime Web {VERSION} (onnxruntime-web on npm)
Copyright (c) Microsoft Corporation. MIT License.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.
"""
_SECONDS: Final = 600


def read_web_runtime(on_fetch: Callable[[str], None] | None = None) -> Mapping[str, bytes]:
    """The runtime's files by name, fetched first where they are not there yet.

    Args:
        on_fetch: Called with a sentence before something is fetched.

    Raises BadDownload where the package can be neither found nor fetched, or is another one.
    """
    path = find_home() / "web" / ARCHIVE
    if not path.exists():
        with take_turn(path.with_name(f".{ARCHIVE}.lock"), _SECONDS, meanwhile=lambda: None):
            if not path.exists():  # another process may have fetched it meanwhile
                _fetch(path, on_fetch)
    found = hash_file(path)
    if found != SHA256:
        raise BadDownload(
            f"{path}: is not onnxruntime-web {VERSION}: its SHA-256 begins {found[:8]} in place of {SHA256[:8]}; "
            "remove it, so that it is fetched again"
        )
    with tarfile.open(path) as archive:
        files = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: file.read() for name, file in files.items() if file is not None}


def _fetch(path: Path, on_fetch: Callable[[str], None] | None) -> None:
    way_out = (
        f"run `npm pack onnxruntime-web@{VERSION}` where there is a network and put {ARCHIVE} into {path.parent}"
    )
    npm = shutil.which("npm")
    if is_offline():
        raise BadDownload(f"onnxruntime-web {VERSION} is not here, and VGGKIT_OFFLINE is set: {way_out}")
    if npm is None:
        raise BadDownload(
            f"onnxruntime-web {VERSION} is fetched by npm, which is not installed: install it, or {way_out}"
        )
    if on_fetch is not None:
        on_fetch(f"fetching onnxruntime-web {VERSION} (33 MB) to {path}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [npm, "pack", "--silent", "--fetch-retries=1", f"onnxruntime-web@{VERSION}"]
        try:
            done = subprocess.run(  # noqa: S603 (our own line)
                command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as problem:
            minutes = _SECONDS // 60
            raise BadDownload(f"npm did not fetch onnxruntime-web in {minutes} minutes: {way_out}") from problem
        fetched = Path(folder) / ARCHIVE
        if done.returncode or not fetched.exists():
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise BadDownload(f"npm could not fetch onnxruntime-web {VERSION} ({reason}): {way_out}")
        move_file(fetched, path)
