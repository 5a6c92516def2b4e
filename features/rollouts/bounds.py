"""What a rollout allows its candidate: the bounds of the judge's checks."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(ge=1, le=10)]


class Bounds(BaseModel):
    """How much worse the candidate may be before it counts as bad; the defaults are those of every rollout.

    A *share* is a difference: 0.005 allows half a job in a hundred more than the stable version has. A *ratio* is of
    the two versions' usual values: 1.1 allows a tenth more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    false_alarm: Annotated[float, Field(gt=0, le=0.2)] = Field(
        0.01, description="probability that a candidate within all bounds is found bad, over the whole rollout"
    )
    errors: Share = Field(0.005, description="share of jobs with an error of the version, more than the stable one")
    invalid_numbers: Share = Field(0.001, description="share of jobs with invalid numbers, more than the stable one")
    schema_failures: Share = Field(0.005, description="share of jobs whose grammar got stuck, more than the stable one")
    policy_blocks: Share = Field(0.02, description="share of outputs that a policy blocks, more than the stable one")
    unfinished: Share = Field(0.01, description="share of jobs without an end after settle_s, more than the stable one")
    first_token: Ratio = Field(1.1, description="ratio of the times from the job's start to its first token")
    token_time: Ratio = Field(1.1, description="ratio of the times of one output token")
    longer_answers: Ratio = Field(1.25, description="ratio of the lengths of answers, of longer ones")
    shorter_answers: Ratio = Field(1.25, description="ratio of the lengths of answers, of shorter ones")
    disagreement: Share = Field(0.5, description="share of an answer that differs from the stable one, in shadow mode")
    settle_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        300.0, description="seconds that the jobs of a window have to end before the judge reads it without them"
    )
