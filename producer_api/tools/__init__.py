"""The routes of the tools that the server calls."""
