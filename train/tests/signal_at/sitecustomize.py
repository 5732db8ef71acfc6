"""On the path of a child process: it sends itself signals when a function is called.

``SIGNAL_AT="FILE:FUNCTION COUNT NUMBER..."``: as ``FUNCTION`` of a file whose path ends in ``FILE`` is called for the
``COUNT``-th time. ``<module>`` is a module that is being imported.
"""

import os
import sys

WHERE, COUNT, *NUMBERS = os.environ["SIGNAL_AT"].split()
FILE, FUNCTION = WHERE.rsplit(":", 1)
calls = 0


def watch(frame, event, arg):
    global calls
    code = frame.f_code
    if event == "call" and code.co_name == FUNCTION and code.co_filename.endswith(FILE):
        calls += 1
        if calls == int(COUNT):
            sys.setprofile(None)
            for number in NUMBERS:
                os.kill(os.getpid(), int(number))


sys.setprofile(watch)
