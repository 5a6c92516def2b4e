"""What one worker does in how much time: the rates file of a version. Pure but for the file."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.strict_model import Strict

Positive = Annotated[float, Field(gt=0, lt=1e12)]


class Rates(Strict):
    """The speed of one worker of a version.

    ``decode_tokens_per_s``: by the number of running sequences, the output tokens a second of all of them together.
    ``prefill_tokens_per_s``: prompt tokens a second. ``cold_start_s``: from the decision that a worker is needed until
    it takes jobs. ``overhead_s``: the time of a job on its worker before it is in the engine. ``slots``,
    ``step_tokens`` and ``kv_tokens``: HEADRACE_MAX_SLOTS, HEADRACE_STEP_TOKENS and HEADRACE_KV_POOL_TOKENS.
    """

    name: Annotated[str, Field(max_length=200)] = ""
    decode_tokens_per_s: Annotated[Mapping[Annotated[int, Field(ge=1, le=4096)], Positive], Field(min_length=1)]
    prefill_tokens_per_s: Positive = 1e6
    cold_start_s: Annotated[float, Field(ge=0, lt=86_400)] = 10.0
    overhead_s: Annotated[float, Field(ge=0, lt=60)] = 0.01
    slots: Annotated[int, Field(ge=1, le=4096)] = 32
    step_tokens: Annotated[int, Field(ge=1)] = 512
    kv_tokens: Annotated[int, Field(ge=16)] = 16_384

    def decode_step_s(self, num_running: int) -> float:
        """Return the seconds of a step that gives each of so many sequences a token.

        Between two measured numbers it is interpolated. Below the first it is that of the first: the weights are read
        once in each step, however many sequences there are. Above the last the tokens a second stay.
        """
        points = sorted((number, number / rate) for number, rate in self.decode_tokens_per_s.items())
        first, last = points[0], points[-1]
        if num_running <= first[0]:
            return first[1]
        for low, high in pairwise(points):
            if num_running <= high[0]:
                share = (num_running - low[0]) / (high[0] - low[0])
                return low[1] + share * (high[1] - low[1])
        return last[1] * num_running / last[0]

    def step_s(self, num_decode: int, num_prefill: int, grain: int = 1) -> float:
        """Return the seconds of a step. ``grain``: so many tokens are one in the simulation."""
        steps = grain if num_decode else 1
        return steps * self.decode_step_s(max(1, num_decode)) + grain * num_prefill / self.prefill_tokens_per_s


def read_rates(path: Path) -> Rates:
    """Return the rates of a JSON file. Raises InvalidRequest, which names the field."""
    try:
        found = Rates.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest(f"{path}: {where}: {first['msg']} (docs/planning.md has an example)") from None
    return found if found.name else found.model_copy(update={"name": path.stem})
