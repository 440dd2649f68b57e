"""One outgoing connection: from a candidate to a byte stream and the facts about it.

`engine.net.connector` is the door; `engine.delivery` uses it.  Nothing here speaks SMTP, asks the
DNS or knows a message.
"""
