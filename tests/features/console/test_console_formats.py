"""The functions of the console that write figures, times, programs and the variables of a prompt."""

from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_api import snippet, use_utc

pytestmark = pytest.mark.timeout(240)

FORMATS = """import('/console/format.js').then((m) => [
  [null, 0, 9999.4, 10000, 1234567, -20000].map(m.count),
  [null, 0, 0.00001, 0.005, 0.05, 0.2, 1.5, 9.94, 12, 89.6, 90, 5399, 5400, 129599, 129600, 864000].map(m.duration),
  [null, 5, 1500].map(m.milliseconds), [null, 0, 0.126, 1].map(m.percent),
  [m.clock(null), m.clock(3725.25), m.clock(3725.25, true), m.moment(86400), m.moment(null)],
  ["job_0197f0c2a3b47d518e9a2b6c7d8e9f01", "job_12345678901", "job_123456789012", "job_1234567890123", "x"]
    .map(m.shortId),
  ["celery@mill:7:boot", "mill:7:boot", "a:b", "x"].map(m.workerName),
  m.readable({a: "data:image/png;base64,QUJDRA==", b: Array(17).fill(1), c: Array(16).fill(0).length, d: "data:text"}),
  m.readable("data:image/png;base64," + "A".repeat(4000)),
])"""
SNIPPETS = """import('/console/snippets.js').then((m) => {
  const body = {model: "m", input: {messages: [{role: "user", content: "it's \\\\n"}]}, stream: false, n: null,
    long: ["x".repeat(40), "y".repeat(45)]};
  return [m.curl(body), m.python(body), m.node(body)].map((one) => one.replaceAll(location.origin, "ORIGIN"));
})"""
VARIABLES = """import('/console/prompt_form.js').then((m) => [
  m.variablesOf({}), m.variablesOf({variables: ["a"]}),
  m.variablesOf({variables: {properties: {a: {type: "string"},
    b: {type: "integer", default: 0, description: "how many"}}}}),
])"""

FORMATTED = [
    ["–", "0", "9,999", "10K", "1.2M", "-20K"],
    [
        "–",
        "0 ms",
        "0 ms",
        "5.0 ms",
        "50 ms",
        "0.20 s",
        "1.5 s",
        "9.9 s",
        "12 s",
        "90 s",
        "1 min 30 s",
        "89 min 59 s",
        "1 h 30 min",
        "35 h 59 min",
        "2 d",
        "10 d",
    ],
    ["–", "5.0 ms", "1.5 s"],
    ["–", "0 %", "13 %", "100 %"],
    ["–", "01:02:05", "01:02:05.250", "1970-01-02 00:00:00", "–"],
    ["job_…7d8e9f01", "job_12345678901", "job_123456789012", "job_…67890123", "x"],
    ["mill · 7", "mill · 7", "a:b", "x"],
    '{\n  "a": "image/png, 4 bytes",\n  "b": "17 numbers: 1, 1, 1, 1, …",\n  "c": 16,\n  "d": "data:text"\n}',
    '"image/png, 3 kB"',
]
DECLARED_VARIABLES = [
    [],
    [{"name": "a", "isText": True, "standard": None, "about": ""}],
    [
        {"name": "a", "isText": True, "standard": None, "about": ""},
        {"name": "b", "isText": False, "standard": "0", "about": "how many"},
    ],
]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (FORMATS, FORMATTED),
        (SNIPPETS, [snippet("curl"), snippet("python"), snippet("node")]),
        (VARIABLES, DECLARED_VARIABLES),
    ],
    ids=["formats", "snippets", "variables"],
)
def test_the_functions_of_a_module(tab: Tab, script: str, expected: list[Any]) -> None:
    use_utc(tab)
    assert tab.run(script) == expected
