"""The requests of all tasks: bounds, defaults and the words of refusals, and the names by which tasks are known."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace.features.encoders.classify.task import ClassifyPayload
from headrace.features.encoders.embed.task import EmbedPayload
from headrace.features.encoders.rerank.task import RerankPayload
from headrace.features.encoders.score.task import ScoreInput, ScorePayload
from headrace.features.encoders.token_classify.task import Entity, TokenClassifyPayload
from headrace.features.flows.task import CALL_TOOL, ToolCallInput, ToolCallOutput, error_text
from headrace.features.images.classify.task import ImageClassifyPayload
from headrace.features.images.zero_shot.task import ImageZeroShotInput, ImageZeroShotPayload
from headrace.store.payloads.prompt_reference import PromptUse, TemplatePlace
from headrace.store.payloads.sampling_params import Truncated, Truncation
from headrace.store.tasks.generate import (
    MAX_CHOICES,
    MAX_SAMPLES,
    AnswerShape,
    GeneratedText,
    GenerateInput,
    GeneratePayload,
    GenerateRequest,
)
from headrace.store.tasks.registry import TASKS
from headrace.store.tasks.turn_form import form_of
from tests.refusals import Naming
from tests.store.tasks.making import AT_LEAST, AT_MOST, CHAT, IMAGE, NAMED, REQUEST, SOURCES, TOOL, read, refused


@pytest.mark.parametrize(
    ("task", "own"),
    [
        ("generate", {"n": None, "truncation": "disabled", "retrieval": None, "server_tools": None}),
        ("embed", {"dimensions": None, "truncate": False, "prompt_name": None}),
        ("rerank", {"top_n": None, "truncate": False}),
        ("classify", {"top_k": None, "truncate": False}),
        ("token_classify", {"aggregation_strategy": "simple", "ignore_labels": ("O",), "truncate": False}),
        ("score", {"truncate": False}),
        ("image_classify", {"top_k": None}),
        ("image_zero_shot", {"top_k": None}),
        ("predict", {"explain": False}),
        (
            "recommend",
            {
                "top_k": 10,
                "exclude_history": True,
                "filter": {"include_ids": None, "exclude_ids": (), "where": ()},
            },
        ),
        ("transcribe", {"language": None}),
        ("call_tool", {}),
    ],
)
def test_a_request_has_its_defaults(task: str, own: dict[str, Any]) -> None:
    found = read(task).model_dump()
    terms = TASKS["call_tool"].request.model_fields.keys()
    assert {name: value for name, value in found.items() if name not in terms and name != "sampling"} == own
    assert found["task"] == task
    assert task in SOURCES


@pytest.mark.parametrize(
    ("task", "source", "more", "place", "said"),
    [
        ("classify", {"texts": []}, {}, "input.texts", AT_LEAST),
        ("classify", {"texts": ["a"] * 8193}, {}, "input.texts", f"{AT_MOST} 8192"),
        ("classify", None, {"top_k": 0}, "top_k", "equal to 1"),
        ("token_classify", {"texts": []}, {}, "input.texts", AT_LEAST),
        ("token_classify", {"texts": ["a"] * 8193}, {}, "input.texts", f"{AT_MOST} 8192"),
        ("token_classify", None, {"ignore_labels": ["a"] * 1001}, "ignore_labels", f"{AT_MOST} 1000"),
        ("token_classify", None, {"aggregation_strategy": "last"}, "aggregation_strategy", "'average' or 'max'"),
        ("embed", {"texts": ["a"] * 2049}, {}, "input.texts", f"{AT_MOST} 2048"),
        ("embed", {"texts": []}, {}, "input.texts", AT_LEAST),
        ("embed", {"token_ids": [[]]}, {}, "input.token_ids.0", AT_LEAST),
        ("embed", {"token_ids": [[1] * 131_073]}, {}, "input.token_ids.0", f"{AT_MOST} 131072"),
        ("embed", {"token_ids": [[1]] * 2049}, {}, "input.token_ids", f"{AT_MOST} 2048"),
        (
            "embed",
            {"texts": ["a"], "images": [IMAGE]},
            {},
            "input",
            "`texts`, `token_ids` and `images`",
        ),
        ("embed", None, {"dimensions": 0}, "dimensions", "equal to 1"),
        ("embed", None, {"dimensions": 65_537}, "dimensions", "equal to 65536"),
        ("embed", None, {"prompt_name": ""}, "prompt_name", AT_LEAST),
        ("embed", None, {"prompt_name": "x" * 201}, "prompt_name", f"{AT_MOST} 200"),
        (
            "embed",
            {"token_ids": [[1]]},
            {"prompt_name": "query"},
            "",
            "`prompt_name` goes with texts",
        ),
        ("rerank", {"query": "a", "documents": []}, {}, "input.documents", AT_LEAST),
        ("rerank", {"query": "a", "documents": ["a"] * 1001}, {}, "input.documents", f"{AT_MOST} 1000"),
        ("rerank", None, {"top_n": 0}, "top_n", "equal to 1"),
        ("score", {"text_1": [], "text_2": ["a"]}, {}, "input.text_1", AT_LEAST),
        ("score", {"text_1": ["a"], "text_2": ["a"] * 1001}, {}, "input.text_2", f"{AT_MOST} 1000"),
        (
            "score",
            {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]},
            {},
            "input",
            "`text_1` has 2 texts and `text_2` has 3",
        ),
        ("image_classify", {"images": []}, {}, "input.images", AT_LEAST),
        ("image_classify", None, {"top_k": 0}, "top_k", "equal to 1"),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": []},
            {},
            "input.candidate_labels",
            AT_LEAST,
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": [str(n) for n in range(257)]},
            {},
            "input.candidate_labels",
            f"{AT_MOST} 256",
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": ["a", "b", "a"]},
            {},
            "input.candidate_labels",
            "twice",
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": [""]},
            {},
            "input.candidate_labels.0",
            AT_LEAST,
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": ["x" * 1001]},
            {},
            "input.candidate_labels.0",
            f"{AT_MOST} 1000",
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": ["a"], "hypothesis_template": "{} is {}"},
            {},
            "input.hypothesis_template",
            "`{}` once",
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": ["a"], "hypothesis_template": "no"},
            {},
            "input.hypothesis_template",
            "`{}` once",
        ),
        (
            "image_zero_shot",
            {"images": [IMAGE], "candidate_labels": ["a"], "hypothesis_template": "{}" + "x" * 999},
            {},
            "input.hypothesis_template",
            f"{AT_MOST} 1000",
        ),
        ("predict", {"rows": []}, {}, "input.rows", AT_LEAST),
        ("predict", {"rows": [{}] * 1001}, {}, "input.rows", f"{AT_MOST} 1000"),
        ("predict", {"rows": [dict.fromkeys(map(str, range(1001)), 1)]}, {}, "input.rows.0", f"{AT_MOST} 1000"),
        (
            "recommend",
            {"vector": [1.0], "features": {}},
            {},
            "input",
            "`vector`, `history` and `features`",
        ),
        ("recommend", {"vector": []}, {}, "input.vector", AT_LEAST),
        ("recommend", {"vector": [1.0] * 4097}, {}, "input.vector", f"{AT_MOST} 4096"),
        ("recommend", {"vector": [float("inf")]}, {}, "input.vector.0", "finite number"),
        ("recommend", {"history": [{"id": "a"}] * 10_001}, {}, "input.history", f"{AT_MOST} 10000"),
        ("recommend", {"history": [{"id": ""}]}, {}, "input.history.0.id", AT_LEAST),
        ("recommend", {"history": [{"id": "x" * 201}]}, {}, "input.history.0.id", f"{AT_MOST} 200"),
        ("recommend", {"history": [{"id": "a", "weight": 0}]}, {}, "input.history.0.weight", "greater than 0"),
        (
            "recommend",
            {"history": [{"id": "a", "weight": 1e6 + 1}]},
            {},
            "input.history.0.weight",
            "equal to 1000000",
        ),
        ("recommend", None, {"top_k": 0}, "top_k", "equal to 1"),
        ("recommend", None, {"top_k": 1001}, "top_k", "equal to 1000"),
        ("recommend", None, {"top_k": "3"}, "top_k", "valid integer"),
        (
            "recommend",
            None,
            {"filter": {"where": [{"attribute": "a"}]}},
            "filter.where.0",
            "`one_of`, or",
        ),
        (
            "recommend",
            None,
            {"filter": {"where": [{"attribute": "a", "one_of": [1], "maximum": 2}]}},
            "filter.where.0",
            "`one_of`, or",
        ),
        (
            "recommend",
            None,
            {"filter": {"where": [{"attribute": "a", "one_of": [1]}] * 17}},
            "filter.where",
            f"{AT_MOST} 16",
        ),
        ("recommend", None, {"filter": {"exclude_ids": ["a"] * 10_001}}, "filter.exclude_ids", f"{AT_MOST} 10000"),
        ("transcribe", None, {"language": "EN"}, "language", "should match pattern"),
        ("transcribe", None, {"language": "e"}, "language", "should match pattern"),
        ("transcribe", {"file_id": "x" * 101}, {}, "input.file_id", f"{AT_MOST} 100"),
        (
            "call_tool",
            {"tool": "calculator", "refusal": "x" * 1001},
            {},
            "input.refusal",
            f"{AT_MOST} 1000",
        ),
    ],
)
def test_a_request_that_no_model_takes_is_refused_at_its_field(
    task: str, source: dict[str, Any] | None, more: dict[str, Any], place: str, said: str
) -> None:
    found = refused(task, source, **more)
    assert found[0][0] == place, found
    assert said in found[0][1], found


@pytest.mark.parametrize(
    ("task", "source", "more"),
    [
        ("classify", {"texts": ["a"] * 8191 + [["a", "b"]]}, {"top_k": 1}),
        ("token_classify", {"texts": ["a"] * 8192}, {"ignore_labels": ["a"] * 1000}),
        ("embed", {"texts": ["a"] * 2048}, {"dimensions": 65_536, "prompt_name": "x" * 200}),
        ("embed", {"token_ids": [[1] * 131_072]}, {"dimensions": 1}),
        ("rerank", {"query": "a", "documents": ["a"] * 1000}, {"top_n": 1}),
        ("score", {"text_1": ["a"] * 1000, "text_2": ["a"] * 1000}, {}),
        ("image_zero_shot", {"images": [IMAGE], "candidate_labels": [str(n) for n in range(256)]}, {}),
        ("predict", {"rows": [dict.fromkeys(map(str, range(1000)), None)] * 1000}, {}),
        ("recommend", {"vector": [1.0] * 4096}, {"top_k": 1000}),
        ("recommend", {"history": [{"id": "x" * 200, "weight": 1e6}] * 10_000}, {"top_k": 1}),
        ("recommend", None, {"filter": {"where": [{"attribute": "a", "minimum": 1}] * 16}}),
        ("transcribe", {"file_id": "x" * 100}, {"language": "haw"}),
        ("call_tool", {"tool": "calculator", "refusal": "x" * 1000}, {}),
    ],
)
def test_the_largest_request_is_accepted(task: str, source: dict[str, Any] | None, more: dict[str, Any]) -> None:
    assert read(task, source, **more).task == task


@pytest.mark.parametrize(
    ("payload", "task", "own"),
    [
        (EmbedPayload, "embed", {"dimensions": None, "truncate": False, "prompt_name": None}),
        (RerankPayload, "rerank", {"top_n": None, "truncate": None}),
        (ClassifyPayload, "classify", {"top_k": None, "truncate": False}),
        (
            TokenClassifyPayload,
            "token_classify",
            {"aggregation_strategy": "simple", "ignore_labels": ("O",), "truncate": False},
        ),
        (ScorePayload, "score", {"truncate": False}),
        (ImageClassifyPayload, "image_classify", {"top_k": None}),
        (ImageZeroShotPayload, "image_zero_shot", {"top_k": None}),
    ],
)
def test_a_payload_that_was_stored_before_a_field_has_its_default(
    payload: type[BaseModel], task: str, own: dict[str, Any]
) -> None:
    found = payload.model_validate({"input": SOURCES[task]})
    assert {name: getattr(found, name) for name in type(found).model_fields if name != "input"} == own
    with pytest.raises(ValidationError):
        payload.model_validate({"input": SOURCES[task], "of_nobody": 1})


def test_outputs_are_read_with_what_older_workers_left_out() -> None:
    assert ToolCallOutput(text="a", is_error=False).model_dump() == {
        "text": "a",
        "is_error": False,
        "status": None,
        "tries": 0,
    }
    entity = Entity(label="a", score=0.5, start=0, end=1, word="b")
    assert entity.index is None
    assert GeneratedText(text="a", finish_reason="stop").model_dump(exclude_none=True) == {
        "text": "a",
        "finish_reason": "stop",
    }
    for bad in ("done", "", None):
        with pytest.raises(ValidationError):
            GeneratedText.model_validate({"text": "a", "finish_reason": bad})
    assert (MAX_SAMPLES, MAX_CHOICES) == (16, 128)


@pytest.mark.parametrize("task", [1, None, "nobody"])
def test_a_task_that_is_none_is_answered_with_all(task: object) -> None:
    with pytest.raises(ValidationError) as error:
        REQUEST.validate_python({"task": task, "model": "m", "input": {"prompt": "a"}})
    (problem,) = error.value.errors()
    assert (problem["type"], problem["msg"]) == ("task_unknown", Naming(", ".join(TASKS)))
    assert REQUEST.validate_python({"model": "m", "input": {"prompt": "a"}}).task == "generate"


def test_answers_are_counted_over_all_prompts() -> None:
    assert read("generate", {"prompts": ["a"] * 8}, n=16).n == 16
    for source, n, place, said in (
        ({"prompts": ["a"] * 9}, 15, "n", "135 answers: at most 128"),
        (None, 17, "n", "equal to 16"),
        (None, 0, "n", "equal to 1"),
        (None, True, "n", "valid integer"),
    ):
        ((found, message),) = refused("generate", source, n=n)
        assert (found, said in message) == (place, True), message
    payload = GeneratePayload(input=GenerateInput(prompts=("a", "b", "c")), sampling=read("generate").sampling)
    assert (payload.num_choices, payload.model_copy(update={"n": 2}).num_choices) == (3, 6)
    assert refused("generate", truncation="oldest_turns") == [("", Naming("`oldest_turns` goes with `messages`"))]
    for source in (CHAT, {"template": {"id": "x"}}):
        assert read("generate", source, truncation="oldest_turns").truncation is Truncation.OLDEST_TURNS


def test_a_request_keeps_what_was_done_to_it() -> None:
    asked: GenerateRequest = read("generate", CHAT, sampling={"stop": ["end"], "bad_words": ["no"], "temperature": 1.0})
    use = PromptUse(id="pmpt_1", name="a", version=2, digest="d")
    place = TemplatePlace(head=1, tail=2)
    source = GenerateInput(prompt="b")
    assert (asked.prompt_use, asked.template_place, asked.truncated) == (None, None, None)
    filled = asked.filled_in(source, use, place)
    assert (filled.input, filled.prompt_use, filled.template_place) == (source, use, place)
    left_out = Truncated(strategy=Truncation.LEFT, tokens=5, turns=1)
    cut = asked.shortened(source, left_out).shortened(asked.input, left_out)
    assert (cut.input, cut.truncated) == (asked.input, Truncated(strategy=Truncation.LEFT, tokens=10, turns=2))
    assert asked.fixed_texts() == ("end", "no")
    assert asked.revealing_field() is None
    for number in (0, 1):
        assert read("generate", sampling={"logprobs": number}).revealing_field() == "sampling.logprobs"
    assert read("generate").digest_fields() == {}


def test_what_tasks_make_of_their_inputs() -> None:
    zero_shot = ImageZeroShotInput.model_validate({"images": [IMAGE], "candidate_labels": ["a mill", "{}"]})
    assert zero_shot.sentences == ("This is a photo of a mill.", "This is a photo of {}.")
    assert ScoreInput(text_1=("a",), text_2=("b", "c")).pairs == (("a", "b"), ("a", "c"))
    assert ScoreInput(text_1=("a", "d"), text_2=("b", "c")).pairs == (("a", "b"), ("d", "c"))
    url = "https://example.com/a.png"
    for task in ("image_classify", "image_zero_shot"):
        places = read(task, {**SOURCES[task], "images": [IMAGE, url]}).called_urls()
        assert [address for _, address in places] == [url]
    assert [address for _, address in read("embed", {"images": [url]}).called_urls()] == [url]
    assert read("embed").called_urls() == ()


def test_a_call_of_a_tool_is_counted_by_its_arguments() -> None:
    given = ToolCallInput(tool="calculator", arguments={"expression": "1"})
    assert given.arguments_text == '{"expression": "1"}'
    assert ToolCallInput(tool="calculator", arguments='{"a":1}').arguments_text == '{"a":1}'
    count = CALL_TOOL.declared.count_tokens
    assert [count(ToolCallInput(tool="calculator", arguments=text)) for text in ("", "abc", "abcd", "x" * 9)] == [
        1,
        1,
        2,
        3,
    ]
    declared = CALL_TOOL.declared
    assert (declared.most_tokens, declared.is_call, declared.output_texts) == (16_384, True, ("text",))
    assert error_text("it is away") == "Error: it is away"


def test_the_form_of_a_turn_follows_from_the_first_one() -> None:
    given = GenerateInput.model_validate({**CHAT, "tools": [TOOL, NAMED], "parallel_tool_calls": False})
    prepared = GeneratePayload(input=given, sampling=read("generate").sampling, answer_shape=AnswerShape.CALLS)
    form = form_of(given, prepared, has_grammar=True, left=3)
    assert form.model_dump() == {
        "functions": ("f", "g"),
        "first_shape": "calls",
        "shape": "answer_or_calls",
        "most": 1,
        "left": 3,
    }
    assert form.after(1).model_dump() == form.model_dump() | {"first_shape": "answer_or_calls", "left": 2}
    assert form.after(4).left == 0
    free = form_of(given.model_copy(update={"parallel_tool_calls": None}), prepared, has_grammar=False, left=1)
    assert (free.most, free.shape) == (None, None)
