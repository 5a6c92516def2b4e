"""The numbers that a network of tables computes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headrace.features.predict.dense_network import DenseNetwork
from headrace.features.predict.inputs import Activation, Objective
from headrace.features.predict.integrated_gradients import integrated_gradients
from headrace.features.predict.torch_tabular import outputs_of


def test_the_last_numbers_become_what_the_objective_says() -> None:
    last = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    config: Any = SimpleNamespace(target_mean=10.0, target_scale=3.0)
    config.objective = Objective.REGRESSION
    assert outputs_of(config, last).tolist() == [[10.0, 13.0], [16.0, 16.0]]
    config.objective = Objective.MULTICLASS
    assert outputs_of(config, last)[1].tolist() == [0.5, 0.5]
    config.objective = Objective.BINARY
    assert outputs_of(config, last)[0].tolist() == pytest.approx([0.5, 0.731059])


@pytest.mark.parametrize(("activation", "expected"), [(Activation.RELU, 2.0), (Activation.TANH, 1.0 + 0.0)])
def test_a_network_activates_between_its_layers_only(activation: Activation, expected: float) -> None:
    config: Any = SimpleNamespace(activation=activation, num_columns=1)
    layers = (
        (torch.tensor([[1.0, 1.0], [-100.0, -100.0]]), torch.zeros(2)),
        (torch.tensor([[2.0, 1.0]]), torch.tensor([-2.0])),
    )
    network = DenseNetwork(config, (torch.tensor([[1.0], [3.0]]),), layers)
    inputs = network.inputs([[1.0], [0.0]], [[0], [1]])
    assert inputs.tolist() == [[1.0, 1.0], [0.0, 3.0]]
    assert network.baseline().tolist() == [0.0, 2.0]
    first = float(network.last(inputs)[0])
    assert first == pytest.approx(expected if activation is Activation.RELU else 2 * np.tanh(2) - 1 - 2, abs=1e-5)
    assert network.to(torch.float64).last(inputs.double()).dtype == torch.float64


def test_contributions_sum_to_the_change_of_the_value_that_is_explained() -> None:
    def function(inputs: torch.Tensor) -> torch.Tensor:
        a, b = inputs.unbind(1)
        return torch.stack([a * b + a, (50 * a).tanh() * b], dim=1)

    inputs = torch.tensor([[2.0, 3.0], [1.0, -2.0], [0.0, 1.0]], dtype=torch.float64)
    baseline = torch.tensor([0.0, 1.0], dtype=torch.float64)
    chosen = torch.tensor([0, 1, 0])
    found = integrated_gradients(function, inputs, baseline, chosen)
    values, start = function(inputs), function(baseline[None])[0]
    change = values.gather(1, chosen[:, None])[:, 0] - start[chosen]
    assert found.sum(1).tolist() == pytest.approx(change.tolist(), abs=1e-3)
    assert found[0].tolist() == pytest.approx([6.0, 2.0], abs=1e-3)
    assert found[2].tolist() == [0.0, 0.0]
