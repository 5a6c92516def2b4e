"""The drawing of a pipeline: layers, the answer, and names that are no markup."""

from xml.etree import ElementTree

from headrace.features.flows.commands.pipeline_drawing import answer_of, layers, svg, text_lines

STEPS = [
    {"name": "both", "model": "m<1>", "needs": ["left", "right"]},
    {"name": "left", "model": "tiny"},
    {"name": "right", "task": "embed", "model": "tiny"},
    {"name": "note", "model": "tiny", "needs": ["right"]},
]
MARKED = [{**step, "stream": step["name"] == "both"} for step in STEPS]
SPACE = "{http://www.w3.org/2000/svg}"


def test_a_step_is_one_layer_behind_what_it_needs() -> None:
    assert [[step["name"] for step in layer] for layer in layers(STEPS)] == [["left", "right"], ["both", "note"]]
    assert (answer_of(MARKED), answer_of(STEPS[:3])) == ("both", "both")
    assert text_lines(MARKED) == [
        "      input ─▶ left   generate, tiny",
        "      input ─▶ right  embed, tiny",
        "left, right ─▶ both   generate, m<1>  the answer",
        "      right ─▶ note   generate, tiny",
    ]


def test_the_picture_has_a_box_for_each_step_and_an_arrow_for_each_need() -> None:
    drawn = ElementTree.fromstring(svg("digest@2", MARKED))
    assert [text.text for text in drawn.iter(f"{SPACE}text")][:3] == ["digest@2", "both", "generate, m<1>"]
    boxes = [box for box in drawn.iter(f"{SPACE}rect") if box.get("rx")]
    assert len(boxes) == len(STEPS)
    assert len({(box.get("x"), box.get("y")) for box in boxes}) == len(STEPS)
    assert len([path for path in drawn.iter(f"{SPACE}path") if path.get("stroke")]) == 3


def test_the_picture_is_as_high_as_its_fullest_layer() -> None:
    steps = [{"name": "a", "model": "m"}, *({"name": name, "model": "m", "needs": ["a"]} for name in "bcd")]
    drawn = ElementTree.fromstring(svg("t", steps))
    assert drawn.get("viewBox") == "0 0 460 276"
    assert max(int(str(box.get("y"))) for box in drawn.iter(f"{SPACE}rect") if box.get("rx")) == 200


def test_the_picture_is_as_large_as_its_layers_and_names_have_an_end() -> None:
    long = "n" * 24
    steps = [
        {"name": "a", "model": "m"},
        {"name": f"{long}n", "model": "m"},
        {"name": long, "needs": ["a", f"{long}n"], "model": "m"},
    ]
    drawn = ElementTree.fromstring(svg("t", steps))
    assert drawn.get("viewBox") == "0 0 460 196"
    boxes = [(box.get("x"), box.get("y")) for box in drawn.iter(f"{SPACE}rect") if box.get("rx")]
    assert boxes == [("20", "40"), ("20", "120"), ("260", "40")]
    assert [box.get("fill") for box in drawn.iter(f"{SPACE}rect") if box.get("rx")][2] == "#e3f1e6", "the answer"
    arrows = [path.get("d") for path in drawn.iter(f"{SPACE}path") if path.get("stroke")]
    assert arrows == ["M200 68C230 68 230 68 260 68", "M200 148C230 148 230 68 260 68"]
    texts = [text.text for text in drawn.iter(f"{SPACE}text")]
    assert texts[1::2] == ["a", f"{long[:23]}…", long]
