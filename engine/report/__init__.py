"""What the engine tells about itself: events, log lines, transcripts and statistics.

Everything here only listens.  Nothing in this room waits for a peer, decides about mail or can make
a delivery fail.
"""
