"""A program on a pseudo-terminal, and its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte

LIMIT_S = 40  # a test that waits longer has failed
PATIENCE_S = 4
PROMPT = ">>>"
COLUMNS, LINES = 160, 150


class Terminal:
    """Starts a command and shows its screen."""

    def __init__(self, command, cwd, environment, columns=COLUMNS):
        self.screen = pyte.Screen(columns, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.screen.write_process_input = self.send
        self.output = b""
        self._master, slave = pty.openpty()
        size = struct.pack("HHHH", LINES, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        # The controlling terminal: its Ctrl-C is for this process group.
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def shown(self):
        """The screen's lines up to the last that is not blank."""
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

    def leave(self, keys="\x04"):
        """Sends keys that end the process; returns its exit code."""
        self.send(keys)
        while self._read():
            pass
        return self.process.wait(LIMIT_S)

    def printed(self):
        """Lines of text without escape codes that the process prints until it ends."""
        while self._read():
            pass
        return self.output.decode().split("\r\n")

    def send(self, keys):
        os.write(self._master, keys.encode())

    def press(self, keys, line=PROMPT):
        """Sends keys and waits for a line with the cursor."""
        self.send(keys)
        self.wait(lambda: self.line == line, f"line {line!r}")

    def type(self, text):
        """Types a text and waits for its echo."""
        self.send(text)
        self.wait(lambda: self.line.endswith(text.rstrip()), f"echo of {text!r}")

    def enter(self, text):
        """Enters a line; returns the lines before the next prompt."""
        self.type(text)
        before = self.screen.cursor.y + 1
        self.press("\r")
        return self.shown[before:-1]

    def interrupt_until(self, text):
        """Presses Ctrl-C until a text is shown: Python's input misses one before it reads."""
        for _ in range(LIMIT_S // PATIENCE_S):
            self.send("\x03")
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and self._read():
                if any(text in line for line in self.shown):
                    return
        raise AssertionError(f"no {text!r}:\n" + "\n".join(self.shown))

    def _line(self, y):
        # `screen.display` does this for every cell, which is slow.
        row = self.screen.buffer.get(y, {})
        return "".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip()

    def _read(self):
        """Reads what is there, or waits for it; False at the end."""
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
