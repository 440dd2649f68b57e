"""Where mail for a domain goes: DNS, MX rules, static routes.

Callers import from the modules: `engine.routing.router` is the door, `engine.routing.resolver`
what a resolver of your own must do.
"""
