"""Where mail for a domain goes, and what TLS it finds there must be: DNS, MX, DANE, MTA-STS.

Callers import from the modules: `engine.routing.router` and `engine.routing.policy` are the doors,
`engine.routing.resolver` says what a resolver of your own must do.
"""
