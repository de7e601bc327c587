"""The class index of pixels that play no part: neither in the loss, nor in any measure."""

from __future__ import annotations

#: Class indices are bytes; the last of them is no class.
IGNORED = 255
