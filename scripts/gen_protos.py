"""Writes hub_client/v1/ from protos/hub/v1/: messages, stubs, their types, and typed clients.

`make protos` writes; `make check-protos` (`--check`) writes nothing and fails when what is checked
in is not what the protos say. The same protos and tools always give the same bytes.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = "hub.v1"
TARGET = ROOT / "hub_client" / "v1"
MODULE = "hub_client.v1"

# Field numbers in descriptor.proto: source comments are filed under paths made of them.
SERVICE_IN_FILE = 6
METHOD_IN_SERVICE = 2

BANNER = "# GENERATED from protos/hub/v1 by scripts/gen_protos.py (`make protos`). Do not edit.\n"
CLIENTS_DOC = '''"""A typed client per service, sync and async.

A list call returns an iterator that fetches pages as it goes: `page_size` is how much it fetches at
a time, `page_token` where it starts. A stream ends when the hub or the time limit ends it. A call
that takes several requests sends them as one stream.
"""
'''


@dataclass(frozen=True)
class Method:
    """An RPC as the client offers it. `items_field` is None unless the call is a list call.

    `is_stream`: it answers with a stream; `is_upload`: it is asked with one.
    """

    rpc: str
    doc: str
    request: str
    response: str
    items_field: str | None = None
    item: str = ""
    is_stream: bool = False
    is_upload: bool = False

    @property
    def name(self) -> str:
        """The RPC's name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.rpc).lower()


@dataclass(frozen=True)
class Service:
    """A service of the contract."""

    name: str
    doc: str
    methods: list[Method]

    @property
    def client(self) -> str:
        """`ChatService` becomes `ChatClient`."""
        return self.name.removesuffix("Service") + "Client"


class Contract:
    """What the generator needs to know of the compiled protos."""

    def __init__(self, files: FileDescriptorSet) -> None:
        """Keeps the files of our own package; the well-known ones come with protobuf."""
        self.files = sorted((f for f in files.file if f.package == PACKAGE), key=lambda f: f.name)
        self.messages = {m.name: m for f in self.files for m in f.message_type}

    def services(self) -> list[Service]:
        """Returns every service, by file name and then as declared."""
        return [
            self._service(file, index, service)
            for file in self.files
            for index, service in enumerate(file.service)
        ]

    def names(self) -> Iterator[tuple[str, list[str]]]:
        """Yields each module with its messages, enums and enum values, sorted."""
        for file in self.files:
            messages = [message.name for message in file.message_type]
            enums = [enum.name for enum in file.enum_type]
            values = [value.name for enum in file.enum_type for value in enum.value]
            yield module_of(file), sorted(messages + enums + values)

    def _service(
        self, file: FileDescriptorProto, index: int, service: ServiceDescriptorProto
    ) -> Service:
        path = (SERVICE_IN_FILE, index)
        methods = [
            self._method(service.name, method, comment(file, (*path, METHOD_IN_SERVICE, number)))
            for number, method in enumerate(service.method)
        ]
        return Service(service.name, comment(file, path), methods)

    def _method(self, service: str, method: MethodDescriptorProto, doc: str) -> Method:
        if method.client_streaming and method.server_streaming:
            fail(f"{service}.{method.name}: streams both ways have no client template yet")
        request = self._local(service, method.input_type)
        response = self._local(service, method.output_type)
        items = items_of(self.messages[request], self.messages[response])
        if method.client_streaming:
            return Method(method.name, doc, request, response, is_upload=True)
        if method.server_streaming:
            return Method(method.name, doc, request, response, item=response, is_stream=True)
        if items is None:
            return Method(method.name, doc, request, response)
        item = self._local(service, items.type_name)
        return Method(method.name, doc, request, response, items.name, item)

    def _local(self, service: str, full_name: str) -> str:
        name = full_name.removeprefix(f".{PACKAGE}.")
        if name not in self.messages:
            fail(f"{service}: {full_name} is not a top-level message of {PACKAGE}")
        return name


