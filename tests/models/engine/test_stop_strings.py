"""Stop strings against a reference that reads letter by letter, however the text is cut into tokens."""

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.models.engine.stop_strings import OutputText, StopFilter
from tests.models.engine.rig import Bytes, Late, cut_at_stop

LETTERS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@st.composite
def pieces(draw: st.DrawFn) -> list[str]:
    text = draw(LETTERS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(pieces: list[str], stops: list[str]) -> tuple[StopFilter, list[str]]:
    """Feed all pieces; return the text shown after each, the flush last."""
    stop_filter = StopFilter(stops)
    return stop_filter, [*(stop_filter.feed(piece) for piece in pieces), stop_filter.flush()]


@given(pieces(), STOPS)
@example(["aba"], ["aba", "b"])
@example(["abab"], ["b", "ab"])
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    stop_filter, shown = run(pieces, stops)
    cut = cut_at_stop("".join(pieces), stops)
    assert stop_filter.stopped == (cut is not None)
    assert "".join(shown) == ("".join(pieces) if cut is None else cut)
    assert cut is None or "".join(pieces).startswith(f"{cut}{stop_filter.found}")
    assert cut is None or stop_filter.found in stops


@given(pieces(), st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_splits_the_text(pieces: list[str], stop: str) -> None:
    _, shown = run(pieces, [stop])
    assert "".join(shown) == "".join(pieces).split(stop)[0]


@given(pieces(), STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    seen = shown = ""
    for piece in pieces:
        seen += piece
        shown += stop_filter.feed(piece)
        if stop_filter.stopped:
            return
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        longer = (seen[index:] for index in range(len(shown)))
        assert not any(stop.startswith(end) for end in longer for stop in stops)


def test_what_follows_a_stop_string_is_never_shown() -> None:
    stop_filter = StopFilter(["END"])
    assert [stop_filter.feed(text) for text in ("one E", "ND two", "three")] == ["one ", "", ""]
    assert stop_filter.flush() == ""


def test_a_stop_string_that_is_no_ascii_is_found_across_its_bytes() -> None:
    output = OutputText(Bytes(), ["Ende→"])
    shown = [output.add(byte) for byte in "à bientôt Ende→ more".encode()]
    assert "".join(shown) == "à bientôt "
    assert output.stopped


def test_a_stop_string_in_the_flushed_text_counts() -> None:
    output = OutputText(Late(), ["bc"])
    assert [output.add(ord(letter)) for letter in "abcd"] == [""] * 4
    assert output.flush() == "a"
    assert output.stopped


def test_half_a_stop_string_is_shown_at_the_end() -> None:
    output = OutputText(Bytes(), ["wheel"])
    assert "".join(output.add(byte) for byte in b"the whee") == "the "
    assert output.flush() == "whee"
    assert not output.stopped
