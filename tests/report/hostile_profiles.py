"""Profiles in which every string was written by somebody who means harm."""

import copy

TEXTS = (
    "<script>window.attacked = 1</script>",
    '"><img src=x onerror="window.attacked = 2">',
    "</script><script>window.attacked = 3</script>",
    "<!-- <script> </style></title></textarea></pre>",
    "' onmouseover='window.attacked = 4' {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u2066\u200f \u2028\u2029",
    "\x1b[31mred\x1b]0;title\x07\x00\x08nul",
    '=HYPERLINK("http://127.0.0.1:9/x") | ![x](http://127.0.0.1:9/y) `code` \n# head',
    "W" * 4000,
)


def with_hostile_strings(profile, first=0, keys=False):
    """The same with another of TEXTS in place of every string, and of every free key."""
    count = [first]

    def text():
        count[0] += 1
        return TEXTS[count[0] % len(TEXTS)]

    def spoiled(value):
        if isinstance(value, str):
            return text()
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        return copy.copy(value)

    made = spoiled(profile)
    if keys:
        for name in ("software", "method", "device", "model"):
            made[name].update({text: text for text in TEXTS})
    return made
