"""Start without standard streams: some who start programs close them.

Called by the console scripts before anything is opened.
"""

from __future__ import annotations

import os


def occupy_standard_descriptors() -> None:
    """See that nothing that is opened later gets the number of a standard stream that is closed.

    What is written to that stream would go to a mail server, or into a file.  Reading and writing
    fail as before.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest number that is free: this one
