"""The text and the bytes of the tokens in logprobs. The worker and the API use the same function."""

from collections.abc import Iterable

from prompts.tokenizer import Tokenizer
from store.payloads.logprobs import LogprobRow
from store.tasks.generate import TokenLogprob, TopLogprob


def spell(tokenizer: Tokenizer, logprobs: Iterable[LogprobRow]) -> tuple[TokenLogprob, ...]:
    """Return one entry for each token that is part of the text: end-of-sequence and other special tokens are not.

    Joined, the entries' bytes are the text's, but for what a stop string cut off its last token and the space before
    its first that SentencePiece drops.
    """
    return tuple(
        TokenLogprob(
            **_spelled(tokenizer, one.token_id, one.logprob),
            top_logprobs=tuple(TopLogprob(**_spelled(tokenizer, *top)) for top in one.top),
        )
        for one in logprobs
        if not tokenizer.is_silent(one.token_id)
    )


def _spelled(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, object]:
    own = tokenizer.spelling(token_id)
    return {"token": own.decode(errors="replace"), "logprob": logprob, "bytes": tuple(own)}
