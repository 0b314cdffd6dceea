"""How a file or an argument is refused: in one line."""

import pytest


def refused(call, *parts):
    """The call raises a ValueError of one line that has all these parts."""
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
