"""From a request's input to the ids that enter the model, and whether they fit its context window."""

from prompts.tokenizer import Tokenizer
from store.errors import InvalidRequest
from store.payloads import GenerateInput

DEFAULT_MAX_TOKENS = 1024
"""What a request without ``max_tokens`` may produce, if the context window leaves as much."""


def build_prompt(tokenizer: Tokenizer, source: GenerateInput) -> list[int]:
    """Return the prompt's token ids: the conversation through the chat template, or the raw prompt.

    Raises InvalidRequest if the template refuses the conversation or nothing is left to continue.
    """
    if source.messages is not None:
        param = "input.messages"
        # A template writes the special tokens itself.
        ids = tokenizer.encode(tokenizer.render(source.messages), add_special=False)
    else:
        param = "input.prompt"
        ids = tokenizer.encode(source.prompt or "", add_special=True)
    if not ids:
        raise InvalidRequest("the prompt has no tokens: there is nothing to continue", param=param)
    return ids


def fit(context_window: int, prompt_len: int, max_tokens: int | None) -> int:
    """Return how many tokens may be produced after a prompt of ``prompt_len`` tokens.

    Raises InvalidRequest with code ``context_length_exceeded`` if the prompt alone fills the window, or the prompt and
    ``max_tokens`` together do not fit.
    """
    room = context_window - prompt_len
    # The first words are OpenAI's own: by them LiteLLM and others know that a shorter prompt, not another try, helps.
    if room < 1:
        raise InvalidRequest(
            f"this model's maximum context length is {context_window} tokens, the prompt has {prompt_len}: "
            "shorten the prompt",
            code="context_length_exceeded",
            param="input",
        )
    if max_tokens is None:
        return min(room, DEFAULT_MAX_TOKENS)
    if max_tokens > room:
        raise InvalidRequest(
            f"this model's maximum context length is {context_window} tokens, the prompt has {prompt_len} and "
            f"`max_tokens` is {max_tokens}: at most {room} tokens can be produced",
            code="context_length_exceeded",
            param="sampling.max_tokens",
        )
    return max_tokens
