"""ONNX files opened by ONNX Runtime on the CPU, safely: nothing is read but the file itself."""

import os
from pathlib import Path
from typing import Any

import torch

from lrkd.errors import DataError, first_line, needed

LIMIT = 2**31  # bytes, and protocol buffers' own
_FIELDS = 1_000_000


def read(path: str | os.PathLike[str], limit: int = LIMIT) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        DataError: It cannot be read, or is larger.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): expected an .onnx file") from error
    if len(content) > limit:
        raise DataError(f"{file}: expected an ONNX file of at most {limit} bytes, got more")
    return content


def open(content: bytes, path: Path, threads: int | None = None) -> Any:
    """Open a file's content as an `onnxruntime.InferenceSession`.

    Args:
        content: The file.
        path: Its name, for messages.
        threads: With which one call computes; default: torch's number.

    Raises:
        ConfigError: onnxruntime is missing.
        DataError: It is no ONNX file, or takes its weights from other files, which nothing says are its own.
    """
    with needed(f"{path}: an ONNX file", "export"):
        import onnxruntime
    refuse_external(content, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common base of their own
        raise DataError(f"{path}: ONNX Runtime cannot open it ({first_line(error)})") from error


# The messages of onnx.proto in which a tensor can lie, and where: {message: {field number: message inside}}.
_PLACES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL, _WHERE = 13, 14  # of a tensor: external_data, data_location


def refuse_external(content: bytes, path: Path) -> None:
    """Refuse a model with a tensor whose data lie in another file, before anything opens that file.

    It reads the wire format of protocol buffers wherever tensors can be, so that no package is needed to read a model
    safely.

    Raises:
        DataError: There is such a tensor, or the content is broken.
    """
    waiting, left = [("model", 0, len(content))], _FIELDS
    while waiting:
        message, at, end = waiting.pop()
        while at < end:
            left -= 1
            key, at = _varint(content, at, end, path)
            field, wire = key >> 3, key & 7
            value = 0
            if wire == 0:
                value, at = _varint(content, at, end, path)
                size = 0
            elif wire == 2:
                size, at = _varint(content, at, end, path)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                size = end
            if not field or left < 0 or at + size > end:
                raise DataError(f"{path}: expected an ONNX file, got one broken near byte {at} of {len(content)}")
            if message == "tensor" and (field == _EXTERNAL or (field == _WHERE and (wire != 0 or value))):
                raise DataError(
                    f"{path}: expected all weights in one file, got one that takes weights from another file"
                )
            inside = _PLACES[message].get(field)
            if wire == 2 and inside:
                waiting.append((inside, at, at + size))
            at += size


def _varint(content: bytes, at: int, end: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise DataError(f"{path}: expected an ONNX file, got one broken near byte {at} of {len(content)}")
