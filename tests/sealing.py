"""A seal without encryption, for tests of what stores contents: all of it must be sealed, and open in its place."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import orjson

from headrace.store.db.seal_part import SealPart
from headrace.store.errors import CannotOpen
from headrace.store.json_text import dump_json
from headrace.store.seal import (
    ENVELOPE,
    Seal,
    SealContext,
    envelope_of,
    frame_key_id,
    missing_key,
    sealed_text,
    text_envelope_of,
)
from headrace.store.settings import Settings


class TurnedSeal(Seal):
    """Stores values turned round, with their place. It opens what any of its keys has sealed, in that place alone."""

    is_on = True

    def __init__(self, *key_ids: str) -> None:
        self._key_ids = key_ids

    def seal(self, value: Any, context: SealContext, *, outside: Iterable[str] = ()) -> Any:
        if not value:
            return value
        seen = {name: value[name] for name in outside if name in value} if isinstance(value, Mapping) else {}
        return {ENVELOPE: self._turned(dump_json(value).encode(), context), **seen}

    def open(self, stored: Any, context: SealContext) -> Any:
        envelope = envelope_of(stored)
        return super().open(stored, context) if envelope is None else orjson.loads(self._read(envelope, context))

    def seal_text(self, value: str, context: SealContext) -> str:
        return sealed_text(self._turned(value.encode(), context))

    def open_text(self, stored: str, context: SealContext) -> str:
        envelope = text_envelope_of(stored)
        return stored if envelope is None else self._read(envelope, context).decode()

    def seal_metadata(self, metadata: Mapping[str, str] | None, context: SealContext) -> Any:
        sealed = self.seal(metadata, context)
        return sealed | {"t": _tokens(metadata)} if metadata else sealed

    def metadata_filters(self, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        return [dict(wanted), {"t": _tokens(wanted)}]

    def seal_frame(self, data: bytes, job_id: str, where: bytes) -> bytes:
        key_id = self._key_ids[0].encode()
        return b"\0".join((bytes([len(key_id)]) + key_id, job_id.encode(), where, data[::-1]))

    def open_frame(self, sealed: bytes, job_id: str, where: bytes) -> bytes:
        self._need(frame_key_id(sealed), f"the stream of {job_id}")
        _, *place, data = sealed.split(b"\0", 3)
        if place != [job_id.encode(), where]:
            raise CannotOpen("it was moved", code="encryption_value_invalid")
        return data[::-1]

    def open_file(self, content: BinaryIO, name: str) -> BinaryIO:
        return content

    def checks(self) -> dict[str, str]:
        return dict.fromkeys(self._key_ids, "")

    def digest_keys(self) -> Sequence[bytes]:
        return [key_id.encode() for key_id in self._key_ids]

    def _turned(self, data: bytes, context: SealContext) -> dict[str, str]:
        place, turned = (base64.b64encode(part).decode() for part in (repr(context).encode(), data[::-1]))
        return {"k": self._key_ids[0], "w": place, "d": turned}

    def _read(self, envelope: Mapping[str, str], context: SealContext) -> bytes:
        self._need(envelope["k"], str(context))
        if base64.b64decode(envelope["w"]).decode() != repr(context):
            raise CannotOpen(f"{context} was moved", code="encryption_value_invalid")
        return base64.b64decode(envelope["d"])[::-1]

    def _need(self, key_id: str, where: str) -> None:
        if key_id not in self._key_ids:
            raise missing_key(key_id, where)


def _open(settings: Settings) -> Seal | None:
    ids = [key.partition(":")[0] for key in settings.encryption_keys.split(",") if key]
    return TurnedSeal(*ids) if ids else None


TURNED = SealPart(_open, check=lambda db: None)
"""The part of ``TurnedSeal``, with the ids of ``HEADRACE_ENCRYPTION_KEYS``. See the fixture ``turned_seal``."""


def _tokens(pairs: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}"[::-1] for name, value in pairs.items()]
