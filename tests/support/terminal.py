"""A program on a real terminal of its own, whose screen can be looked at."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pyte

LIMIT_S = 40  # a test that waits longer has failed; nothing is timed
PATIENCE_S = 4
INPUT_PROMPT = ">>>"
COLUMNS, LINES = 160, 150


class Terminal:
    """Starts a command and shows what a person would see."""

    def __init__(self, command, cwd, environment):
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.screen.write_process_input = self.send
        self.output = b""
        self._master, slave = pty.openpty()
        size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._master >= 0:
            self.process.kill()
            self.process.wait()
            os.close(self._master)
            self._master = -1

    @property
    def shown(self):
        """The screen's lines without what is blank at their ends."""
        lines = [self._line(y) for y in range(self.screen.lines)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def line(self):
        """The line with the cursor."""
        return self._line(self.screen.cursor.y)

    def wait(self, condition, what):
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what}:\n" + "\n".join(self.shown)
            assert self._read(), f"ended before {what}:\n" + "\n".join(self.shown)

    def wait_for(self, text):
        self.wait(lambda: any(text in line for line in self.shown), f"{text!r}")

    def wait_for_prompt(self):
        self.wait(lambda: self.line == INPUT_PROMPT, "prompt")

    def leave(self, keys="\x04"):
        """The exit code."""
        self.send(keys)
        while self._read():
            pass
        return self.process.wait(LIMIT_S)

    def press(self, keys, line, expected="a further line"):
        """Send keys, and wait for the cursor's line that follows."""
        self.send(keys)
        self.wait(lambda: self.line == line, expected)

    def clear(self):
        self.send("\x03")
        self.wait_for_prompt()

    def send(self, keys):
        os.write(self._master, keys.encode())

    def type(self, text):
        """Type a line and see it on the screen."""
        self.send(text)
        self.wait(lambda: self.line.endswith(text.rstrip()), f"echo of {text!r}")

    def enter(self, text):
        """Type a line, send it, and wait for the next prompt; the lines in between."""
        self.type(text)
        before = self.screen.cursor.y + 1
        self.send("\r")
        self.wait_for_prompt()
        return self.shown[before:-1]

    def interrupt_until(self, text):
        """Again where nothing happens: Python's line input may miss a signal before it reads."""
        for _ in range(LIMIT_S // PATIENCE_S):
            self.send("\x03")
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and self._read():
                if any(text in line for line in self.shown):
                    return
        raise AssertionError(f"no {text!r}:\n" + "\n".join(self.shown))

    def _line(self, y):
        """As `screen.display`, which looks at every cell there could be."""
        row = self.screen.buffer.get(y, {})
        return "".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip()

    def _read(self):
        """Take in what is there, or wait for it; False at the end."""
        ready, _, _ = select.select([self._master], [], [], 1)
        if not ready:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the other side is closed
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)


def colours(output):
    """The parameters of all escape codes that choose how text looks, resets left out."""
    return {code for code in re.findall(rb"\x1b\[([0-9;]*)m", output) if code.strip(b"0;")}


def _take_terminal():
    """Make the terminal the one that Ctrl-C of this process group comes from."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
