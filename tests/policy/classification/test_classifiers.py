import pytest

from policy.classification.classifiers import CATEGORIES, FLAGGED_FROM, WordListClassifier


def flagged(text: str) -> set[str]:
    scores = WordListClassifier().classify(text)
    assert tuple(scores) == CATEGORIES
    assert all(0 <= score <= 1 for score in scores.values())
    return {category for category, score in scores.items() if score >= FLAGGED_FROM}


@pytest.mark.parametrize(
    ("text", "categories"),
    [
        ("Good morning, how are you?", set()),
        ("How do I kill a process on Linux, and how to make a bomb cake?", {"illicit", "illicit/violent", "violence"}),
        ("I WILL KILL YOU", {"harassment", "harassment/threatening", "violence"}),
        ("i want to kill myself", {"self-harm", "self-harm/intent"}),
        ("All immigrants are vermin", {"hate"}),
        ("She is a nurse and draws blood; the battle killed many.", set()),
        ("You are a worthless moron", {"harassment"}),
        ("you are such an utter idiot", {"harassment"}),
    ],
)
def test_what_is_flagged(text: str, categories: set[str]) -> None:
    assert flagged(text) == categories


def test_each_phrase_adds_to_the_score() -> None:
    classify = WordListClassifier().classify
    once = classify("nobody likes you")["harassment"]
    assert classify("nobody likes you, nobody likes you")["harassment"] == once
    assert once < classify("nobody likes you, you are pathetic")["harassment"] < 1
