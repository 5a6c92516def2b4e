"""The output of a prediction."""

from typing import Any

from headrace.features.predict import inputs as predict
from headrace.features.predict.inputs import TabularConfig
from headrace.features.predict.model import PredictModel
from headrace.features.predict.task import EXPLAINED_COST
from tests.workers.tasks.test_outputs import ANY, vector

NUMBERS = [{"name": name, "type": "number"} for name in ("amount", "age")]


def tabular(**changes: Any) -> PredictModel:
    values = {"model_type": predict.MODEL_TYPE, "features": NUMBERS, **changes}
    return PredictModel(ANY, ANY, TabularConfig.model_validate(values))


def predicted(model: PredictModel, *numbers: float, explain: bool = False) -> dict[str, Any]:
    job = model.read({"input": {"rows": [{"amount": 1, "age": 2}]}, "explain": explain})
    assert len(job.inputs[0]) == (EXPLAINED_COST if explain else 1)
    (found,) = job.output([vector(*numbers)])["predictions"]
    return dict(found)


def test_a_prediction_has_its_label_its_probabilities_and_what_each_feature_gave() -> None:
    binary = tabular(objective="binary", classes=["no", "yes"], threshold=0.75)
    for score, label in ((0.75, "yes"), (0.5, "no")):
        chances = {"no": 1 - score, "yes": score}
        assert predicted(binary, score) == {"score": score, "label": label, "probabilities": chances}
    several = tabular(objective="multiclass", classes=["a", "b", "c"])
    chances = {"a": 0.25, "b": 0.5, "c": 0.25}
    assert predicted(several, 0.25, 0.5, 0.25) == {"score": 0.5, "label": "b", "probabilities": chances}
    explained = predicted(tabular(objective="regression"), 7.5, 1.0, 2.0, 4.0, 0.5, explain=True)
    contributions = {"amount": 1.0, "age": 2.0}
    about = {"baseline": 4.0, "contributions": contributions, "convergence_delta": 0.5}
    assert explained == {"score": 7.5, "explanation": about}