def items_of(request: DescriptorProto, response: DescriptorProto) -> FieldDescriptorProto | None:
    """Returns the field that a list call's pages bear, or None if this is no list call."""
    repeated = [
        field
        for field in response.field
        if field.label == FieldDescriptorProto.LABEL_REPEATED
        and field.type == FieldDescriptorProto.TYPE_MESSAGE
    ]
    asks = any(field.name == "page_token" for field in request.field)
    answers = any(field.name == "next_page_token" for field in response.field)
    return repeated[0] if asks and answers and len(repeated) == 1 else None


def comment(file: FileDescriptorProto, path: tuple[int, ...]) -> str:
    """Returns the leading comment of the element at `path`, as text for a docstring."""
    for location in file.source_code_info.location:
        if tuple(location.path) == path:
            lines = [line.removeprefix(" ") for line in location.leading_comments.splitlines()]
            return "\n".join(lines).strip()
    return ""


def module_of(file: FileDescriptorProto) -> str:
    """`hub/v1/chat.proto` becomes `chat_pb2`."""
    return Path(file.name).stem + "_pb2"


def docstring(text: str, indent: str) -> str:
    """Returns `text` as an indented docstring. A one-line docstring cannot end in a quote."""
    escaped = text.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    end = "\n" if "\n" in escaped or escaped.endswith('"') else ""
    lines = f'"""{escaped}{end}"""'.splitlines()
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def method_source(service: str, method: Method, *, is_async: bool) -> str:
    """Returns one client method. The formatter breaks the lines later."""
    waits = is_async and not method.item
    result = method.response
    if method.item:
        result = f"{'Async' if is_async else ''}Iterator[{method.item}]"
    asked = f"request: {method.request}"
    if method.is_upload:
        asked = f"requests: Iterable[{method.request}]"
    parameters = f"self, {asked}, *, timeout: float | None = None"
    return "\n".join(
        [
            f"    {'async ' if waits else ''}def {method.name}({parameters}) -> {result}:",
            docstring(method.doc, " " * 8),
            f"        return {'await ' if waits else ''}{body(service, method)}",
        ]
    )


def body(service: str, method: Method) -> str:
    """Returns the call of the transport that carries the method out."""
    asked = "requests" if method.is_upload else "request"
    arguments = [f'"/{PACKAGE}.{service}/{method.rpc}"', asked, method.response]
    if method.is_upload:
        return f"self._transport.upload({', '.join(arguments)}, timeout)"
    if method.is_stream:
        return f"self._transport.stream({', '.join(arguments)}, timeout)"
    if method.items_field is None:
        return f"self._transport.call({', '.join(arguments)}, timeout)"
    return f'self._transport.pages({", ".join(arguments)}, "{method.items_field}", timeout)'


def client_source(service: Service, *, is_async: bool) -> str:
    """Returns the client class of a service."""
    prefix = "Async" if is_async else ""
    head = [
        f"class {prefix}{service.client}:",
        docstring(service.doc, " " * 4),
        "",
        f"    def __init__(self, transport: {prefix}Transport) -> None:",
        '        """Sends every call through `transport`; HubClient makes one."""',
        "        self._transport = transport",
        "",
    ]
    methods = [method_source(service.name, m, is_async=is_async) for m in service.methods]
    return "\n".join(head) + "\n\n".join(methods)


def clients_source(contract: Contract) -> str:
    """Returns clients.py: for each service a sync and an async class."""
    services = contract.services()
    used = {
        name
        for service in services
        for method in service.methods
        for name in (method.request, method.response, method.item)
    }
    classes = [client_source(s, is_async=is_async) for s in services for is_async in (False, True)]
    return "\n".join(
        [
            BANNER + CLIENTS_DOC,
            "from collections.abc import AsyncIterator, Iterable, Iterator",
            "",
            "from hub_client._transport import AsyncTransport, Transport",
            *imports(contract, used),
            "",
            "\n\n\n".join(classes),
            "",
        ]
    )


