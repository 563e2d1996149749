"""Checkpoint files: tensors in safetensors, everything else in one JSON text; nothing is ever unpickled.

A file is a safetensors file with a single metadata key, `acktr`, that holds sorted JSON (several metadata keys would be
written in random order): `{format, format_version, kind, digest, tree}`. `tree` is the saved structure with each tensor
replaced by its name. JSON lists are lists; each JSON object carries one tag that says what it stands for:

====================  =================================================================
`{"dict": {...}}`     a dictionary
`{"tensor": name}`    the tensor of that name
`{"float": text}`     a float that JSON lacks: `nan`, `inf`, `-inf`
`{"int": text}`       an integer beyond 2^53, hexadecimal (JSON readers may round those)
====================  =================================================================
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from acktr.agents.files import write_atomically
from acktr.errors import UserError

FORMAT = "acktr"
FORMAT_VERSION = 1
METADATA_KEY = "acktr"

Kind = Literal["checkpoint", "policy"]

_EXACT_INTEGER = 2**53
_HEADER_LENGTH_BYTES = 8  # safetensors: little-endian length of the JSON header, the header, the data


class DamagedFileError(UserError):
    """A file of this format that is cut short or altered; an older checkpoint may still be good.

    Args:
        path: the file.
        damage: what is wrong with it.
    """

    def __init__(self, path: Path, damage: str) -> None:
        super().__init__(f"{path}: {damage}; use an older checkpoint")
        self.damage = damage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What `load` found.

    Attributes:
        kind: `checkpoint` (a run can go on from it) or `policy` (weights and what is needed to act).
        state: the saved structure, tensors on the CPU.
    """

    kind: Kind
    state: dict[str, Any]


def save(path: Path, state: Mapping[str, Any], *, kind: Kind) -> None:
    """Write `state` to `path` atomically; equal states give equal bytes.

    Args:
        path: file to create or replace.
        state: nested dictionaries (string keys) and lists or tuples (both come back as lists) with leaves tensor (any
            device), int of any size, float (non-finite too), str, bool or None. Dictionaries come back in sorted order
            and tensors contiguous and separate, even where they were views of one another.
        kind: what the file is for.

    Raises:
        TypeError: a key or leaf of another type; the message names the place.
        OSError: the file could not be written; nothing half-written stays behind.
    """
    tensors: dict[str, Tensor] = {}
    tree = {key: _encode(value, _join("", key), tensors) for key, value in _items(state, "")}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "digest": _digest(kind, tree, tensors),
        "tree": tree,
    }
    write_atomically(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: _dump(manifest)}))


def load(path: Path) -> Loaded:
    """Read a file that `save` wrote, onto the CPU, with the exact dtypes, shapes and bytes.

    Raises:
        DamagedFileError: the file is cut short or was altered.
        UserError: the file is missing, foreign, from a newer format or carries a pickle; the message says which.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a run folder or a .safetensors file of acktr") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    manifest = _manifest(path, data)
    kind: Any = manifest.get("kind")
    if kind not in get_args(Kind) or not isinstance(manifest.get("tree"), dict):
        raise DamagedFileError(path, "damaged: its manifest lacks a known kind and a tree")
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise DamagedFileError(path, f"truncated or damaged ({error})") from error
    tree: dict[str, Any] = manifest["tree"]
    try:
        intact = manifest.get("digest") == _digest(kind, tree, tensors)
        state = {key: _decode(value, tensors) for key, value in tree.items()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"damaged: its manifest is not what acktr writes ({error!r})") from error
    if not intact:
        raise DamagedFileError(path, "damaged: content and checksum differ")
    return Loaded(kind=kind, state=state)


def _manifest(path: Path, data: bytes) -> dict[str, Any]:
    """Parse and judge the header of `data` before any tensor is made."""
    start = _HEADER_LENGTH_BYTES
    length = int.from_bytes(data[:start], "little")
    # the first bytes of a safetensors file are a length and may be any, a pickle's magic number included: ask for the
    # brace that follows before anything else
    if data[start : start + 1] not in (b"{", b"") or (len(data) <= start and length > 2**32):
        if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise UserError(
                f"{path}: refused: it carries a pickle, which can run code when loaded; acktr reads its own files only"
            )
        raise UserError(f"{path}: not a file of acktr: it is no safetensors file")
    if len(data) <= start or start + length > len(data):
        what = "inside its header" if len(data) > start else "too few for a file of acktr"
        raise DamagedFileError(path, f"truncated at {len(data)} bytes, {what}")
    try:
        header = json.loads(data[start : start + length])
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"damaged: its header does not parse ({error})") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path}: not a file of acktr: a safetensors file without acktr's manifest")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"damaged: its manifest does not parse ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a file of acktr: its manifest names another format")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise DamagedFileError(path, "damaged: its manifest lacks a format version")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format {version} is newer than the {FORMAT_VERSION} that this acktr reads; upgrade acktr"
        )
    return manifest


def _items(mapping: Mapping[Any, Any], where: str) -> list[tuple[str, Any]]:
    for key in mapping:
        if not isinstance(key, str):
            raise TypeError(f"checkpoint state at '{where}': dictionary keys are strings, got {key!r}")
    return list(mapping.items())


def _join(where: str, key: str) -> str:
    """Path of a leaf, escaped as a JSON pointer (RFC 6901) so that different leaves have different names."""
    part = key.replace("~", "~0").replace("/", "~1")
    return f"{where}/{part}" if where else part


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _EXACT_INTEGER else {"int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        # a clone each: safetensors refuses tensors that share memory
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, Mapping):
        return {"dict": {key: _encode(item, _join(where, key), tensors) for key, item in _items(value, where)}}
    if isinstance(value, list | tuple):
        return [_encode(item, _join(where, str(index)), tensors) for index, item in enumerate(value)]
    raise TypeError(f"checkpoint state at '{where}': cannot hold a {type(value).__name__}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    if tag == "tensor":
        return tensors[content]
    if tag == "float":
        return float(content)
    if tag == "int":
        return int(content, 16)
    raise ValueError(f"unknown tag {tag!r}")


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(kind: str, tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Checksum over the kind, the tree and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.blake2b(_dump([kind, tree]).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_dump([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
