"""The one exception whose message is written for the person at the terminal."""

# A message quotes what a file says, and a file can say a great deal. Its beginning tells what
# is wrong and where, its end what to do.
HEAD_CHARACTERS, TAIL_CHARACTERS = 1000, 300


class EdgeError(Exception):
    """An error that the user can correct; commands print it without a traceback and exit with 1.

    Its message is one sentence that says what is wrong, where, and what to do. It may quote
    untrusted files: characters that a terminal would act on are shown as escapes, and the middle
    of an endless one is left out.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """Text as one line that no terminal acts on, cut in the middle if it is endless."""
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        text = f"{text[:HEAD_CHARACTERS]} ... {text[-TAIL_CHARACTERS:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
