"""The commands of pipelines, tools and approvals. They use the API."""
