"""Malformed requests from a seed: for every route of the OpenAPI document, broken in one or more ways.

A case is the bytes of one request. Most start as a valid request made from the route's schema; then the body, headers,
path, query, method or framing is corrupted. The test decides which answers are allowed.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

Schema = Mapping[str, Any]

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -1e-300,
    1e308,
    "",
    " ",
    "\0",
    "a" * 5000,
    "\u202e\ufeff",
    "🦆" * 50,
    "1",
    "NaN",
    "null",
    "{}",
    "../../etc/passwd",
    "'; DROP TABLE jobs; --",
    [],
    [None],
    [[]],
    [{}],
    {},
    {"": ""},
    {"a": {"b": {"c": []}}},
    ["x"] * 300,
    {str(n): n for n in range(200)},
    "http://169.254.169.254/",
    "file:///etc/passwd",
    "https://[::1]/",
    "job_" + "0" * 32,
    "tiny@999999999999999999",
    "tiny@-1",
    "tiny@",
    "@",
    "tiny:x",
    {"type": "object", "properties": None},
    {"$ref": "#"},
]
ODD_TEXTS = [
    b"",
    b"{",
    b"[",
    b'"',
    b"nul",
    b"{]",
    b'{"a":}',
    b'{"a":1,}',
    b"\xff\xfe",
    b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"model":"tiny","input":{"prompt":"\\ud800"}}',
    b'{"a":"\\u12"}',
    b"\xef\xbb\xbf{}",
    b"NaN",
    b"Infinity",
    b'{"a":1e999}',
    b'{"a":-0}',
    b'{"a":' + b"9" * 5000 + b"}",
    b"[" * 3000,
    b"[" * 3000 + b"]" * 3000,
    b'{"a":' * 1500 + b"1" + b"}" * 1500,
    b'{"model":"tiny","model":7}',
    "{}".encode("utf-16"),
    b"\x1f\x8b\x08\x00junk",
    b'{"input":{"prompt":"x"}}\n{"again":1}',
    b"a=b&c=d",
    b"<xml/>",
    b"\0",
    b"// {}",
    b"'{}'",
    b"{\x0b}",
]
ODD_NAMES = [
    "%00",
    "%ff",
    "%fe%ff",
    "..%2f..%2f",
    "%2e%2e",
    ".",
    "..",
    "%0d%0aX-A:%20b",
    "x" * 3000,
    "%F0%9F%A6%86",
    "%C0%80",
    "%",
    "%zz",
    "a%20b",
    ";a=b",
    "@",
    "tiny@99999999999999999999",
    "job_",
    "job_" + "f" * 32,
    "*",
    "-1",
    "~",
    "%7B%7D",
    "resp_" + "0" * 32,
    "key_" + "0" * 32,
    "{id}",
    "a:b",
    "null",
    "%25",
    "%5c..%5c",
]
ODD_QUERIES = [
    "limit=-1",
    "limit=99999999999999999999",
    "limit=x",
    "limit=",
    "limit=1&limit=2",
    "limit=%ff",
    "wait=-1",
    "wait=nan",
    "wait=inf",
    "wait=1e400",
    "wait=%00",
    "after=%00",
    "after=" + "x" * 3000,
    "order=up",
    "status=%F0%9F%A6%86",
    "created_after=-1",
    "created_after=99999999999",
    "created_after=1e3",
    "metadata[]=x",
    "metadata[%00]=x",
    "metadata[" + "k" * 100 + "]=v",
    "metadata[a]=%00",
    "%",
    "&&&",
    "=",
    "a" * 4000,
    "starting_after=-1",
    "starting_after=x",
    "starting_after=99999999999999999999",
    "stream=maybe",
    "include[]=%00",
    "start_time=-1",
    "start_time=9e99",
    "start_time=99999999999999",
    "bucket_width=1y",
    "group_by=%ff",
    "group_by[]=%00",
    "page=x",
    "page=%00",
    "replayed=2",
    "code=%00",
    "queue=%00",
    "task=%00",
    "model=%00",
    "purpose=%00",
    "limit=0x10",
    "limit=１",
]
ODD_HEADERS: list[tuple[bytes, bytes]] = [
    (b"Idempotency-Key", b""),
    (b"Idempotency-Key", b"k" * 300),
    (b"Idempotency-Key", b"\xff\x80"),
    (b"Idempotency-Key", b"same"),
    (b"Prefer", b"wait=99999999999999"),
    (b"Prefer", b"wait=-1, respond-async"),
    (b"Prefer", b"\xff"),
    (b"Last-Event-ID", b"x"),
    (b"Last-Event-ID", b"-1--1"),
    (b"Last-Event-ID", b"9" * 400 + b"-1"),
    (b"Last-Event-ID", b"1-99999999999999999999"),
    (b"Last-Event-ID", b"\xff"),
    (b"traceparent", b"00-" + b"z" * 40),
    (b"X-Client-Request-Id", b"\xff" * 600),
    (b"x-stainless-retry-count", b"many"),
    (b"x-stainless-retry-count", b"9" * 99),
    (b"x-stainless-retry-count", b"1"),
    (b"OpenAI-Project", b"p" * 300),
    (b"OpenAI-Project", b"\xff"),
    (b"OpenAI-Organization", b"\x01"),
    (b"Content-Encoding", b"gzip"),
    (b"Content-Encoding", b"\xff, br"),
    (b"Accept", b"\xff/*"),
    (b"Accept", b"application/xml"),
    (b"Range", b"bytes=99-1"),
    (b"If-None-Match", b"\xff"),
    (b"Cookie", b"a=\xff; b"),
    (b"X-Forwarded-For", b"::1, \xff, 10.0.0.1"),
    (b"X-Forwarded-Proto", b"gopher"),
    (b"Forwarded", b'for="\xff"'),
    (b"Host", b""),
    (b"Host", b"a b"),
    (b"Upgrade", b"websocket"),
    (b"Origin", b"null"),
    (b"Connection", b"Upgrade, HTTP2-Settings"),
    (b"Authorization", b"Bearer other"),
    (b"X-Big", b"x" * 30_000),
    (b"Content-Length", b"5"),
    (b"Content-Length", b"-1"),
    (b"Content-Length", b"+3"),
    (b"Content-Length", b"3, 3"),
    (b"Content-Length", b"1e3"),
    (b"Content-Length", b"9" * 30),
    (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"identity, chunked"),
    (b"Transfer-Encoding", b"\x0bchunked"),
    (b"Transfer-Encoding", b"xchunked"),
    (b"Expect", b"100-continue"),
    (b"Expect", b"the-unexpected"),
    (b"Bad Name", b"x"),
    (b"", b"x"),
    (b"X\0", b"x"),
    (b"X-A", b"b\r\n folded"),
    (b"X-A", b"b\nX-B: c"),
    (b"X-A", b"b\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n"),
    (b"TE", b"trailers"),
]
ODD_TYPES = [
    b"",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b"multipart/form-data; boundary=" + b"b" * 300,
    b"application/json; charset=utf-16",
    b"application/json;;;=",
    b"application/\xff",
    b"application/jsonx",
    b"APPLICATION/JSON",
    b"application/vnd.api+json",
    b"*/*",
    b"json",
    b"\x01",
]
ODD_METHODS = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"FOO",
    b"get",
    b"P\xd6ST",
]
_BOUNDARY = b"frontier"
_ODD_FORMS = [
    b"",
    b"--frontier",
    b"--frontier--\r\n",
    b"--frontier\r\n\r\n",
    b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx",
    b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nno end',
    b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="\xff\0/../a"\r\n\r\nx\r\n--frontier--\r\n',
    b'--frontier\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--frontier--\r\n',
    b'--frontier\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\xff\xfe\r\n--frontier\r\n',
    b'--frontier\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--frontier--\r\n',
    (b'--frontier\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 2000) + b"--frontier--\r\n",
    b"--frontier\r\n" + b"X: " + b"h" * 20_000 + b"\r\n\r\nx\r\n--frontier--\r\n",
    b"--frontier\nContent-Disposition: form-data; name=file\n\nx\n--frontier--\n",
    b"--other\r\n\r\nx\r\n--other--\r\n",
    b'--frontier\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n1e9\r\n--frontier--\r\n',
]


@dataclass
class Request:
    """A request before it is bytes."""

    method: bytes
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | None = None
    query: str = ""
    spoilt: list[str] = field(default_factory=list)
    # The declared length, where it is not the body's; and that the framing is broken, so that no answer need come.
    length: bytes | None = None
    is_framed: bool = True


@dataclass(frozen=True)
class Case:
    """The bytes to send; ``name`` describes the defect. ``must_answer``: the server can parse the request."""

    name: str
    data: bytes
    must_answer: bool


class Generator:
    """Makes cases for the routes of an OpenAPI document."""

    def __init__(self, document: Mapping[str, Any], key: str, seed: int) -> None:
        self._document = document
        self._key = key.encode()
        self._draw = random.Random(seed)
        self._routes = [
            (path, method, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]

    def cases(self, count: int) -> Iterator[Case]:
        """Yield so many, every route in turn."""
        spoilers: list[Callable[[Request], None]] = [
            self._spoil_json,
            self._spoil_json,
            self._spoil_text,
            self._spoil_headers,
            self._spoil_headers,
            self._spoil_path,
            self._spoil_query,
            self._spoil_type,
            self._spoil_method,
            self._spoil_form,
            self._spoil_framing,
            self._spoil_key,
        ]
        for number in range(count):
            request = self._good(*self._routes[number % len(self._routes)])
            for spoil in self._draw.sample(spoilers, self._draw.choice((1, 1, 1, 2, 3))):
                spoil(request)
            yield self._case(number, request)

    def _good(self, path: str, method: str, operation: Schema) -> Request:
        request = Request(method.upper().encode(), path, [(b"Authorization", b"Bearer " + self._key)])
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                name = "{" + parameter["name"] + "}"
                request.path = request.path.replace(name, self._draw.choice(("tiny", "job_1", "x")))
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            body = self._instance(content["application/json"].get("schema", {}))
            request.body = json.dumps(body).encode()
            request.headers.append((b"Content-Type", b"application/json"))
        return request

    def _instance(self, schema: Schema, depth: int = 0) -> Any:
        """Return a value that fits the schema, more or less: examples where there are any."""
        draw = self._draw
        if "$ref" in schema:
            found: Any = self._document
            for step in schema["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            return self._instance(found, depth)
        if schema.get("examples") and draw.random() < 0.6:
            return draw.choice(schema["examples"])
        for word in ("anyOf", "oneOf", "allOf"):
            if schema.get(word):
                return self._instance(draw.choice(schema[word]), depth)
        if "const" in schema or "enum" in schema:
            return schema["const"] if "const" in schema else draw.choice(schema["enum"])
        return self._of_type(schema, depth)

    def _of_type(self, schema: Schema, depth: int) -> Any:
        draw, kind = self._draw, schema.get("type")
        if kind == "object":
            names = schema.get("properties", {})
            chosen = [n for n in names if n in schema.get("required", ()) or draw.random() < 0.3 / (1 + depth)]
            return {name: "tiny" if name == "model" else self._instance(names[name], depth + 1) for name in chosen}
        if kind == "array":
            return [self._instance(schema.get("items", {}), depth + 1) for _ in range(draw.randint(0, 2))]
        scalars = {"integer": schema.get("minimum", 1), "boolean": draw.random() < 0.2, "string": "hello"}
        return (scalars | {"number": schema.get("minimum", 1)}).get(str(kind))

    def _spoil_json(self, request: Request) -> None:
        """Replace, add or remove something in the body, or in the body of another route."""
        try:
            body = json.loads(request.body or b"{}")
        except (ValueError, RecursionError):
            return
        for _ in range(self._draw.randint(1, 3)):
            body = self._changed(body)
        request.body = json.dumps(body).encode()
        request.spoilt.append("json")

    def _changed(self, value: Any) -> Any:
        draw = self._draw
        if isinstance(value, dict) and value and draw.random() < 0.85:
            name = draw.choice(list(value))
            match draw.randrange(6):
                case 0:
                    return {key: item for key, item in value.items() if key != name}
                case 1:
                    return value | {
                        draw.choice(("x", "", "\0", "stream", "tools", "metadata")): draw.choice(ODD_VALUES)
                    }
                case _:
                    return value | {name: self._changed(value[name])}
        if isinstance(value, list) and value and draw.random() < 0.7:
            place = draw.randrange(len(value))
            return [*value[:place], self._changed(value[place]), *value[place + draw.randint(0, 1) :]]
        return draw.choice(ODD_VALUES)

    def _spoil_text(self, request: Request) -> None:
        body, draw = request.body or b"{}", self._draw
        at = draw.randrange(len(body) + 1)
        request.body = draw.choice(
            (draw.choice(ODD_TEXTS), draw.choice(ODD_TEXTS), body[:at], body[:at] + draw.randbytes(3) + body[at:])
        )
        request.spoilt.append("text")

    def _spoil_headers(self, request: Request) -> None:
        for name, value in self._draw.sample(ODD_HEADERS, self._draw.randint(1, 3)):
            request.headers.insert(self._draw.randrange(len(request.headers) + 1), (name, value))
            if name.lower() in (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection", b"host"):
                request.is_framed = False
            if b"\0" in name or b" " in name or not name or b"\n" in value or len(value) > 20_000 or b"\x01" in value:
                request.is_framed = False
        request.spoilt.append("headers")

    def _spoil_path(self, request: Request) -> None:
        steps, odd = request.path.split("/"), self._draw.choice(ODD_NAMES)
        steps[self._draw.randrange(1, len(steps))] = odd
        request.path = self._draw.choice(
            ("/".join(steps), "/".join(steps), request.path + "/" + odd, "/" + request.path)
        )
        request.spoilt.append("path")

    def _spoil_query(self, request: Request) -> None:
        request.query = "&".join(self._draw.sample(ODD_QUERIES, self._draw.randint(1, 4)))
        request.spoilt.append("query")

    def _spoil_type(self, request: Request) -> None:
        request.headers = [each for each in request.headers if each[0] != b"Content-Type"]
        if (kind := self._draw.choice(ODD_TYPES)) or self._draw.random() < 0.5:
            request.headers.append((b"Content-Type", kind))
            request.is_framed &= b"\x01" not in kind
        request.spoilt.append("type")

    def _spoil_method(self, request: Request) -> None:
        request.method = self._draw.choice(ODD_METHODS)
        request.is_framed &= request.method.isalpha() and request.method.isupper() and request.method != b"CONNECT"
        request.is_framed &= request.method != b"FOO"
        request.spoilt.append("method")

    def _spoil_form(self, request: Request) -> None:
        if self._draw.random() < 0.7:
            request.method, request.path = b"POST", "/v1/files"
        request.headers = [each for each in request.headers if each[0] != b"Content-Type"]
        request.headers.append((b"Content-Type", b"multipart/form-data; boundary=" + _BOUNDARY))
        form = self._draw.choice(_ODD_FORMS)
        request.body = form[: self._draw.randrange(len(form) + 1)] if self._draw.random() < 0.3 else form
        request.spoilt.append("form")

    def _spoil_framing(self, request: Request) -> None:
        request.length = self._draw.choice((b"0", b"1", b"99999", b"-1", b"x", b"9" * 25, b"0x5"))
        request.is_framed = False
        request.spoilt.append("framing")

    def _spoil_key(self, request: Request) -> None:
        if self._draw.random() < 0.3:
            odd = self._draw.choice(
                (b"", b"Bearer", b"Bearer \xff", b"Basic eA==", b"Bearer hr_x_y", b"Bearer " + b"h" * 9000)
            )
            request.headers = [each for each in request.headers if each[0] != b"Authorization"]
            request.headers.append((b"Authorization", odd))
            request.spoilt.append("key")

    def _case(self, number: int, request: Request) -> Case:
        target = request.path + ("?" + request.query if request.query else "")
        head = b"%b %b HTTP/1.1\r\n" % (request.method, quote(target, safe="/%?&=:@;~*[]{}+,!$'()").encode())
        headers = [(b"Host", b"test"), *request.headers]
        if request.body is not None or request.length is not None:
            headers.append((b"Content-Length", request.length or b"%d" % len(request.body or b"")))
        headers.append((b"Connection", b"close"))
        data = head + b"".join(b"%b: %b\r\n" % each for each in headers) + b"\r\n" + (request.body or b"")
        name = f"{number} {request.method!r} {request.path[:60]} ({', '.join(request.spoilt)})"
        return Case(name, data, must_answer=request.is_framed)
