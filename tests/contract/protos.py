"""The comments of the protos: they are the documentation, so tests hold the hub to them."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

_PROTOS: Final = Path(__file__).parents[2] / "protos"


@functools.cache
def comments() -> Mapping[str, str]:
    """Return the leading comment of every element of the contract, by full name."""
    return {
        name: text
        for file in _compiled().file
        if file.package == "hub.v1"
        for name, text in _comments_of(file)
    }


def _compiled() -> FileDescriptorSet:
    """Compile the protos anew: generated code bears no comments."""
    files = [str(path) for path in sorted((_PROTOS / "hub" / "v1").glob("*.proto"))]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "contract.pb"
        options = [f"-I{_PROTOS}", "--include_source_info", f"--descriptor_set_out={target}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *files], check=True)
        return FileDescriptorSet.FromString(target.read_bytes())


def _comments_of(file: FileDescriptorProto) -> Iterable[tuple[str, str]]:
    for location in file.source_code_info.location:
        if location.leading_comments:
            yield _name(file, location.path), location.leading_comments


def _name(file: FileDescriptorProto, path: Iterable[int]) -> str:
    """Return the full name of the element at a path: field numbers and places, by turns."""
    element: Any = file
    names = [file.package]
    numbers = iter(path)
    for number in numbers:
        element = getattr(element, element.DESCRIPTOR.fields_by_number[number].name)
        place = next(numbers, None)
        if place is not None:
            element = element[place]
            names.append(element.name)
    return ".".join(names)
