"""The SMTP client protocol without I/O: commands to octets, octets to replies, what may follow what.

Nothing here waits, reads a clock or opens anything; `engine.delivery` drives it.
"""
