"""Rows of a request: what is stored of them, what they cost, and what is refused."""

import pytest
from pydantic import ValidationError

from headrace.features.predict.inputs import FAKE as TABULAR
from headrace.features.predict.task import EXPLAINED_COST, Prediction, PredictPayload
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.store.errors import InvalidRequest
from tests.prompts.tasks.test_prepared import Model, prepared

ROWS = {"rows": [{"country": "ch"}, {"country": "de"}]}


@pytest.mark.parametrize(("explain", "cost"), [(False, 2), (True, 2 * EXPLAINED_COST)])
def test_the_payload_has_the_fields_of_the_request_and_explanations_cost_more(cost: int, *, explain: bool) -> None:
    found = prepared("predict", Model(TABULAR), input=ROWS, explain=explain)
    assert (found.num_tokens, found.max_tokens) == (cost, 0)
    assert found.payload.model_dump(exclude={"input"}) == {"explain": explain}


def test_what_older_processes_left_out_has_its_default() -> None:
    assert PredictPayload.model_validate({"input": ROWS}).explain is False
    with pytest.raises(ValidationError):
        PredictPayload.model_validate({"input": ROWS, "of_nobody": 1})
    nothing_more = {"label": None, "probabilities": None, "explanation": None}
    assert Prediction(score=0.5).model_dump() == {"score": 0.5, **nothing_more}


def test_rows_are_checked_before_a_policy_reads_them() -> None:
    inputs = TASK_INPUTS["predict"]
    request = inputs.spec.request.model_validate(
        {"task": "predict", "model": "m", "input": {"rows": [{"amount": "x"}]}}
    )
    with pytest.raises(InvalidRequest) as wrong:
        inputs.cut_to_length(request, Model(TABULAR))
    assert wrong.value.param == "input.rows[0].amount"
