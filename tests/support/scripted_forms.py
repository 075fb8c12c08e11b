"""Stands for loire.text.form_process. By what a choice begins with:

"never" finds no time, "fatal" ends the process, "alone" is answered only if nothing was asked
before, "later" when another one was given up, and all else at once.
"""

import marshal
import os
import sys

from loire.text.form_process import _answer, _message


def main() -> None:
    """Answer what comes on stdin."""
    source = sys.stdin.buffer
    _message(source)
    later: list[int] = []
    while True:
        number, fields = marshal.loads(_message(source))
        if fields is None:
            while later:
                _answer(later.pop(), "")
            continue
        word = fields["choice"][0]
        if word == "fatal":
            os._exit(1)
        if word == "later":
            later.append(number)
        elif word != "never" and (word != "alone" or number == 0):
            _answer(number, "")


if __name__ == "__main__":
    main()
