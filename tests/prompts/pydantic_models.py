"""Types and models of pydantic of many kinds, as programs give their schemas for answers and tools."""

import datetime as dt
import enum
import ipaddress
import pathlib
import re
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import pydantic as p
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import TypedDict


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Place(NamedTuple):
    x: int
    y: float


class Options(TypedDict, total=False):
    verbose: bool
    level: int


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float


class Square(BaseModel):
    kind: Literal["square"]
    side: float


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    friends: "list[Annotated[Cat | Dog, Field(discriminator='kind')]]" = []


class Tree(BaseModel):
    name: Annotated[str, StringConstraints(max_length=5)]
    children: list["Tree"]


class Strict(BaseModel):
    model_config = p.ConfigDict(extra="forbid")

    name: str = Field(description="a name", examples=["x"])
    # Names of keywords are names here.
    pattern: int | None = None
    enum: bool = False


class Money(BaseModel):
    amount: Decimal
    currency: Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")]


class Invoice(BaseModel):
    number: uuid.UUID
    issued: dt.date
    total: Money
    lines: Annotated[list[Money], Field(min_length=1, max_length=2)]
    tags: dict[str, str]
    secret: p.SecretStr | None = None
    colours: set[Colour]
    shape: Annotated[Circle | Square, Field(discriminator="kind")]


Slug = Annotated[str, StringConstraints(pattern="^[a-z]+$")]

TYPES: dict[str, Any] = {
    "str": Annotated[str, StringConstraints(min_length=1, max_length=5)],
    "bytes": bytes,
    "secret str": p.SecretStr,
    "secret bytes": p.SecretBytes,
    "base64 str": p.Base64Str,
    "base64 bytes": p.Base64Bytes,
    "base64 url": p.Base64UrlStr,
    "path": pathlib.Path,
    "new path": p.NewPath,
    "json": p.Json[list[int]],
    "pattern": re.Pattern[str],
    "uuid": uuid.UUID,
    "uuid1": p.UUID1,
    "uuid4": p.UUID4,
    "uuid7": p.UUID7,
    "ipv4 address": ipaddress.IPv4Address,
    "ipv6 address": ipaddress.IPv6Address,
    "ipv4 network": ipaddress.IPv4Network,
    "ipv6 interface": ipaddress.IPv6Interface,
    "any address": p.IPvAnyAddress,
    "any network": p.IPvAnyNetwork,
    "url": p.AnyUrl,
    "date": dt.date,
    "time": dt.time,
    "datetime": dt.datetime,
    "aware datetime": p.AwareDatetime,
    "timedelta": dt.timedelta,
    "int": Annotated[int, Field(ge=0, lt=100)],
    "float": Annotated[float, Field(multiple_of=0.5)],
    "bool": bool,
    "none": None,
    "decimal": Decimal,
    "decimal of some digits": Annotated[Decimal, Field(max_digits=5, decimal_places=2, gt=0)],
    "byte size": p.ByteSize,
    "literal": Literal["a", 1, True, None],
    "enum": Colour,
    "optional": int | None,
    "any": Any,
    "list": Annotated[list[int], Field(min_length=1, max_length=3)],
    "set of an enum": set[Colour],
    "set of literals": Annotated[set[Literal["a", "b", "c", "d"]], Field(min_length=1, max_length=3)],
    "frozen set of bools": frozenset[bool],
    "tuple": tuple[int, str],
    "tuple of one": tuple[str, ...],
    "named tuple": Place,
    "typed dict": Options,
    "dict": dict[str, int],
    "dict by int": dict[int, str],
    "dict by uuid": dict[uuid.UUID, int],
    "dict by date": dict[dt.date, int],
    "dict by literal": dict[Literal["a", "b"], int],
    "dict by enum": dict[Colour, int],
    "dict by pattern": dict[Slug, int],
    "dict by length": dict[Annotated[str, StringConstraints(min_length=2, max_length=4)], int],
    "tagged union with defaults": Annotated[Cat | Dog, Field(discriminator="kind")],
    "tagged union": Annotated[Circle | Square, Field(discriminator="kind")],
    "union": Circle | Square | int,
    "tree": Tree,
    "strict": Strict,
    "money": Money,
    "invoice": Invoice,
}

WIDER = frozenset(
    {
        *("base64 str", "base64 url", "json", "pattern", "new path", "byte size", "timedelta"),
        *("dict by int", "dict by pattern", "decimal", "decimal of some digits", "money", "invoice"),
    }
)
"""Types whose schema allows more than pydantic reads: any text, for example."""

REFUSED: dict[str, tuple[Any, str]] = {
    "set of texts": (set[str], "`uniqueItems` cannot be followed"),
    "look-behind": (Annotated[str, Field(json_schema_extra={"pattern": "^a(?<!b)c"})], "look-around"),
    "not": (Annotated[str, Field(json_schema_extra={"not": {"const": "a"}})], "`not` cannot be followed"),
}
"""Types without a grammar, and words of the refusal."""
