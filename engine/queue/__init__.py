"""What outlives a run of the engine.

`engine.queue.hints` keeps what is nice to know and may be lost at any time.  Nothing in this room
speaks SMTP, asks the DNS or decides about a delivery.
"""
