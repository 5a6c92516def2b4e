"""Verbs of the quality of model versions: quantize, show reports, set bounds. These commands use the API."""

from typing import Annotated, Any

import typer

from headrace.cli.client.models import ModelArgument
from headrace.cli.client.verbs import connect
from headrace.cli.render import Json, JsonOption, show
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.registry.number_formats import FORMATS
from headrace.store.registry.quality_report import report_line

_SCHEMES = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="name, name@version or name@alias.")]
Limit = Annotated[float | None, typer.Option(show_default=False)]


def quantize(
    name: NameArgument,
    scheme: Annotated[str, typer.Option(help=f"The number format. {_SCHEMES}.")],
    as_json: JsonOption = False,
) -> None:
    """Register the files of a version in another number format. A worker then measures its distance and its speed.

    `headrace models quantize smollm2 --scheme int8`, then `headrace worker --model smollm2@2`.
    """
    if scheme not in FORMATS:
        raise InvalidRequest(f"no scheme {scheme!r}: {', '.join(FORMATS)}", param="scheme")
    with connect() as client:
        known = client.model_versions(name.partition("@")[0])
        source = _find(known, name)
        _refuse_known(known, source, scheme)
        made = client.register_version(source["model"], {"files_of": source["id"], "dtype": scheme})
    words = (
        f"{made['id']} is {source['id']} in {scheme}; `headrace worker --model {made['id']}` verifies and measures it"
    )
    show(made, words, as_json=as_json)


def quality(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show how far the versions of a model are from their references, and the model's bound."""
    model, _, reference = name.partition("@")
    with connect() as client:
        known = client.model_versions(model)
        bound = client.quality_bound(model)
    found = [_find(known, name)] if reference else known
    if not found:
        raise NotFound(f"no model {name!r}: `headrace models` lists them", code="model_not_found")
    data = {"data": [_quality_of(one) for one in found], "bound": bound}
    show(data, "\n".join([*map(_report, found), bound_text(bound)]), as_json=as_json)


def set_bound(
    name: ModelArgument,
    min_agreement: Limit = None,
    max_kl: Limit = None,
    max_perplexity_ratio: Limit = None,
    none: Annotated[bool, typer.Option("--none", help="Remove the bound.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show or set what the quality of a model's versions must keep: else their verification rejects them.

    `headrace models bound smollm2 --min-agreement 0.97 --max-kl 0.02 --max-perplexity-ratio 1.03`. It replaces the
    bound before.
    """
    limits = {"min_agreement": min_agreement, "max_kl": max_kl, "max_perplexity_ratio": max_perplexity_ratio}
    given = {limit: value for limit, value in limits.items() if value is not None}
    if none and given:
        raise InvalidRequest("give limits or --none, not both")
    with connect() as client:
        if none:
            client.remove_quality_bound(name)
        elif given:
            client.set_quality_bound(name, given)
        found = client.quality_bound(name)
    show(found, bound_text(found), as_json=as_json)


def bound_text(bound: Json) -> str:
    """A model's bound in one line."""
    limits = {
        "top-1 agreement at least": bound["min_agreement"],
        "KL at most": bound["max_kl"],
        "perplexity ratio at most": bound["max_perplexity_ratio"],
    }
    given = ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)
    return f"bound of {bound['model']}: {given or 'none, no version is refused for its quality'}"


def _find(versions: list[Json], name: str) -> Json:
    """Return the version that a name means."""
    reference = name.partition("@")[2] or "default"
    for one in versions:
        if str(one["version"]) == reference or reference in one["aliases"]:
            return one
    raise NotFound(f"no version {name!r}: `headrace models` lists them", code="model_not_found")


def _refuse_known(versions: list[Json], source: Json, scheme: str) -> None:
    """Raise Conflict if the files of a version are registered in this number format, and not rejected."""
    for one in versions:
        dtype = (one["verification"] or {}).get("dtype") if one["dtype"] == "auto" else one["dtype"]
        is_same = one["digest"] == source["digest"] and one["engine"] == "native" and dtype == scheme
        if is_same and one["state"] not in {"rejected", "retired"}:
            raise Conflict(f"{one['id']} has these files in {scheme} already, and is {one['state']}")


def _quality_of(version: Json) -> dict[str, Any]:
    found = version["verification"] or {}
    names = ("id", "state", "state_reason", "dtype", "quantized_from")
    return {
        **{name: version[name] for name in names},
        "quality": found.get("quality"),
        "not_measured": found.get("not_measured"),
    }


def _report(version: Json) -> str:
    found = _quality_of(version)
    heading = f"{version['id']}, {version['state']}" + (
        f": {version['state_reason']}" if version["state_reason"] else ""
    )
    report = found["quality"]
    if report is None:
        return f"{heading}\n  not measured{': ' + found['not_measured'] if found['not_measured'] else ''}"
    return f"{heading}\n  {report_line(report)}"
