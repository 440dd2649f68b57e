"""The queue: what outlives a run of the engine.

`engine.queue.store` says what a store of queued mail does; `sqlite` and `memory` are stores.
`scheduler` leases from a store, hands over to the engine and settles; `retry`, `backoff` and
`decision` decide.  `hints` keeps what is nice to know and may be lost at any time.  Nothing in this
room speaks SMTP or asks the DNS.
"""
