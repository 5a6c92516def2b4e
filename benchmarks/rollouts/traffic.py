"""Random jobs of a rollout: tenants that differ, a load that changes with time, two versions on workers of their own.

Times and lengths are log-normal. A tenant has its own rate of errors and of policy blocks, and its own length of
prompts and answers. The load is shared by both versions and correlated from window to window; beside it each version's
workers have a smaller disturbance of their own. All is drawn from the seed.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.features.rollouts.matched_pairs import JobOutcome, JobPair


class CandidateFault(StrEnum):
    """The fault of the simulated candidate."""

    NONE = "none"
    ERRORS = "errors"
    SLOW = "slow"
    NAN = "nan"
    LONGER = "longer"
    WORSE = "worse"


WHAT = {
    CandidateFault.NONE: "nothing is wrong",
    CandidateFault.ERRORS: "2 % more errors",
    CandidateFault.SLOW: "30 % slower, first and later tokens",
    CandidateFault.NAN: "invalid numbers for 2 % of the inputs",
    CandidateFault.LONGER: "answers 50 % longer",
    CandidateFault.WORSE: "shadow: 40 % of an answer's tokens agree, not 85 %",
}

_GOES_ON = 0.8

_STEPS = ((30, 0.05), (30, 0.25), (1_000_000, 0.5))
"""Windows, and the candidate's share in them."""


def share_of(window: int) -> float:
    """Return the candidate's share in this window, counted from 1, in percent."""
    for num_windows, share in _STEPS:
        if window <= num_windows:
            return 100 * share
        window -= num_windows
    return 100 * share


@dataclass(slots=True)
class RandomTenant:
    """A caller: ``weight`` is its part of the jobs."""

    id: str
    weight: float
    errors: float
    blocks: float
    prompt: float
    answer: float
    place: float
    users: list[float]
    conversations: list[float]


@dataclass(slots=True)
class Wave:
    """A disturbance of the logarithm of times: autoregressive from window to window."""

    sd: float
    memory: float
    now: float = 0.0

    def turn(self, draw: random.Random) -> float:
        """Return the disturbance of the next window."""
        self.now = self.memory * self.now + draw.gauss(0, self.sd * math.sqrt(1 - self.memory**2))
        return self.now


@dataclass(slots=True)
class Traffic:
    """The windows of one rollout. ``sticky``: what stays on one version, a name of ``StickyKey``."""

    seed: int
    fault: CandidateFault
    sticky: str = "user"
    num_tenants: int = 40
    jobs_per_window: int = 100
    _draw: random.Random = field(init=False)
    _tenants: list[RandomTenant] = field(init=False)

    def __post_init__(self) -> None:
        self._draw = draw = random.Random(f"{self.seed}-{self.sticky}")
        places = random.Random(f"{self.seed}-conversations")
        self._tenants = [
            RandomTenant(
                id=f"tenant-{number}",
                weight=1 / number,
                errors=min(0.05, math.exp(draw.gauss(math.log(0.002), 1.0))),
                blocks=min(0.3, math.exp(draw.gauss(math.log(0.01), 1.0))),
                prompt=draw.gauss(math.log(400), 0.8),
                answer=draw.gauss(math.log(150), 0.5),
                place=draw.random(),
                users=[draw.random() for _ in range(100)],
                conversations=[places.random() for _ in range(20)],
            )
            for number in range(1, self.num_tenants + 1)
        ]

    def windows(self) -> Iterator[tuple[list[JobOutcome], list[JobOutcome]]]:
        """Yield the jobs of the candidate and of the stable version, window by window, without end."""
        load, waves = Wave(0.25, 0.95), (Wave(0.03, 0.9), Wave(0.03, 0.9))
        weights = [tenant.weight for tenant in self._tenants]
        for num_windows, share in _STEPS:
            for _ in range(num_windows):
                shared = load.turn(self._draw)
                slow = [shared + wave.turn(self._draw) for wave in waves]
                sides: tuple[list[JobOutcome], list[JobOutcome]] = ([], [])
                for tenant in self._draw.choices(self._tenants, weights, k=self.jobs_per_window):
                    place = self._place(tenant)
                    side = 0 if place < share else 1
                    sides[side].append(self._job(tenant, slow[side], self.fault if side == 0 else CandidateFault.NONE))
                yield sides

    def _place(self, tenant: RandomTenant) -> float:
        """Return the point of a job's sticky key. A conversation goes on with a probability of 0.8."""
        match self.sticky:
            case "tenant":
                return tenant.place
            case "job":
                return self._draw.random()
            case "conversation":
                at = self._draw.randrange(len(tenant.conversations))
                if self._draw.random() > _GOES_ON:
                    tenant.conversations[at] = self._draw.random()
                return tenant.conversations[at]
        return self._draw.choice(tenant.users)

    def shadow_pairs(self) -> Iterator[list[JobPair]]:
        """Yield the pairs of a tenth of each window: a stable job and its mirror, with their agreement."""
        weights = [tenant.weight for tenant in self._tenants]
        mean = 0.4 if self.fault is CandidateFault.WORSE else 0.85
        while True:
            chosen = self._draw.choices(self._tenants, weights, k=self.jobs_per_window // 10)
            agreements = [(tenant.id, self._draw.betavariate(3 * mean, 3 * (1 - mean))) for tenant in chosen]
            yield [
                JobPair(JobOutcome(id_, disagreement=1 - agreement), JobOutcome(id_, disagreement=0.0))
                for id_, agreement in agreements
            ]

    def _job(self, tenant: RandomTenant, slow: float, fault: CandidateFault) -> JobOutcome:
        draw = self._draw
        prompt = max(1, round(math.exp(draw.gauss(tenant.prompt, 0.4))))
        if fault is CandidateFault.NAN and draw.random() < 0.02:
            return JobOutcome(tenant.id, 1, prompt, has_succeeded=False, error_code="numerical_error")
        if draw.random() < tenant.errors + (0.02 if fault is CandidateFault.ERRORS else 0.0):
            return JobOutcome(tenant.id, 1, prompt, has_succeeded=False, error_code="engine_error")
        if fault is CandidateFault.SLOW:
            slow += math.log(1.3)
        tokens = math.exp(draw.gauss(tenant.answer, 0.8)) * (1.5 if fault is CandidateFault.LONGER else 1.0)
        is_blocked = draw.random() < tenant.blocks
        return JobOutcome(
            tenant.id,
            1,
            prompt,
            has_succeeded=not is_blocked,
            error_code="policy_blocked_output" if is_blocked else None,
            first_token_s=math.exp(draw.gauss(math.log(0.2 + prompt / 4000), 0.5) + slow),
            token_s=math.exp(draw.gauss(math.log(0.02), 0.25) + slow),
            output_tokens=max(1, round(tokens)),
        )
