"""Every message inside an ONNX model, however deep: graphs, nodes, attributes, sub-graphs, tensors, types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def walk(message: Any) -> Iterator[Any]:
    """The protobuf `message` itself, then all messages in it, outer ones first."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from walk(inner)
