"""Foreign clients behind one interface. Each learns about our service through reflection alone.

A call takes a request and returns a reply in the protobuf JSON mapping, so that the same tests fit
every client. It raises `CallError` with the details of an error that the client could read. The
attribute `reflection` is the version of the reflection protocol that the client uses, and
`description` is the text that it shows about the service.
"""

import base64
import json
from dataclasses import dataclass, field
from datetime import datetime

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from support.processes import BUF, CALL_SECONDS, ROOT, TOOLS, output, run

SERVICE = "dyndata.v1.DynData"
MARK = f"{SERVICE}/Mark"
GET = f"{SERVICE}/Get"
BATCH_GET = f"{SERVICE}/BatchGet"
UNMARK = f"{SERVICE}/Unmark"
BATCH_UNMARK = f"{SERVICE}/BatchUnmark"
BATCH_MARK = f"{SERVICE}/BatchMark"
MARK_IF = f"{SERVICE}/MarkIf"
TOUCH = f"{SERVICE}/Touch"
INCREMENT = f"{SERVICE}/Increment"
WATCH = f"{SERVICE}/Watch"
METHODS = [
    method.rpartition("/")[2]
    for method in (MARK, GET, BATCH_GET, UNMARK, BATCH_UNMARK, BATCH_MARK, MARK_IF, TOUCH, INCREMENT, WATCH)
]
HEALTH = "grpc.health.v1.Health/Check"
COMMENT = "Mark writes one value and restarts its time to live."

# protoc's numbers in a path of the source info: services of a file, methods of a service.
SERVICES_FIELD = 6
METHODS_FIELD = 2


