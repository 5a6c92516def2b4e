"""The verbs of the API, each with the answers of the API, the requests, and the printed text."""

from typing import Any

from headrace.store.schema.event_types import REGISTRY_EVENTS
from tests.cli.client.api_objects import (
    APPROVAL,
    BOUND,
    CHECK,
    DELIVERY,
    LETTER,
    PIPELINE,
    PROMPT,
    ROLLOUT,
    TOOL,
    TWO_DAYS,
    VERSION,
)
from tests.cli.client.played import Request

Case = tuple[str, dict[str, Any], list[Request], list[str]]
CASES: list[Case] = [
    (
        "approvals",
        {"GET /v1/approvals": []},
        [("GET", "/v1/approvals?status=pending&limit=20", None)],
        ["no calls wait for an approval"],
    ),
    (
        "approvals list --job job_1 --status all --limit 3",
        {"GET /v1/approvals": [APPROVAL, {**APPROVAL, "status": "refused", "arguments": None}]},
        [("GET", "/v1/approvals?job_id=job_1&limit=3", None)],
        [
            "approval  tool  arguments  status  time left  job",
            "apr_1  weather  {}  pending  0 ms  job_1",
            "apr_1  weather  refused  job_1",
        ],
    ),
    (
        "approvals approve apr_1 --reason fine",
        {
            "GET /v1/approvals": [{**APPROVAL, "id": "apr_0"}, APPROVAL],
            "POST /v1/jobs/job_1/approvals/apr_1": {**APPROVAL, "status": "approved"},
        },
        [
            ("GET", "/v1/approvals?limit=100", None),
            ("POST", "/v1/jobs/job_1/approvals/apr_1", {"approve": True, "reason": "fine"}),
        ],
        ["weather of job_1 is approved"],
    ),
    (
        "approvals refuse apr_1 --reason dear",
        {"GET /v1/approvals": [APPROVAL], "POST /v1/jobs/job_1/approvals/apr_1": {**APPROVAL, "status": "refused"}},
        [
            ("GET", "/v1/approvals?limit=100", None),
            ("POST", "/v1/jobs/job_1/approvals/apr_1", {"approve": False, "reason": "dear"}),
        ],
        ["weather of job_1 is refused"],
    ),
    (
        "dead-letters --queue q@1 --code poison --limit 5",
        {"GET /v1/dead_letters": [LETTER]},
        [("GET", "/v1/dead_letters?queue=q@1&code=poison&limit=5", None)],
        ["job  queue  code  crashes  given up  replayed as", "job_1  q@1  poison  3  2 d ago"],
    ),
    ("dead-letters", {"GET /v1/dead_letters": []}, [("GET", "/v1/dead_letters?limit=20", None)], ["no dead letters"]),
    (
        "dead-letters replay --queue q@1 --limit 7",
        {"POST /v1/dead_letters/replay": [{"id": "job_1", "job_id": "job_2"}]},
        [("POST", "/v1/dead_letters/replay", {"queue": "q@1", "limit": 7})],
        ["dead letter  new job", "job_1  job_2"],
    ),
    (
        "dead-letters replay job_3 job_1",
        {
            "POST /v1/dead_letters/job_1/replay": {"id": "job_1", "job_id": "job_2", "replayed": False},
            "POST /v1/dead_letters/job_3/replay": {"id": "job_3", "job_id": "job_4", "replayed": True},
        },
        [("POST", "/v1/dead_letters/job_3/replay", None), ("POST", "/v1/dead_letters/job_1/replay", None)],
        ["dead letter  new job", "job_3  job_4", "job_1  job_2"],
    ),
    (
        "queues pause a/b@1",
        {"POST /v1/queues/a/b@1/pause": {}},
        [("POST", "/v1/queues/a/b@1/pause", None)],
        ["a/b@1 is paused"],
    ),
    (
        "queues resume q@1",
        {"POST /v1/queues/q@1/resume": {}},
        [("POST", "/v1/queues/q@1/resume", None)],
        ["q@1 goes on"],
    ),
    ("queues", {"GET /v1/queues": []}, [("GET", "/v1/queues", None)], ["no queues: no model is registered"]),
    (
        "jobs list --status failed --model tiny --limit 3",
        {
            "GET /v1/jobs?status=failed&model=tiny&limit=3": {"data": [], "has_more": True, "last_id": "job_7"},
            "GET /v1/jobs": {"data": [], "has_more": False, "last_id": None},
        },
        [
            ("GET", "/v1/jobs?status=failed&model=tiny&limit=3", None),
            ("GET", "/v1/jobs?status=failed&model=tiny&limit=3&after=job_7", None),
        ],
        ["no jobs"],
    ),
    (
        "cancel job_1",
        {"POST /v1/jobs/job_1/cancel": {"id": "job_1", "status": "running"}},
        [("POST", "/v1/jobs/job_1/cancel", None)],
        ["job_1 cancellation requested"],
    ),
    (
        "cancel job_1",
        {"POST /v1/jobs/job_1/cancel": {"id": "job_1", "status": "cancelled"}},
        [("POST", "/v1/jobs/job_1/cancel", None)],
        ["job_1 cancelled"],
    ),
    (
        "models",
        {"GET /v1/models": [{"id": "tiny", "versions": [2], "engine": "native"}, {"id": "tiny@2"}]},
        [("GET", "/v1/models", None)],
        ["model  versions  aliases  engine", "tiny  2  native"],
    ),
    (
        "models",
        {"GET /v1/models": [{"id": "tiny@2"}]},
        [("GET", "/v1/models", None)],
        ["no models: `headrace register NAME FOLDER`"],
    ),
    (
        "models show tiny",
        {"GET /v1/model_versions": [VERSION]},
        [("GET", "/v1/model_versions?model=tiny", None)],
        [
            "version  state  aliases  engine  dtype  window  digest  workers  waiting  verification  template",
            "tiny@2  ready  default  native  auto  8,192  0123456789ab  1  3  float32  guide@3",
        ],
    ),
    (
        "models alias tiny default 2",
        {"PUT /v1/models/tiny/aliases/default": {}},
        [("PUT", "/v1/models/tiny/aliases/default", {"version": 2, "force": False})],
        ["tiny@default means tiny@2"],
    ),
    (
        "models alias tiny new 2 --force",
        {"PUT /v1/models/tiny/aliases/new": {}},
        [("PUT", "/v1/models/tiny/aliases/new", {"version": 2, "force": True})],
        ["tiny@new means tiny@2"],
    ),
    (
        "models unalias tiny new",
        {"DELETE /v1/models/tiny/aliases/new": (204, {})},
        [("DELETE", "/v1/models/tiny/aliases/new", None)],
        ["tiny@new is removed"],
    ),
    (
        "models retire tiny@1",
        {"POST /v1/model_versions/tiny@1/retire": {"queued": 2}},
        [("POST", "/v1/model_versions/tiny@1/retire", None)],
        ["tiny@1 is retired; 2 of its jobs wait"],
    ),
    (
        "models retire tiny@1",
        {"POST /v1/model_versions/tiny@1/retire": {"queued": 0}},
        [("POST", "/v1/model_versions/tiny@1/retire", None)],
        ["tiny@1 is retired"],
    ),
    (
        "models revive tiny@1",
        {"POST /v1/model_versions/tiny@1/revive": {}},
        [("POST", "/v1/model_versions/tiny@1/revive", None)],
        ["tiny@1 takes jobs again"],
    ),
    (
        "models prompt tiny@1 guide@2",
        {"POST /v1/models/tiny/versions": {**VERSION, "shares_weights": True, "base": "tiny@1"}},
        [("POST", "/v1/models/tiny/versions", {"files_of": "tiny@1", "prompt": {"id": "guide@2"}})],
        ["tiny@2 has guide@3, run by the workers of tiny@1"],
    ),
    (
        "models prompt tiny@2 --none",
        {"POST /v1/models/tiny/versions": {**VERSION, "template": None}},
        [("POST", "/v1/models/tiny/versions", {"files_of": "tiny@2", "prompt": None})],
        ["tiny@2 has no template"],
    ),
    (
        "models bound tiny --min-agreement 0.9 --max-perplexity-ratio 1.05",
        {"PUT /v1/models/tiny/quality_bound": {}, "GET /v1/models/tiny/quality_bound": BOUND},
        [
            ("PUT", "/v1/models/tiny/quality_bound", {"min_agreement": 0.9, "max_perplexity_ratio": 1.05}),
            ("GET", "/v1/models/tiny/quality_bound", None),
        ],
        ["bound of tiny: top-1 agreement at least 0.9, perplexity ratio at most 1.05"],
    ),
    (
        "models bound tiny",
        {
            "GET /v1/models/tiny/quality_bound": {
                **BOUND,
                "min_agreement": None,
                "max_perplexity_ratio": None,
                "max_kl": 0,
            }
        },
        [("GET", "/v1/models/tiny/quality_bound", None)],
        ["bound of tiny: KL at most 0"],
    ),
    (
        "models bound tiny --none",
        {
            "DELETE /v1/models/tiny/quality_bound": (204, {}),
            "GET /v1/models/tiny/quality_bound": {**BOUND, "min_agreement": None, "max_perplexity_ratio": None},
        },
        [("DELETE", "/v1/models/tiny/quality_bound", None), ("GET", "/v1/models/tiny/quality_bound", None)],
        ["bound of tiny: none, no version is refused for its quality"],
    ),
    (
        "models quality tiny@default",
        {
            "GET /v1/model_versions": [VERSION, {**VERSION, "id": "tiny@1", "version": 1, "aliases": []}],
            "GET /v1/models/tiny/quality_bound": BOUND,
        },
        [("GET", "/v1/model_versions?model=tiny", None), ("GET", "/v1/models/tiny/quality_bound", None)],
        [
            "tiny@2, ready",
            "not measured: too large",
            "bound of tiny: top-1 agreement at least 0.9, perplexity ratio at most 1.05",
        ],
    ),
    (
        "models quantize tiny --scheme int8",
        {"GET /v1/model_versions": [VERSION], "POST /v1/models/tiny/versions": {**VERSION, "id": "tiny@3"}},
        [
            ("GET", "/v1/model_versions?model=tiny", None),
            ("POST", "/v1/models/tiny/versions", {"files_of": "tiny@2", "dtype": "int8"}),
        ],
        ["tiny@3 is tiny@2 in int8; `headrace worker --model tiny@3` verifies and measures it"],
    ),
    (
        "prompts",
        {"GET /v1/prompts": [PROMPT, {**PROMPT, "name": None, "variables": {"properties": {"x": {}}}}]},
        [("GET", "/v1/prompts?limit=100", None)],
        ["prompt  version  variables  made", "guide  3  city, days  2 d ago", "pt_1  3  x  2 d ago"],
    ),
    (
        "prompts show guide@new",
        {"GET /v1/prompts/guide@new": PROMPT},
        [("GET", "/v1/prompts/guide@new", None)],
        ["guide@3  d1", "aliases: default, new", "variables: city, days", "system: Be brief.", "user: hi"],
    ),
    (
        "prompts show pt_1",
        {
            "GET /v1/prompts/pt_1": {
                "id": "pt_1",
                "name": None,
                "version": 1,
                "digest": "d",
                "aliases": [],
                "variables": [],
                "text": "Say {{ x }}",
            }
        },
        [("GET", "/v1/prompts/pt_1", None)],
        ["pt_1@1  d", "Say {{ x }}"],
    ),
    (
        "prompts render guide --var city=Rome=Roma --var days:=3 --model tiny",
        {
            "POST /v1/prompts/guide/render": {
                "messages": [{"role": "user", "content": "hi"}],
                "text": "user: hi",
                "input_tokens": 0,
            }
        },
        [("POST", "/v1/prompts/guide/render", {"model": "tiny", "variables": {"city": "Rome=Roma", "days": 3}})],
        ["user: hi", "", "user: hi", "", "0 tokens"],
    ),
    (
        "prompts render guide",
        {"POST /v1/prompts/guide/render": {"messages": None, "text": "plain", "input_tokens": None}},
        [("POST", "/v1/prompts/guide/render", {"model": None, "variables": {}})],
        ["plain"],
    ),
    (
        "prompts alias guide default 2",
        {"PUT /v1/prompts/guide/aliases/default": {}},
        [("PUT", "/v1/prompts/guide/aliases/default", {"version": 2})],
        ["guide@default means guide@2"],
    ),
    (
        "prompts unalias guide new",
        {"DELETE /v1/prompts/guide/aliases/new": (204, {})},
        [("DELETE", "/v1/prompts/guide/aliases/new", None)],
        ["guide@new is removed"],
    ),
    (
        "prompts delete guide",
        {"DELETE /v1/prompts/guide": {}},
        [("DELETE", "/v1/prompts/guide", None)],
        ["guide is deleted"],
    ),
    (
        "pipelines",
        {"GET /v1/pipelines": [PIPELINE]},
        [("GET", "/v1/pipelines?limit=100", None)],
        ["pipeline  version  steps  made", "digest  2  one, two  2 d ago"],
    ),
    (
        "pipelines show digest",
        {"GET /v1/pipelines/digest": PIPELINE},
        [("GET", "/v1/pipelines/digest", None)],
        [
            "digest@2  d2",
            "input: text, tone",
            "",
            "input ─▶ one  generate, tiny",
            "one ─▶ two  embed, tiny  the answer",
        ],
    ),
    (
        "pipelines alias digest new 2 --canary 3:10",
        {"PUT /v1/pipelines/digest/aliases/new": {}},
        [("PUT", "/v1/pipelines/digest/aliases/new", {"version": 2, "canary": {"version": 3, "percent": 10}})],
        ["digest@new means digest@2, and for 10 % of the users digest@3"],
    ),
    (
        "pipelines unalias digest new",
        {"DELETE /v1/pipelines/digest/aliases/new": (204, {})},
        [("DELETE", "/v1/pipelines/digest/aliases/new", None)],
        ["digest@new is removed"],
    ),
    (
        "pipelines remove digest",
        {"DELETE /v1/pipelines/digest": {}},
        [("DELETE", "/v1/pipelines/digest", None)],
        ["digest is deleted"],
    ),
    (
        "rollout list --model tiny",
        {"GET /v1/rollouts": [ROLLOUT]},
        [("GET", "/v1/rollouts?model=tiny", None)],
        [
            "rollout  alias  versions  state  share  step  started",
            "rollout_1  tiny@default  1 → 2  running  12.5 %  1 of 3  2 d ago",
        ],
    ),
    (
        "rollout list --pipeline digest",
        {"GET /v1/pipelines/digest/rollouts": []},
        [("GET", "/v1/pipelines/digest/rollouts", None)],
        ["no rollouts"],
    ),
    (
        "rollout start tiny@new --to 2 --steps 1:10m --sticky job --shadow --force --no-require-worker",
        {"POST /v1/rollouts": {**ROLLOUT, "alias": "new"}},
        [
            (
                "POST",
                "/v1/rollouts",
                {
                    "version": 2,
                    "steps": [{"percent": 1.0, "hold_s": 600}],
                    "mode": "shadow",
                    "force": True,
                    "alias": "new",
                    "model": "tiny",
                    "sticky_key": "job",
                    "require_worker": False,
                },
            )
        ],
        ["rollout_1: 12.5 % of tiny@new is copied to version 2", "warning: no worker"],
    ),
    (
        "rollout start tiny --to 2 --steps 1:1d",
        {"POST /v1/rollouts": {**ROLLOUT, "warning": None}},
        [
            (
                "POST",
                "/v1/rollouts",
                {
                    "version": 2,
                    "steps": [{"percent": 1.0, "hold_s": 86400}],
                    "mode": "canary",
                    "force": False,
                    "model": "tiny",
                    "sticky_key": "user",
                },
            )
        ],
        ["rollout_1: 12.5 % of tiny@default goes to version 2"],
    ),
    (
        "rollout show rollout_1",
        {"GET /v1/rollouts/rollout_1": {**ROLLOUT, "reason": "slow", "checks": [CHECK]}},
        [("GET", "/v1/rollouts/rollout_1", None)],
        [
            "rollout_1  tiny@default: version 1 → 2",
            "running, 12.5 %, step 1 of 3, revision 4, started 2 d ago",
            "slow",
            "warning: no worker",
            "check  decision  evidence  bad from",
            "error rate  good  1.3  3.0  2 of 9",
        ],
    ),
    (
        "rollout show rollout_1 --plot -",
        {"GET /v1/rollouts/rollout_1/plot": "<svg/>"},
        [("GET", "/v1/rollouts/rollout_1/plot", None)],
        ["<svg/>"],
    ),
    *[
        (
            f"rollout {verb} rollout_1 --reason why",
            {f"POST /v1/rollouts/rollout_1/{verb}": ROLLOUT},
            [("POST", f"/v1/rollouts/rollout_1/{verb}?reason=why", None)],
            ["rollout_1 is running, 12.5 %"],
        )
        for verb in ("pause", "resume", "promote", "abort")
    ],
    (
        "rollout pause rollout_1 --pipeline digest",
        {"POST /v1/pipelines/digest/rollouts/rollout_1/pause": ROLLOUT},
        [("POST", "/v1/pipelines/digest/rollouts/rollout_1/pause", None)],
        ["rollout_1 is running, 12.5 %"],
    ),
    (
        "tools",
        {"GET /v1/tools": [TOOL, {**TOOL, "url": "https://a.example/"}]},
        [("GET", "/v1/tools", None)],
        [
            "tool  url  headers  deadline  id",
            "weather  command weather --now  X-Key, X-Way  600 ms  tool_1",
            "weather  https://a.example/  X-Key, X-Way  600 ms  tool_1",
        ],
    ),
    (
        "tools put weather --mcp https://a.example/mcp",
        {"GET /v1/tools": [TOOL], "PUT /v1/tools/tool_1": TOOL},
        [("GET", "/v1/tools", None), ("PUT", "/v1/tools/tool_1", {"type": "mcp", "url": "https://a.example/mcp"})],
        ["weather is stored as tool_1, with now, later"],
    ),
    (
        "tools put other --mcp https://a.example/mcp",
        {"GET /v1/tools": [TOOL], "POST /v1/tools": {**TOOL, "tools": None}},
        [
            ("GET", "/v1/tools", None),
            ("POST", "/v1/tools", {"type": "mcp", "url": "https://a.example/mcp", "name": "other"}),
        ],
        ["other is stored as tool_1"],
    ),
    (
        "tools delete weather",
        {"GET /v1/tools": [TOOL], "DELETE /v1/tools/tool_1": (204, {})},
        [("GET", "/v1/tools", None), ("DELETE", "/v1/tools/tool_1", None)],
        ["weather is deleted"],
    ),
    ("webhooks", {"GET /v1/webhook_endpoints": []}, [("GET", "/v1/webhook_endpoints", None)], ["no webhook endpoints"]),
    (
        "webhooks create https://a.example/",
        {"POST /v1/webhook_endpoints": {"id": "we_1", "secret": "whsec_x"}},
        [("POST", "/v1/webhook_endpoints", {"url": "https://a.example/", "events": ["*"]})],
        ["we_1", "secret: whsec_x"],
    ),
    (
        "webhooks create https://a.example/ --event job.failed --event job.succeeded",
        {"POST /v1/webhook_endpoints": {"id": "we_1", "secret": "whsec_x"}},
        [("POST", "/v1/webhook_endpoints", {"url": "https://a.example/", "events": ["job.failed", "job.succeeded"]})],
        ["we_1", "secret: whsec_x"],
    ),
    (
        "webhooks create https://a.example/ --operator",
        {"POST /v1/webhook_endpoints": {"id": "we_1", "secret": "whsec_x"}},
        [("POST", "/v1/webhook_endpoints", {"url": "https://a.example/", "events": sorted(REGISTRY_EVENTS)})],
        ["we_1", "secret: whsec_x"],
    ),
    (
        "webhooks delete we_1",
        {"DELETE /v1/webhook_endpoints/we_1": (204, {})},
        [("DELETE", "/v1/webhook_endpoints/we_1", None)],
        ["we_1 deleted"],
    ),
    (
        "webhooks deliveries --endpoint we_1 --job job_1 --status failed --limit 3",
        {"GET /v1/webhook_deliveries": [DELIVERY]},
        [("GET", "/v1/webhook_deliveries?endpoint_id=we_1&job_id=job_1&status=failed&limit=3", None)],
        [
            "delivery  event  of  status  tries  created  last error",
            "evt_1  job.failed  job_1  failed  2  2 d ago  answered 500",
        ],
    ),
    (
        "webhooks delivery evt_1",
        {"GET /v1/webhook_deliveries/evt_1": DELIVERY},
        [("GET", "/v1/webhook_deliveries/evt_1", None)],
        ["evt_1 job.failed failed https://a.example/", "not tried yet"],
    ),
    (
        "webhooks delivery evt_1",
        {
            "GET /v1/webhook_deliveries/evt_1": {
                **DELIVERY,
                "tries": [
                    {"attempt": 1, "at": TWO_DAYS, "duration_ms": 12.6, "status": 500, "error": "answered 500"},
                    {"attempt": 2, "at": TWO_DAYS, "duration_ms": None, "status": None, "error": None},
                ],
            }
        },
        [("GET", "/v1/webhook_deliveries/evt_1", None)],
        [
            "evt_1 job.failed failed https://a.example/",
            "try  at  took  status  error",
            "1  2 d ago  13 ms  500  answered 500",
            "2  2 d ago",
        ],
    ),
    (
        "webhooks redeliver evt_1",
        {"POST /v1/webhook_deliveries/evt_1/redeliver": {}},
        [("POST", "/v1/webhook_deliveries/evt_1/redeliver", None)],
        ["evt_1 is on its way again"],
    ),
    (
        "webhooks test we_1",
        {"POST /v1/webhook_endpoints/we_1/test": {"id": "evt_2"}},
        [("POST", "/v1/webhook_endpoints/we_1/test", None)],
        ["evt_2"],
    ),
    (
        "webhooks enable we_1",
        {"POST /v1/webhook_endpoints/we_1/enable": {}},
        [("POST", "/v1/webhook_endpoints/we_1/enable", None)],
        ["we_1 enabled"],
    ),
    (
        "webhooks recover we_1 --since 2026-11-26T12:00",
        {"POST /v1/webhook_endpoints/we_1/recover": {"queued": 4, "has_more": False}},
        [("POST", "/v1/webhook_endpoints/we_1/recover", {"since": 1795694400})],
        ["4 events are on their way"],
    ),
    (
        "webhooks recover we_1 --since 2026-11-26T12:00+02:00",
        {"POST /v1/webhook_endpoints/we_1/recover": {"queued": 0, "has_more": False}},
        [("POST", "/v1/webhook_endpoints/we_1/recover", {"since": 1795687200})],
        ["0 events are on their way"],
    ),
    (
        "submit hi --model tiny@1 --max-tokens 9 --temperature 0 --webhook https://a.example/",
        {"POST /v1/jobs": {"id": "job_1", "status": "queued"}},
        [
            (
                "POST",
                "/v1/jobs",
                {
                    "task": "generate",
                    "model": "tiny@1",
                    "input": {"messages": [{"role": "user", "content": "hi"}]},
                    "sampling": {"max_tokens": 9, "temperature": 0},
                    "webhook": {"url": "https://a.example/"},
                },
            )
        ],
        ["job_1"],
    ),
    (
        "submit --prompt guide --var city=Rome --model tiny",
        {"POST /v1/jobs": {"id": "job_1", "status": "queued"}},
        [
            (
                "POST",
                "/v1/jobs",
                {
                    "task": "generate",
                    "model": "tiny",
                    "input": {"template": {"id": "guide", "variables": {"city": "Rome"}}},
                    "sampling": {},
                },
            )
        ],
        ["job_1"],
    ),
    (
        "submit hi",
        {"GET /v1/models": [{"id": "tiny"}], "POST /v1/jobs": {"id": "job_1", "status": "queued"}},
        [
            ("GET", "/v1/models", None),
            (
                "POST",
                "/v1/jobs",
                {
                    "task": "generate",
                    "model": "tiny",
                    "input": {"messages": [{"role": "user", "content": "hi"}]},
                    "sampling": {},
                },
            ),
        ],
        ["job_1"],
    ),
    (
        "submit hi",
        {
            "GET /v1/models": [{"id": "tiny"}, {"id": "big"}],
            "GET /v1/queues": [{"name": "big@2", "workers": 1}, {"name": "tiny@1", "workers": 0}],
            "POST /v1/jobs": {"id": "job_1", "status": "queued"},
        },
        [
            ("GET", "/v1/models", None),
            ("GET", "/v1/queues", None),
            (
                "POST",
                "/v1/jobs",
                {
                    "task": "generate",
                    "model": "big",
                    "input": {"messages": [{"role": "user", "content": "hi"}]},
                    "sampling": {},
                },
            ),
        ],
        ["job_1"],
    ),
]
