"""Labels, vectors and labels in words held to transformers' own pipelines and models on each image alone."""

from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, CLIPModel, PreTrainedTokenizerFast, pipeline

from headrace.features.encoders.embed.inputs import read_embedder
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.image_folder import read_image_classifier
from headrace.features.encoders.image_reader import ImageReader
from headrace.features.encoders.torch_images import image_classifier_for, image_encoder_for, image_processor
from headrace.features.images.classify.model import ImageClassifyModel
from headrace.features.images.zero_shot.served import read_candidates
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import EncodeRequest, EncodeRow
from headrace.models.families.model_folder import describe, small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from tests.models.runners.tiny_images import (
    CLASSIFIERS,
    ENCODERS,
    LABELS,
    SIDE,
    build,
    build_clip,
    data_url,
    encoded,
    picture,
)

MOST_APART = 1e-5
SETTINGS = Settings(device="cpu")
SIZES = ((40, 52), (33, 32), (90, 40), (40, 52), (16, 20))
MODES = ("RGB", "L", "RGB", "RGBA", "P")
PICTURES = [picture(seed, size, mode) for seed, (size, mode) in enumerate(zip(SIZES, MODES, strict=True))]
IMAGES = [data_url(encoded(one)) for one in PICTURES]
WORDS = ["a mill", "bread", "the old river by the mill"]


def run(model: EncoderModel, job: EncodeJob) -> dict[str, Any]:
    """The output of a job, with its inputs in one pass and in another order."""
    order = range(len(job.inputs))[::-1]
    found = model.encoder.run([EncodeRow("r", job.inputs[index], job.options, index) for index in order])
    return job.output([one or b"" for one in reversed(found)])


def classifier(folder: Path) -> ImageClassifyModel:
    reader = ImageReader(image_processor(folder), SETTINGS)
    found = read_image_classifier(small_files(folder))
    return ImageClassifyModel(None, image_classifier_for(folder, SETTINGS), found, reader)


def embedder(folder: Path) -> EmbedModel:
    files = small_files(folder)
    found = read_embedder(files)
    encoder, scale = image_encoder_for(folder, SETTINGS)
    tokenizer = load_tokenizer(files) if found.has_texts else None
    return EmbedModel(None, encoder, tokenizer, found, ImageReader(image_processor(folder), SETTINGS), scale)


def vectors(output: Mapping[str, Any]) -> list[tuple[float, ...]]:
    return [numbers_of(b64decode(one)) for one in output["embeddings"]]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_labels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = build(CLASSIFIERS[name], tmp_path)
    described = describe(folder)
    assert described.runner == "image-classifier"
    output = run(classifier(folder), classifier(folder).read({"input": {"images": IMAGES}}))
    process = AutoImageProcessor.from_pretrained(folder, backend="pil")
    ask = pipeline("image-classification", model=str(folder), image_processor=process, device="cpu")
    assert output["labels"] == list(LABELS)
    for ours, image in zip(output["classifications"], PICTURES, strict=True):
        theirs = ask(image, top_k=len(LABELS))
        assert [one["label"] for one in ours] == [one["label"] for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=MOST_APART)
    assert len({one[0]["score"] for one in output["classifications"]}) == len(IMAGES)
    best = run(classifier(folder), classifier(folder).read({"input": {"images": IMAGES[:1]}, "top_k": 1}))
    assert len(best["classifications"][0]) == 1


@torch.inference_mode()
@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = build(ENCODERS[name], tmp_path)
    assert describe(folder).runner == "encoder"
    model = embedder(folder)
    ours = vectors(run(model, model.read({"input": {"images": IMAGES}})))
    process = AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs: Any = AutoModel.from_pretrained(folder).eval()
    for vector, image in zip(ours, PICTURES, strict=True):
        output = theirs(**process(image.convert("RGB"), return_tensors="pt"))
        pooled = output.pooler_output.flatten() if name == "resnet" else output.last_hidden_state[0, 0]
        assert vector == pytest.approx(normalize(pooled, dim=0).tolist(), abs=MOST_APART)
    assert len(ours[0]) == model.embedder.width
    assert (model.scale, model.encoder.context_window) == (1.0, model.embedder.image_tokens)
    with pytest.raises(InvalidRequest, match="images alone"):
        model.read({"input": {"texts": ["x"]}})


@torch.inference_mode()
def test_clip_embeds_images_and_texts_in_one_space(tmp_path: Path) -> None:
    folder = build_clip(tmp_path)
    assert describe(folder).runner == "encoder"
    model = embedder(folder)
    images = vectors(run(model, model.read({"input": {"images": IMAGES}})))
    texts = vectors(run(model, model.read({"input": {"texts": WORDS}})))
    theirs = CLIPModel.from_pretrained(folder).eval()
    process = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    for vector, image in zip(images, PICTURES, strict=True):
        pooled = theirs.get_image_features(**process(image.convert("RGB"), return_tensors="pt")).pooler_output
        assert vector == pytest.approx(normalize(pooled[0], dim=0).tolist(), abs=MOST_APART)
    for vector, text in zip(texts, WORDS, strict=True):
        pooled = theirs.get_text_features(input_ids=torch.tensor([tokenizer(text).input_ids])).pooler_output
        assert vector == pytest.approx(normalize(pooled[0], dim=0).tolist(), abs=MOST_APART)
    asked = {"input": {"images": IMAGES, "candidate_labels": WORDS, "hypothesis_template": "see {}"}, "top_k": 2}
    job = read_candidates(model.tokenizer, model.embedder, model.scale, asked, model.images.of_payload)
    words = tokenizer([f"see {word}" for word in WORDS], padding=True, return_tensors="pt")
    for ours, image in zip(run(model, job)["classifications"], PICTURES, strict=True):
        pixels = process(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        output = theirs(input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels)
        scores = output.logits_per_image[0].softmax(0).tolist()
        expected = sorted(zip(scores, WORDS, strict=True), reverse=True)[:2]
        assert [one["label"] for one in ours] == [word for _, word in expected]
        assert [one["score"] for one in ours] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_images_of_different_jobs_share_a_forward_pass(tmp_path: Path) -> None:
    model = classifier(build(CLASSIFIERS["resnet, images of any shape"], tmp_path))
    alone = run(model, model.read({"input": {"images": IMAGES[3:4]}}))["classifications"]
    shapes: list[tuple[int, ...]] = []
    encoder: Any = model.encoder
    encoder.model.register_forward_pre_hook(
        lambda _module, _args, given: shapes.append(tuple(given["pixel_values"].shape)), with_kwargs=True
    )
    engine = EncodeEngine(model.encoder, EncodeConfig(8, 4096))
    jobs = [model.read({"input": {"images": IMAGES[start : start + 2]}}) for start in (0, 2, 3)]
    futures = [engine.submit(EncodeRequest(number, job.inputs, job.options)) for number, job in enumerate(jobs)]
    engine.start()
    try:
        vectors_of = [future.result(60).vectors for future in futures]
    finally:
        engine.stop(10)
    # Pictures 0 and 3 have one size, and 3 is in two jobs.
    assert sorted(shape[0] for shape in shapes) == [1, 1, 1, 3]
    for job, vectors_, place in ((jobs[1], vectors_of[1], 1), (jobs[2], vectors_of[2], 0)):
        ours = job.output(vectors_)["classifications"][place]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in alone[0]], abs=MOST_APART)


def test_a_folder_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    folder = build(CLASSIFIERS["vit"], tmp_path)
    assert describe(folder).context_window == (SIDE // 8) ** 2 + 1
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"preprocessor_config\.json is missing"):
        describe(folder)
