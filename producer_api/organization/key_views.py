"""Request and response models of API keys."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from headrace.producer_api.http.views import seconds
from headrace.store.payloads.strict_model import Strict
from headrace.store.tenants.api_key_admin import (
    DEFAULT_OVERLAP_S,
    ApiKey,
    IssuedKey,
    KeyChange,
    NewKey,
    Unchanged,
    Until,
)
from headrace.store.tenants.api_keys import OPERATION_SCOPES, SCOPES

MOST_MODELS = 100
LONGEST_LIFE_S = 10 * 365 * 86_400
LONGEST_OVERLAP_S = 30 * 86_400

Name = Annotated[str, Field(min_length=1, max_length=200, description="a display name")]
_SCOPES = f"of {', '.join(sorted(SCOPES))}; `admin` includes all but {' and '.join(sorted(OPERATION_SCOPES))}"
Scopes = Annotated[list[str], Field(min_length=1, max_length=32, description=_SCOPES)]
ModelName = Annotated[str, Field(min_length=1, max_length=128)]
Models = Annotated[
    list[ModelName] | None,
    Field(
        min_length=1,
        max_length=MOST_MODELS,
        description="the models that the key may use, in all versions; null: all models",
    ),
]
ExpiresInS = Annotated[
    int | None, Field(ge=1, le=LONGEST_LIFE_S, description="expires after this many seconds; instead of `expires_at`")
]
ExpiresAt = Annotated[int | None, Field(ge=1, lt=1 << 35, description="expires at this Unix time; null: never")]


class _Ends(Strict):
    """Request fields for the expiry of a key."""

    expires_in_s: ExpiresInS = None
    expires_at: ExpiresAt = None

    @model_validator(mode="after")
    def _say_it_once(self) -> Self:
        if self.expires_in_s is not None and self.expires_at is not None:
            raise ValueError("give either expires_in_s or expires_at")
        return self

    @property
    def until(self) -> Until | Unchanged:
        """The requested expiry; UNCHANGED if the request has none."""
        if self.expires_in_s is not None:
            return float(self.expires_in_s)
        if self.expires_at is not None:
            return datetime.fromtimestamp(self.expires_at, UTC)
        return None if "expires_at" in self.model_fields_set else Unchanged.UNCHANGED


class KeyRequest(_Ends):
    """The body of `POST /v1/organization/api_keys`."""

    name: Name
    scopes: Scopes
    models: Models = None

    @property
    def wanted(self) -> NewKey:
        """The requested key."""
        until = None if isinstance(self.until, Unchanged) else self.until
        return NewKey(self.name, frozenset(self.scopes), _set(self.models), until)


class KeyPatch(_Ends):
    """Changes of a key; fields left out stay unchanged."""

    name: Name | None = None
    scopes: Scopes | None = None
    models: Models = None

    @property
    def change(self) -> KeyChange:
        """The requested change."""
        return KeyChange(
            Unchanged.UNCHANGED if self.name is None else self.name,
            Unchanged.UNCHANGED if self.scopes is None else frozenset(self.scopes),
            _set(self.models) if "models" in self.model_fields_set else Unchanged.UNCHANGED,
            self.until,
        )


class KeyRotation(_Ends):
    """Rotation of a key. By default the new key has the expiry of the old one."""

    # Strict: refuses ``false``.
    overlap_s: int = Field(
        DEFAULT_OVERLAP_S,
        ge=0,
        le=LONGEST_OVERLAP_S,
        strict=True,
        description="how long the old key still works, in seconds; 0: it stops at once",
    )


class KeyObject(BaseModel):
    """A key, without its secret."""

    id: str
    object: Literal["organization.api_key"] = "organization.api_key"
    name: str
    redacted_value: str
    scopes: list[str]
    models: list[str] | None = Field(description="null: all models")
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="last use, to the minute")
    revoked_at: int | None
    replaced_by: str | None = Field(description="the key that replaced it in a rotation")


class IssuedKeyObject(KeyObject):
    """A new key. Only this answer shows ``value``."""

    value: str


class RotatedKeyObject(IssuedKeyObject):
    """The new key and the one that it replaces."""

    replaces: KeyObject


class KeyList(BaseModel):
    """A page of keys; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[KeyObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _set(models: Sequence[str] | None) -> frozenset[str] | None:
    return None if models is None else frozenset(models)


def key_object(key: ApiKey) -> KeyObject:
    """Return the key without its plaintext."""
    return KeyObject(**_fields(key))


def issued_key_object(issued: IssuedKey) -> IssuedKeyObject:
    """Return a new key with its plaintext."""
    return IssuedKeyObject(**_fields(issued.key), value=issued.plaintext)


def rotated_key_object(old: ApiKey, issued: IssuedKey) -> RotatedKeyObject:
    """Return a new key with its plaintext, and the key that it replaces."""
    return RotatedKeyObject(**_fields(issued.key), value=issued.plaintext, replaces=key_object(old))


def key_list(found: Sequence[ApiKey], limit: int) -> KeyList:
    """Return a page of keys; ``found`` has up to ``limit + 1`` of them."""
    data = [key_object(key) for key in found[:limit]]
    return KeyList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "redacted_value": f"hr_{key.id.removeprefix('key_')}_…",
        "scopes": sorted(key.rights.scopes),
        "models": None if key.rights.models is None else sorted(key.rights.models),
        "created_at": seconds(key.created_at),
        "expires_at": seconds(key.rights.expires_at),
        "last_used_at": seconds(key.last_used_at),
        "revoked_at": seconds(key.revoked_at),
        "replaced_by": key.replaced_by,
    }
