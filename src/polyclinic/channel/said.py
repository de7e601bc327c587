"""Texts, bytes and lists of them as one tensor of a message."""

from __future__ import annotations

import base64
import json
from typing import Any

import torch
from torch import Tensor

from polyclinic.shapes import Misfit

#: Longer texts, and lists deeper in each other, are not read.
_MOST, _DEEPEST = 2**26, 4


def said(content: Any) -> Tensor:
    """JSON values, and bytes among them, as bytes uint8 ``[n]``."""
    text = json.dumps(_plain(content), ensure_ascii=False, separators=(",", ":"))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def read_said(told: Tensor | None, what: str) -> Any:
    """What `said` was given.

    Raises:
        Misfit: it can't have given this.
    """
    if told is None or told.dtype is not torch.uint8 or told.dim() != 1 or len(told) > _MOST:
        raise Misfit(f"{what}: got no text")
    try:
        return _rich(json.loads(told.numpy().tobytes()), _DEEPEST)
    except (ValueError, TypeError, RecursionError):
        raise Misfit(f"{what}: got a text that can't be read") from None


def _plain(content: Any) -> Any:
    if isinstance(content, bytes):
        return {"": base64.b64encode(content).decode()}
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def _rich(content: Any, depth: int) -> Any:
    if isinstance(content, dict):
        if depth < 0:
            raise ValueError("too deep")
        if content.keys() == {""}:
            return base64.b64decode(content[""], validate=True)
        return {key: _rich(value, depth - 1) for key, value in content.items()}
    return [_rich(value, depth - 1) for value in content] if isinstance(content, list) else content
