"""The output of each encoder's job from the vectors of its model, without an engine: orders, places, ties and cuts."""

import struct
from base64 import b64encode
from typing import Any

import pytest

from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings
from headrace.features.encoders.classify import inputs as classify
from headrace.features.encoders.classify.model import ClassifyModel, best_labels
from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.encoders.image_reader import ReadImages
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.rerank import inputs as rerank
from headrace.features.encoders.rerank.model import RerankModel
from headrace.features.encoders.score.served import read_pairs, read_texts
from headrace.features.images.classify import inputs as image_classify
from headrace.features.images.classify.model import ImageClassifyModel
from headrace.features.images.zero_shot.served import read_candidates
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import FailedImage

ANY: Any = None
TOKENIZER = ByteTokenizer()
SMALL = ClassifierSettings(6, ("LABEL_0",), Activation.SIGMOID)
PIXEL = "https://images.example.com/mill.png"
FAILED = FailedImage(index=1, code="invalid_image", message="it is no image")
LOST = {"index": 1, "code": "invalid_image", "message": "it is no image"}


def vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


class TwoOfThree:
    """Reads three images, of which the second cannot be read."""

    def of_payload(self, images: Any) -> ReadImages:
        assert len(images) == 3
        return ReadImages(("first", "third"), (0, 2), (FAILED,))


def test_documents_are_ordered_by_score_and_the_earlier_of_two_equal_ones_is_first() -> None:
    model = RerankModel(ANY, ANY, TOKENIZER, rerank.FAKE)
    given = {"input": {"query": "q", "documents": ["a", "b", "c", "d"]}}
    scores = [vector(0.5), vector(0.25), vector(0.75), vector(0.5)]
    best = [{"index": index, "relevance_score": score} for index, score in ((2, 0.75), (0, 0.5), (3, 0.5), (1, 0.25))]
    assert model.read(given).output(scores) == {"results": best}
    assert model.read(given | {"top_n": 2}).output(scores) == {"results": best[:2]}
    small = RerankModel(ANY, ANY, TOKENIZER, SMALL)
    job = small.read({"input": {"query": "q", "documents": ["a", "b" * 9]}, "truncate": True})
    assert (job.output(scores[:2])["truncated"], len(job.inputs[1])) == ([{"index": 1, "tokens": 4}], 6)
    with pytest.raises(InvalidRequest):
        small.read({"input": {"query": "q", "documents": ["b" * 9]}})


def test_a_pair_of_texts_has_the_score_of_its_reranker() -> None:
    given = {"input": {"text_1": ["a"], "text_2": ["b", "c" * 9]}, "truncate": True}
    job = read_pairs(TOKENIZER, SMALL, given)
    assert job.output([vector(0.5), vector(0.75)]) == {
        "scores": [0.5, 0.75],
        "truncated": [{"index": 1, "tokens": 4}],
    }
    with pytest.raises(InvalidRequest):
        read_pairs(TOKENIZER, SMALL, given | {"truncate": False})


def test_a_pair_of_texts_has_the_cosine_of_its_vectors() -> None:
    texts = Embedder(context_window=4, width=2)
    one = read_texts(TOKENIZER, texts, {"input": {"text_1": ["a"], "text_2": ["b", "c", "d"]}})
    assert [len(each) for each in one.inputs] == [1] * 4
    assert one.output([vector(3, 4), vector(4, 3), vector(-3, -4), vector(0, 0)]) == {"scores": [0.96, -1.0, 0.0]}
    given = {"input": {"text_1": ["a", "b"], "text_2": ["c" * 9, "d"]}}
    each = read_texts(TOKENIZER, texts, given | {"truncate": True})
    vectors = [vector(1, 0), vector(0, 1), vector(2, 0), vector(3, 4)]
    assert each.output(vectors) == {"scores": [1.0, 0.8], "truncated": [{"index": 2, "tokens": 5}]}
    with pytest.raises(InvalidRequest):
        read_texts(TOKENIZER, texts, given)


