"""The models without weights: which numbers and words they make of their inputs."""

import numpy as np
import pytest

from headrace.features.encoders.classify.inputs import FAKE as CLASSES
from headrace.features.encoders.fake_encoders import (
    FakeClassifier,
    FakeEmbedder,
    FakeImageClassifier,
    fake_pixels,
    fake_scores,
)
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.rerank.inputs import FAKE as RERANKING
from headrace.features.encoders.token_classify.inputs import FAKE as TOKEN_CLASSES
from headrace.features.images.classify.inputs import FAKE as IMAGE_CLASSES
from headrace.models.fakes.fake import EOS, next_token
from headrace.models.fakes.fake_encoder import fake_vector
from tests.models.runners.making import floats, rows


def test_a_fake_vector_is_a_hash_of_unit_length() -> None:
    whole = floats(fake_vector((1, 2, 3)))
    assert len(whole) == 8
    assert sum(number**2 for number in whole) == pytest.approx(1, abs=1e-4)
    short = floats(fake_vector((1, 2, 3), 3))
    norm = sum(number**2 for number in whole[:3]) ** 0.5
    assert short == pytest.approx([number / norm for number in whole[:3]], abs=1e-4)
    found = FakeEmbedder().run(rows((1, 2, 3), (4,), options=3))
    assert found == [fake_vector((1, 2, 3), 3), fake_vector((4,), 3)]
    assert fake_vector((4,)) != fake_vector((5,))


def test_fake_scores_are_shares_of_one_label_or_of_all() -> None:
    numbers = floats(fake_scores((1, 2), 3))
    assert sum(numbers) == pytest.approx(1, abs=1e-4)
    (single,) = floats(fake_scores((1, 2), 1))
    assert 0 < single < 1
    assert FakeClassifier(CLASSES).run(rows((1, 2), (3,))) == [fake_scores((1, 2), 3), fake_scores((3,), 3)]
    assert FakeClassifier(RERANKING).run(rows((1, 2))) == [fake_scores((1, 2), 1)]
    per_token = FakeClassifier(TOKEN_CLASSES).run(rows((1, 2)))
    assert per_token == [fake_scores((1,), 3) + fake_scores((2,), 3)]
    windows = [FakeClassifier(each).context_window for each in (CLASSES, RERANKING)]
    assert [*windows, FakeImageClassifier(IMAGE_CLASSES).context_window] == [
        CLASSES.context_window,
        RERANKING.context_window,
        50,
    ]


def test_fakes_of_images_read_the_pixels_and_of_texts_the_tokens() -> None:
    pixels = tuple(fake_pixels(np.full((2, 2), shade, np.uint8)) for shade in (1, 2))
    assert [len(each) for each in pixels] == [16, 16]
    asked = rows((0,), (0,), (7, 8), options=ImageRows(pixels, 4))
    expected = [fake_vector(numbers, 4) for numbers in (*pixels, (7, 8))]
    assert FakeEmbedder().run(asked) == expected
    assert FakeImageClassifier(IMAGE_CLASSES).run(asked[:2]) == [fake_scores(each, 3) for each in pixels]


def test_the_fake_model_writes_words_of_its_prompt() -> None:
    output: list[int] = []
    while not output or output[-1] != EOS:
        output.append(next_token(b"a prompt", output))
    assert output[-2] != ord(" "), "it ends after a word"
    free: list[int] = []
    while len(free) <= len(output):
        free.append(next_token(b"a prompt", free, ends=False))
    assert free[: len(output) - 1] == output[:-1]
    assert free[len(output) - 1] == ord(" ")
