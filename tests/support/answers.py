"""A process for `edge.child`: does what the question says."""

import os
import signal
import sys
import time

from edge.child import child_main
from edge.errors import EdgeError


def work(question):
    print("what a library prints")
    os.write(1, b"and what its C code prints\n")
    if question == "fail":
        raise EdgeError("it is broken; mend it.")
    if question == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if question == "hang":
        time.sleep(60)  # it is killed long before
    return {"heard": question}


if __name__ == "__main__":
    sys.exit(child_main(work))