def test_the_first_of_two_labels_with_the_same_score_is_first() -> None:
    model = ClassifyModel(ANY, ANY, TOKENIZER, classify.FAKE)
    scores = [vector(0.25, 0.5, 0.25), vector(0.125, 0.125, 0.75)]
    given = {"input": {"texts": ["a", ["b", "c"]]}}
    labels = ["negative", "neutral", "positive"]
    ordered = [
        [("neutral", 0.5), ("negative", 0.25), ("positive", 0.25)],
        [("positive", 0.75), ("negative", 0.125), ("neutral", 0.125)],
    ]
    named = [[{"label": label, "score": score} for label, score in one] for one in ordered]
    assert model.read(given).output(scores) == {"labels": labels, "classifications": named}
    assert model.read(given | {"top_k": 1}).output(scores)["classifications"] == [one[:1] for one in named]
    assert [one.label for one in best_labels("abc", (1.0, 2.0, 2.0), 2)] == ["b", "c"]
    small = ClassifyModel(ANY, ANY, TOKENIZER, SMALL)
    cut = small.read({"input": {"texts": ["a", "b" * 9]}, "truncate": True}).output([vector(0.5)] * 2)
    assert cut["truncated"] == [{"index": 1, "tokens": 3}]


def test_images_keep_their_places_beside_one_that_cannot_be_read() -> None:
    images: Any = TwoOfThree()
    given: dict[str, Any] = {"input": {"images": [PIXEL] * 3}}
    job = ImageClassifyModel(ANY, ANY, image_classify.FAKE, images).read(given | {"top_k": 1})
    assert (job.inputs, job.options) == (((0,) * 50,) * 2, ImageRows(("first", "third")))
    assert job.output([vector(0.5, 0.25, 0.25), vector(0.0, 0.25, 0.75)]) == {
        "labels": ["bread", "mill", "river"],
        "classifications": [[{"label": "bread", "score": 0.5}], [], [{"label": "river", "score": 0.75}]],
        "failed": [LOST],
    }
    both = Embedder(context_window=64, width=2, shorter=(1,), image_tokens=7)
    job = EmbedModel(ANY, ANY, TOKENIZER, both, images).read(given | {"dimensions": 1})
    assert (job.inputs, job.options) == (((0,) * 7,) * 2, ImageRows(("first", "third"), 1))
    first, third = vector(0.5), vector(0.75)
    embeddings = tuple(b64encode(one).decode() for one in (first, b"", third))
    assert job.output([first, third]) == {"embeddings": embeddings, "dimensions": 1, "failed": (LOST,)}
    given["input"]["candidate_labels"] = ["mill", "river"]
    job = read_candidates(TOKENIZER, both, 2.0, given, images.of_payload)
    assert [len(one) for one in job.inputs[:2]] == [7, 7]
    assert job.options == ImageRows(("first", "third"))
    found = job.output([vector(1, 0), vector(0, 1), vector(1, 0), vector(0, 1)])
    # The softmax of 2 and 0: exp(2) / (exp(2) + 1).
    sure = [pytest.approx(0.8807970779778823), pytest.approx(0.1192029220221176)]
    assert [[(one["label"], one["score"]) for one in each] for each in found["classifications"]] == [
        [("mill", sure[0]), ("river", sure[1])],
        [],
        [("river", sure[0]), ("mill", sure[1])],
    ]
    assert found["failed"] == [LOST]
    large = read_candidates(TOKENIZER, both, 1e4, given, images.of_payload)
    best = large.output([vector(1, 0), vector(0, 1), vector(1, 0), vector(0, 1)])["classifications"][0]
    assert [one["score"] for one in best] == [1.0, 0.0], "a large scale overflows nothing"


def test_texts_are_embedded_behind_their_prompt_and_images_only_by_a_model_of_images() -> None:
    texts = Embedder(context_window=8, width=2, shorter=(1,), prompts={"query": "q: "}, default_prompt="d:")
    model = EmbedModel(ANY, ANY, TOKENIZER, texts)
    given = {"input": {"texts": ["abc", "x" * 9]}, "truncate": True}
    job = model.read(given | {"dimensions": 1})
    assert (bytes(job.inputs[0]), job.options) == (b"d:abc", 1)
    assert bytes(model.read(given | {"prompt_name": "query"}).inputs[0]) == b"q: abc"
    two = [vector(0.5, 0.25), vector(0.0, 1.0)]
    assert job.output(two) == {
        "embeddings": tuple(b64encode(one).decode() for one in two),
        "dimensions": 2,
        "truncated": ({"index": 1, "tokens": 3},),
    }
    with pytest.raises(InvalidRequest) as refused:
        model.read(given | {"truncate": False})
    assert refused.value.param == "input.texts[1]"
    with pytest.raises(InvalidRequest, match="no images"):
        model.read({"input": {"images": [PIXEL]}})
    alone = EmbedModel(ANY, ANY, None, Embedder(8, 2, image_tokens=7, has_texts=False))
    assert alone.example["input"].keys() == {"images"}
    with pytest.raises(InvalidRequest, match="images alone"):
        alone.read(given)