def package_source(contract: Contract) -> str:
    """Returns __init__.py: every message and enum of the contract under one roof."""
    names = sorted(name for _, names in contract.names() for name in names)
    return "\n".join(
        [
            BANNER + f'"""The messages and enums of `{PACKAGE}`."""',
            "",
            *imports(contract, set(names)),
            "",
            f"__all__ = {names!r}",
            "",
        ]
    )


def imports(contract: Contract, used: set[str]) -> list[str]:
    """Returns the import lines for those names of the contract that are in `used`."""
    wanted = [(module, [n for n in names if n in used]) for module, names in contract.names()]
    return [f"from {MODULE}.{module} import {', '.join(n)}" for module, n in wanted if n]


def compile_protos(out: Path) -> Contract:
    """Runs protoc with its plugins into `out`; returns what it read."""
    scripts = Path(sysconfig.get_path("scripts"))
    descriptors = out / "descriptors.pb"
    run(
        *("grpc_tools.protoc", f"-I{PROTOS}"),
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        *(f"--python_out={out}", f"--grpc_python_out={out}"),
        *(f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"),
        *(f"--descriptor_set_out={descriptors}", "--include_imports", "--include_source_info"),
        *(str(path) for path in sorted((PROTOS / "hub" / "v1").glob("*.proto"))),
    )
    return Contract(FileDescriptorSet.FromString(descriptors.read_bytes()))


def run(module: str, *arguments: str) -> None:
    """Runs an installed tool; it tells on stderr what it does not like."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if done.returncode != 0:
        fail(f"{module} failed")


def generate(out: Path) -> dict[str, str]:
    """Returns what hub_client/v1 ought to hold, by file name. Works in the empty folder `out`."""
    contract = compile_protos(out)
    package = out.joinpath(*PACKAGE.split("."))
    for file in contract.files:
        if not file.service:
            for suffix in (".py", ".pyi"):
                (package / f"{module_of(file)}_grpc{suffix}").unlink()
    for path in package.iterdir():
        path.write_text(relocate(path.read_text()))
    (package / "__init__.py").write_text(package_source(contract))
    (package / "clients.py").write_text(clients_source(contract))
    ours = [str(package / "__init__.py"), str(package / "clients.py")]
    style = ["--isolated", "--quiet", "--line-length=100", "--target-version=py311"]
    run("ruff", "format", *style, *ours)
    return {path.name: path.read_text() for path in sorted(package.iterdir()) if path.is_file()}


def relocate(source: str) -> str:
    """Makes code that protoc wrote for package `hub.v1` importable as `hub_client.v1`."""
    source = re.sub(r"^from hub\.v1 import", f"from {MODULE} import", source, flags=re.MULTILINE)
    return re.sub(r"'hub\.v1\.(\w+_pb2)'", rf"'{MODULE}.\1'", source)


def differences(wanted: dict[str, str]) -> list[str]:
    """Returns the names of files that are missing, changed or left over."""
    present = {path.name: path.read_text() for path in TARGET.glob("*.py*") if path.is_file()}
    return sorted(n for n in wanted | present if wanted.get(n) != present.get(n))


def write(wanted: dict[str, str]) -> None:
    """Brings hub_client/v1 to `wanted`. Files that are right are left alone."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in differences(wanted):
        if name in wanted:
            (TARGET / name).write_text(wanted[name])
        else:
            (TARGET / name).unlink()


def fail(message: str) -> NoReturn:
    """Ends the script with one plain line."""
    sys.exit(f"gen_protos: {message}")


def main() -> None:
    """Writes the generated code, or with --check tells what is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on differences")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        wanted = generate(Path(folder))
    if not check:
        write(wanted)
    elif stale := differences(wanted):
        for name in stale:
            print(f"hub_client/v1/{name} is not what protos/hub/v1 says")
        fail("mend it with `make protos`")


if __name__ == "__main__":
    main()
