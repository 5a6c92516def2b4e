"""Images in the messages of a conversation: the models that take them, their tokens, and requests to chat servers."""

from typing import Any

import pytest

from headrace.prompts.chat_server import ChatServer, chat_fields
from headrace.prompts.vision.chat_images import check_message_images, image_tokens
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.generate import GenerateInput
from tests.png import png, url_of
from tests.refusals import Naming

GOOD, BAD = url_of(png(2)), "data:image/png;base64,AAAA"


def asked(*images: dict[str, Any], **more: Any) -> GenerateInput:
    message = {"role": "user", "content": "ab", **({"images": images} if images else {})}
    return GenerateInput.model_validate({"messages": [{"role": "system", "content": "s"}, message], **more})


def test_an_image_counts_by_its_detail() -> None:
    details: list[dict[str, Any]] = [{}, {"detail": "auto"}, {"detail": "high"}, {"detail": "low"}]
    assert [image_tokens(asked({"url": GOOD, **one})) for one in details] == [576, 576, 576, 85]
    assert image_tokens(asked({"url": GOOD, "detail": "low"}, {"file_id": "f"})) == 661
    assert image_tokens(asked()) == 0


@pytest.mark.parametrize("settings", [None, ChatServer(takes_images=False)])
def test_a_model_without_images_refuses_them_alone(settings: ChatServer | None) -> None:
    check_message_images(asked(), settings)
    with pytest.raises(InvalidRequest) as refused:
        check_message_images(asked({"file_id": "f"}), settings)
    assert (refused.value.message, refused.value.code, refused.value.param) == (
        Naming("no images"),
        "unsupported_parameter",
        "input.messages",
    )


def test_the_images_that_a_request_brings_are_looked_at() -> None:
    taking = ChatServer(takes_images=True)
    check_message_images(asked({"url": GOOD}, {"file_id": "f"}, {"url": "https://a.example/x.png"}), taking)
    with pytest.raises(InvalidRequest) as refused:
        check_message_images(asked({"file_id": "f"}, {"url": BAD}), taking)
    assert (refused.value.code, refused.value.param) == ("invalid_image", "input.messages.images[1]")


def test_a_chat_server_is_sent_texts_and_images_in_their_order() -> None:
    source = asked(
        {"file_id": "f", "at": 2, "detail": "low"},
        {"url": GOOD, "at": 1},
        reasoning={"effort": "low", "optional": True},
    )
    assert chat_fields(source, ["data:1", "data:2"]) == {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "data:2"}},
                    {"type": "text", "text": "b"},
                    {"type": "image_url", "image_url": {"url": "data:1", "detail": "low"}},
                ],
            },
        ],
        "reasoning_effort": "low",
    }
    assert chat_fields(asked(reasoning={"optional": True}))["messages"][1] == {"role": "user", "content": "ab"}
    assert "reasoning_effort" not in chat_fields(asked(reasoning={"optional": True}))
