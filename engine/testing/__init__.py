"""For tests of senders: scripted SMTP servers, an accepting sink, a name service, a clock, a link.

Shipped for users of the engine as much as for its own tests; nothing in the engine imports it.
Import what you need from its module, for example `from engine.testing.server import serve_script`.
"""
