"""The names that `import vggkit as vk` promises: one table, whole signatures, types that people can import."""

import ast
import dataclasses
import functools
import inspect
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import vggkit

ROOT = Path(vggkit.__file__).parent
STUB = ROOT / "__init__.pyi"


def list_homes() -> dict[str, str]:
    """The stub's names, each with the module it comes from."""
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    return {
        alias.name: f"vggkit.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


HOMES = list_homes()
LATE = {"Image": PIL.Image.Image, "Tensor": torch.Tensor}
"""What modules that import neither at their start name in annotations."""


@functools.cache
def list_public() -> dict[str, Any]:
    return {name: getattr(vggkit, name) for name in HOMES}


def test_the_stub_and_the_package_agree() -> None:
    assert sorted(vggkit.__all__) == sorted(HOMES)
    assert set(dir(vggkit)) == set(HOMES)
    for name, value in list_public().items():
        assert value.__module__ == HOMES[name], name
        assert value.__name__ == name
    assert isinstance(vggkit.__version__, str)
    with pytest.raises(AttributeError, match="vgg12"):
        _ = vggkit.vgg12


def test_earlier_names_still_work_with_a_warning() -> None:
    renamed: dict[str, str] = vggkit.__dict__["_RENAMED"]
    assert "open_pictures" in renamed
    assert not renamed.keys() & set(vggkit.__all__)
    for earlier, name in renamed.items():
        with pytest.warns(DeprecationWarning, match=rf"vggkit\.{name} now"):
            assert getattr(vggkit, earlier) is getattr(vggkit, name)


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name, value in list_public().items() if not value.__doc__] == []


def test_every_error_is_public() -> None:
    from vggkit import errors

    kinds = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert kinds <= set(HOMES)
    assert all(issubclass(list_public()[name], vggkit.VggkitError | vggkit.Stopped) for name in kinds)


PRIVATE = {"ImageDataset.of: reading is a vggkit.images.omissions.Reading"}
"""Of a constructor that the package's own sources call."""


def list_annotated() -> Iterator[tuple[str, object]]:
    """Everything public whose annotations people read: functions, methods, properties, and fields of records."""
    for name, value in list_public().items():
        if not inspect.isclass(value):
            yield name, value
            continue
        if dataclasses.is_dataclass(value):
            yield name, value
        for owner in value.__mro__:
            if not owner.__module__.startswith("vggkit"):
                continue
            for attribute, member in vars(owner).items():
                function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
                if inspect.isfunction(function) and (attribute == "__init__" or not attribute.startswith("_")):
                    yield f"{name}.{attribute}", function


def list_classes(hint: object) -> Iterator[type]:
    """The classes that a resolved annotation is made of."""
    for inner in hint if isinstance(hint, list) else typing.get_args(hint):
        yield from list_classes(inner)
    if inspect.isclass(hint):
        yield hint


def test_signatures_name_public_types_alone() -> None:
    private = set()
    for name, annotated in list_annotated():
        hints = typing.get_type_hints(annotated, localns={**list_public(), **LATE})
        for parameter, hint in hints.items():
            for found in list_classes(hint):
                if found.__module__.startswith("vggkit") and list_public().get(found.__name__) is not found:
                    private.add(f"{name}: {parameter} is a {found.__module__}.{found.__qualname__}")
    private -= PRIVATE
    assert not private, "add to __init__.pyi, or keep out of signatures:\n" + "\n".join(sorted(private))


def test_make_check_reads_the_typed_program() -> None:
    """`consumer.py` uses the package as people do, and states the types it relies on; mypy is in `make check`."""
    settings = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"] is True
    assert "tests/contracts/consumer.py" in settings["files"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_typed_program_passes_strict_mypy() -> None:
    """A few seconds after `make check`, whose cache this shares, and most of a minute without."""
    pytest.importorskip("mypy")
    found = subprocess.run(
        [sys.executable, "-m", "mypy"],
        capture_output=True,
        text=True,
        cwd=ROOT.parents[1],
        timeout=880,
    )
    assert found.returncode == 0, found.stdout + found.stderr
