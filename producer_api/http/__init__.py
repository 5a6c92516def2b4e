"""The parts of every request that need the runtime: middleware, dependencies of routes, pages, shared views.

Parts that need no runtime are in ``producer_api.server``."""
