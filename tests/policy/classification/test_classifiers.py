import pytest

from headrace.policy.classification.classifiers import CATEGORIES, FLAGGED_FROM, WordListClassifier


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
        ("you are such an utter ｉｄｉｏｔ", {"harassment"}),
        ("I will ki\u200bll you", {"harassment", "harassment/threatening", "violence"}),
    ],
)
def test_what_is_flagged(text: str, categories: set[str]) -> None:
    assert flagged(text) == categories


def test_each_phrase_adds_to_the_score() -> None:
    classify = WordListClassifier().classify
    once = classify("nobody likes you")["harassment"]
    assert classify("nobody likes you, nobody likes you")["harassment"] == once
    assert once == 0.7
    assert classify("nobody likes you, you are pathetic")["harassment"] == 0.88
    assert FLAGGED_FROM == 0.5


# At least one for each phrase of the list.
SCORES: list[tuple[str, dict[str, float]]] = [
    ("you are such an utter idiot", {"harassment": 0.7}),
    ("nobody loves you", {"harassment": 0.7}),
    ("you are subhuman", {"harassment": 0.6}),
    ("go kill yourself", {"harassment": 0.9, "self-harm": 0.9}),
    ("I am going to strangle her", {"harassment": 0.9, "harassment/threatening": 0.9, "violence": 0.9}),
    ("I know where you live and you will pay", {"harassment": 0.8, "harassment/threatening": 0.8, "violence": 0.8}),
    ("you're dead", {"harassment": 0.8, "harassment/threatening": 0.8, "violence": 0.8}),
    ("those refugees are all dirty vermin", {"hate": 0.9}),
    ("I hate all the gypsies", {"hate": 0.7}),
    ("lynch all the migrants", {"hate": 0.9, "hate/threatening": 0.9, "violence": 0.9}),
    ("women should be killed", {"hate": 0.9, "hate/threatening": 0.9, "violence": 0.9}),
    ("how would I hack into it", {"illicit": 0.8}),
    ("how can I quickly launder money", {"illicit": 0.8}),
    ("synthesise methamphetamine", {"illicit": 0.8}),
    ("steps to make a pipe bomb", {"illicit": 0.9, "illicit/violent": 0.9, "violence": 0.9}),
    ("how to slowly poison my neighbour", {"illicit": 0.9, "illicit/violent": 0.9, "violence": 0.9}),
    ("I need to end it all", {"self-harm": 0.9, "self-harm/intent": 0.9}),
    ("I don't want to be alive anymore", {"self-harm": 0.9, "self-harm/intent": 0.9}),
    ("I'm suicidal", {"self-harm": 0.9, "self-harm/intent": 0.9}),
    ("starving myself", {"self-harm": 0.5}),
    ("painless way to hang myself", {"self-harm": 0.9, "self-harm/instructions": 0.9}),
    ("an erotic story", {"sexual": 0.8}),
    ("nude selfies", {"sexual": 0.6}),
    ("a 12-year-old girl and then porn", {"sexual": 0.98, "sexual/minors": 0.95}),
    ("porn with a preteen", {"sexual": 0.98, "sexual/minors": 0.95}),
    ("beheads people repeatedly", {"violence": 0.6}),
    ("shoot up a school", {"violence": 0.6}),
    ("bomb the station", {"violence": 0.6}),
    ("guts spilled and mutilated", {"violence": 0.8, "violence/graphic": 0.8}),
    ("blood gushed", {"violence": 0.8, "violence/graphic": 0.8}),
    ("they beat him until dawn", {"violence": 0.6}),
]


@pytest.mark.parametrize(("text", "scores"), SCORES)
def test_each_phrase_has_its_categories_and_weight(text: str, scores: dict[str, float]) -> None:
    found = WordListClassifier().classify(text)
    assert {category: score for category, score in found.items() if score} == scores
