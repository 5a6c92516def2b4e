"""What surrounds every request and needs the runtime: middleware, dependencies of routes, pages, shared objects.

What needs no runtime is ``producer_api.server``."""
