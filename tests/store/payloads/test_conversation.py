"""The messages of a conversation, with calls and images. No I/O."""

from typing import Any

import pytest
from pydantic import BaseModel

from headrace.store.payloads.conversation import (
    ChatMessage,
    Image,
    check_messages,
    check_tool_results,
    images_of,
    urls_of,
)
from tests.store.payloads.making import call


class TestMessages:
    def test_an_answer_may_be_empty_and_a_call_has_no_text(self) -> None:
        assert ChatMessage.model_validate({"role": "assistant"}).content == ""
        called = {"role": "assistant", "tool_calls": [call("1")]}
        assert [ChatMessage.model_validate(called | {"content": text}).content for text in (None, "", "a")] == [
            None,
            None,
            "a",
        ]

    def test_images_stand_in_the_text_in_their_order(self) -> None:
        images = [{"url": "https://example.com/b", "at": 9}, {"url": "https://example.com/a", "at": 1}]
        message = ChatMessage.model_validate({"role": "user", "content": "abc", "images": images})
        later, sooner = message.images or ()
        assert list(message.parts) == ["a", sooner, "bc", later]
        moved = message.after("xy")
        assert [part if isinstance(part, str) else part.url for part in moved.parts] == [
            "xya",
            "https://example.com/a",
            "bc",
            "https://example.com/b",
        ]
        plain = ChatMessage.model_validate({"role": "user", "content": "c"}).after("b")
        assert (plain.content, plain.images) == ("bc", None)

    @pytest.mark.parametrize(
        ("roles", "why"),
        [
            ("u1", None),
            ("a12 t2 t1 u", None),
            ("a1 t1 a1 t1", None),
            ("a1 t1 t1", "message 2 answers"),
            ("u t1", "message 1 answers"),
            ("a21 u", "message 1 .*results of 1, 2"),
            ("a12 t1 u", "message 2 .*results of 2"),
            ("a11", "message 0 .*one id"),
            ("u a21", "results of 1, 2 "),
        ],
    )
    def test_the_results_of_all_calls_follow_them(self, roles: str, why: str | None) -> None:
        made: dict[str, Any] = {
            "u": lambda _ids: {"role": "user", "content": "a"},
            "a": lambda ids: {"role": "assistant", "tool_calls": [call(one) for one in ids]},
            "t": lambda ids: {"role": "tool", "content": "a", "tool_call_id": ids},
        }
        messages = [ChatMessage.model_validate(made[word[0]](word[1:])) for word in roles.split()]
        if why is None:
            check_tool_results(messages)
            return
        with pytest.raises(ValueError, match=why):
            check_messages(messages)

    def test_all_messages_together_have_a_bound_of_images(self) -> None:
        def shown(count: int) -> ChatMessage:
            images = [{"url": "https://example.com/a"}] * count
            return ChatMessage.model_validate({"role": "user", "content": "a", "images": images})

        check_messages([shown(40), shown(24)])
        with pytest.raises(ValueError, match=r"65 images.* 64 "):
            check_messages([shown(40), shown(25)])


def test_images_are_found_with_the_place_of_their_urls() -> None:
    data, server, file = Image(url="DATA:image/png,x"), Image.model_validate("https://a"), Image(file_id="file-1")
    assert (data.data_url, data.server_url) == ("DATA:image/png,x", None)
    assert (server.data_url, server.server_url) == (None, "https://a")
    assert (file.data_url, file.server_url) == (None, None)
    assert urls_of((data, server, file, server), "images") == (("images[1]", "https://a"), ("images[3]", "https://a"))
    assert urls_of((server,)) == (("input.images[0]", "https://a"),)
    assert urls_of(None) == ()

    class Source(BaseModel):
        images: tuple[Image, ...]
        messages: tuple[ChatMessage, ...]

    message = ChatMessage.model_validate({"role": "user", "content": "", "images": [{"file_id": "file-2"}]})
    found = images_of(Source(images=(data, file), messages=(message,)))
    assert [one.url or one.file_id for one in found] == ["DATA:image/png,x", "file-1", "file-2"]
    assert images_of("a text") == ()