@dataclass
class CallError(Exception):
    """The error that a call ended with, and its details."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    outcome: str = ""
    fields: list = field(default_factory=list)

    def add_detail(self, type_name, value):
        """Reads a detail from its bytes; the google.rpc types are public and not ours."""
        if type_name == "google.rpc.ErrorInfo":
            info = error_details_pb2.ErrorInfo.FromString(value)
            self.reason, self.domain = info.reason, info.domain
            self.outcome = info.metadata.get("outcome", "")
        elif type_name == "google.rpc.BadRequest":
            bad_request = error_details_pb2.BadRequest.FromString(value)
            self.fields += [violation.field for violation in bad_request.field_violations]


class PythonClient:
    """grpcio with grpcio-reflection, which makes the messages at run time from the descriptors."""

    name = "grpcio"
    reflection = "v1alpha"
    description = (*(f"rpc {method}" for method in METHODS), COMMENT)

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def list(self):
        return set(self.database.get_services())

    def describe(self):
        service = self.pool.FindServiceByName(SERVICE)
        # The pool drops comments; the file itself has them.
        file = self.database.FindFileContainingSymbol(SERVICE)
        assert isinstance(file, descriptor_pb2.FileDescriptorProto)
        comments = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
        }
        return "\n".join(
            comments.get((SERVICES_FIELD, 0, METHODS_FIELD, method.index), "")
            + f"rpc {method.name}"
            for method in service.methods
        )

    def call(self, method, request):
        service, _, name = method.partition("/")
        types = self.pool.FindServiceByName(service).FindMethodByName(name)
        request_class = message_factory.GetMessageClass(types.input_type)
        reply_class = message_factory.GetMessageClass(types.output_type)
        invoke = self.channel.unary_unary(
            f"/{method}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=reply_class.FromString,
        )
        message = json_format.ParseDict(request, request_class())
        try:
            return json_format.MessageToDict(invoke(message, timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            raise python_error(error) from None


def python_error(error):
    result = CallError(error.code().name, error.details())
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        result.add_detail(detail.TypeName(), detail.value)
    return result


class Grpcurl:
    """The real grpcurl, in a release that asks for this version of reflection."""

    description = (*(f"rpc {method} (" for method in METHODS), "// " + COMMENT)

    def __init__(self, reflection, address):
        self.name = f"grpcurl {reflection}"
        self.reflection = reflection
        self.address = address
        program = TOOLS / {"v1": "grpcurl", "v1alpha": "grpcurl-v1alpha"}[reflection]
        self.program = [program, "-plaintext", "-max-time", str(CALL_SECONDS)]

    def list(self):
        return set(output([*self.program, self.address, "list"]).decode().split())

    def describe(self):
        return output([*self.program, self.address, "describe", SERVICE]).decode()

    def call(self, method, request):
        done = self.run(method, request)
        if done.returncode == 0:
            return json.loads(done.stdout)
        raise grpcurl_error(done.stderr)

    def run(self, method, request):
        """One call, with its output as it is."""
        arguments = [*self.program, "-format-error", "-d", "@", self.address, method]
        return run(arguments, json.dumps(request).encode())


def grpcurl_error(stderr):
    status = json.loads(stderr)
    code = next(code.name for code in grpc.StatusCode if code.value[0] == status["code"])
    result = CallError(code, status["message"])
    for detail in status.get("details", ()):
        type_name = detail.pop("@type").rpartition("/")[2]
        if "@value" in detail:
            # grpcurl does not know the type, and shows the bytes.
            result.add_detail(type_name, base64.b64decode(detail["@value"]))
        else:
            message = getattr(error_details_pb2, type_name.rpartition(".")[2])()
            json_format.ParseDict(detail, message)
            result.add_detail(type_name, message.SerializeToString())
    return result


class BufCurl:
    """`buf curl` with an option for the version of reflection. It shows no comments."""

    description = tuple(f"{SERVICE}/{method}" for method in METHODS)

    def __init__(self, reflection, address):
        self.name = f"buf curl {reflection}"
        self.reflection = reflection
        self.url = f"http://{address}"
        self.program = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
        self.program += ["--reflect-protocol", f"grpc-{reflection}"]

    def list(self):
        return set(output([*self.program, "--list-services", self.url]).decode().split())

    def describe(self):
        return output([*self.program, "--list-methods", self.url]).decode()

    def call(self, method, request):
        arguments = [*self.program, "-d", "@-", f"{self.url}/{method}"]
        done = run(arguments, json.dumps(request).encode())
        if done.returncode == 0:
            return json.loads(done.stdout)
        raise buf_error(done.stderr)


def buf_error(stderr):
    status = json.loads(stderr)
    result = CallError(status["code"].upper(), status["message"])
    for detail in status.get("details", ()):
        # The Connect protocol leaves base64's padding out.
        value = detail["value"] + "=" * (-len(detail["value"]) % 4)
        result.add_detail(detail["type"], base64.b64decode(value))
    return result


class GrpcJs:
    """grpc-js and proto-loader, in a program of ours that adds reflection. It shows no comments."""

    name = "grpc-js"
    reflection = "v1"
    description = tuple(f"rpc {method}" for method in METHODS)

    def __init__(self, address):
        self.program = ["node", ROOT / "tests/python/clients/grpc_js.mjs", address]

    def list(self):
        return set(output([*self.program, "list"]).decode().split())

    def describe(self):
        return output([*self.program, "describe", SERVICE]).decode()

    def call(self, method, request):
        done = run([*self.program, "call", method], json.dumps(request).encode())
        if done.returncode == 0:
            return json.loads(done.stdout)
        raise grpc_js_error(done.stderr)


def grpc_js_error(stderr):
    error = json.loads(stderr)
    result = CallError(error["code"], error["message"])
    status = status_pb2.Status.FromString(base64.b64decode(error.get("details", "")))
    for detail in status.details:
        result.add_detail(detail.TypeName(), detail.value)
    return result


def own_id(client, name):
    """An id that no other client of the same server uses."""
    return f"{client.name}/{name}"


def seconds(timestamp):
    return datetime.fromisoformat(timestamp).timestamp()
