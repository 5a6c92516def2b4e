"""What jobs of several steps add to the API: pipelines, their rollouts, tools and approvals."""

from headrace.features.flows import approval_routes, pipeline_rollouts, pipeline_routes, tool_routes
from headrace.features.flows.pipeline_mirrors import mirrors_for
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(
    routers=(pipeline_routes.router, pipeline_rollouts.router, tool_routes.router, approval_routes.router),
    work=mirrors_for,
)
