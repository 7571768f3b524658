"""Reads and writes PyTorch's checkpoint files without PyTorch, and without running anything that a file asks for.

A checkpoint is a pickle, and a pickle is a program: it names functions and calls them. PyTorch's own loader refuses the
dangerous ones since 2.6 (`weights_only=True`), but is a dependency of several hundred megabytes. The reader here admits
what a state dict is made of and nothing else:

- containers and numbers, which a pickle builds by its own opcodes, and `collections.OrderedDict`;
- tensors: `torch._utils._rebuild_tensor`, `_rebuild_tensor_v2` and `_rebuild_parameter`, replaced by functions of
  this file that record where the values are, over storages of numbers and booleans;
- what training scripts store next to the weights (`argparse.Namespace`, counters of a learning rate schedule, NumPy
  scalars, `torch.device`, `torch.Size`), replaced by inert objects that keep nothing and do nothing.

Every other name is refused before it is looked up, so nothing is imported and nothing is called.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
_INERT = {
    ('argparse', 'Namespace'),
    ('collections', 'Counter'),
    ('collections', 'defaultdict'),
    ('builtins', 'dict'),
    ('__builtin__', 'dict'),
    ('_codecs', 'encode'),
    ('numpy', 'dtype'),
    ('numpy.core.multiarray', 'scalar'),
    ('numpy._core.multiarray', 'scalar'),
    ('torch', 'device'),
    ('torch', 'Size'),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class StateDict(dict[str, Any]):
    """A dict of the file, with what PyTorch attaches to a state dict as its attribute `_metadata`."""

    metadata: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor's values are: elements of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: Any
    size: int


class _Unpickler(pickle.Unpickler):
    """Builds containers and `_Tensor`s; refuses every name that is not listed above.

    The replacements are created per file, so that what one file does to them cannot affect another.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding='utf-8')

        class Inert:
            """Accepts everything that a pickle can do to an object, and keeps nothing."""

            def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
                return super().__new__(cls)

            def __init__(self, *args: Any, **kwargs: Any) -> None: ...

            def __setstate__(self, state: Any) -> None: ...

            def __setitem__(self, key: Any, value: Any) -> None: ...

        def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
            del rest  # requires_grad and hooks
            return _checked(storage, offset, shape, strides)

        def parameter(data: Any, *rest: Any) -> Any:
            del rest
            return data

        self._known: dict[tuple[str, str], Any] = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor'): tensor,
            ('torch._utils', '_rebuild_tensor_v2'): tensor,
            ('torch._utils', '_rebuild_parameter'): parameter,
            **{('torch', name): name for name in _DTYPES},
            **dict.fromkeys(_INERT, Inert),
        }

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the file; ValueError for a name that no state dict needs."""
        if (module, name) not in self._known:
            raise ValueError(
                f'it asks for {module}.{name}, which no list of weights needs: refused, nothing was run; '
                "save the network's state_dict() instead"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage by its description ('storage', type, key, device, elements, view)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != 'storage' or pid[1] not in _DTYPES:
            raise ValueError('it refers to something other than the values of a tensor')
        key, size = pid[2], pid[4]
        if not isinstance(key, str) or not isinstance(size, int) or size < 0 or (len(pid) > 5 and pid[5] is not None):
            raise ValueError('the description of a storage is not understood')
        return _Storage(key, _DTYPES[pid[1]], size)


def _checked(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """A `_Tensor` whose elements are inside its storage, none of them twice."""
    whole = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    numbers = (offset, *shape, *strides) if whole else (None,)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(strides):
        raise ValueError('the description of a tensor is not understood')
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size or (math.prod(shape) > 0 and last >= storage.size):
        raise ValueError(f'a tensor of shape {shape} lies outside its {storage.size} stored values')
    return _Tensor(storage, offset, shape, strides)


def decode(data: bytes) -> Any:
    """The content of a checkpoint file, tensors as NumPy arrays.

    Args:
      data: a file of `torch.save`, in the zip format or in the one before PyTorch 1.6.

    Returns:
      What was saved: dicts, lists and tuples of arrays, numbers and strings; inert objects in place of a Namespace or
      the like.

    Raises:
      ValueError: in one line without the file's name: the file is no checkpoint, is damaged, or asks for something
        other than weights.
    """
    try:
        content, storages = _decode_zip(data) if data[:2] == b'PK' else _decode_legacy(data)
        return _resolve(content, storages)
    except ValueError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error) as error:
        raise ValueError(f'truncated or not a PyTorch checkpoint ({error})') from None
    except Exception as error:  # a pickle can be broken in any way
        raise ValueError(f'damaged or not a PyTorch checkpoint ({type(error).__name__}: {error})') from None


def _decode_zip(data: bytes) -> tuple[Any, Mapping[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        roots = [name[: -len('data.pkl')] for name in names if name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise ValueError('a zip archive, but without the data.pkl of a PyTorch checkpoint')
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError('a compressed archive, which PyTorch never writes')
        root = roots[0]
        if root + 'byteorder' in names and archive.read(root + 'byteorder') != b'little':
            raise ValueError('written on a big-endian machine; save it anew on a common one')
        content = _Unpickler(io.BytesIO(archive.read(root + 'data.pkl'))).load()
        values = root + 'data/'
        return content, {name[len(values) :]: archive.read(name) for name in names if name.startswith(values)}


def _decode_legacy(data: bytes) -> tuple[Any, Mapping[str, bytes]]:
    file = io.BytesIO(data)
    if not data.startswith(b'\x80') or _Unpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError('not a PyTorch checkpoint (neither its zip format nor the one before 1.6)')
    if _Unpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError('an unknown version of the format before PyTorch 1.6')
    system = _Unpickler(file).load()
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise ValueError('written on a big-endian machine; save it anew on a common one')
    content = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    sizes = {storage.key: np.dtype(storage.dtype).itemsize for storage in _storages(content)}
    storages = {}
    for key in keys:
        (count,) = struct.unpack('<q', file.read(8))
        if key not in sizes or count < 0 or count * sizes[key] > len(data):
            raise ValueError('its list of values does not fit its tensors')
        storages[key] = file.read(count * sizes[key])
    return content, storages


def _storages(content: Any) -> list[_Storage]:
    found: dict[str, _Storage] = {}
    stack, seen = [content], set()
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, _Tensor):
            found[part.storage.key] = part.storage
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (list, tuple)):
            stack.extend(part)
    return list(found.values())


def _resolve(content: Any, storages: Mapping[str, bytes]) -> Any:
    """Replaces every `_Tensor` by its array."""
    if isinstance(content, _Tensor):
        storage = content.storage
        data = storages.get(storage.key)
        itemsize = np.dtype(storage.dtype).itemsize
        if data is None or len(data) != storage.size * itemsize:
            raise ValueError('truncated: the values of a tensor are missing')
        flat = np.frombuffer(data, storage.dtype)[content.offset :]
        strides = tuple(stride * itemsize for stride in content.strides)
        return np.lib.stride_tricks.as_strided(flat, content.shape, strides).copy()
    if isinstance(content, dict):
        resolved = StateDict({key: _resolve(value, storages) for key, value in content.items()})
        metadata = getattr(content, '_metadata', None)
        if isinstance(metadata, Mapping):
            resolved.metadata = dict(metadata)
        return resolved
    if isinstance(content, (list, tuple)):
        return type(content)(_resolve(value, storages) for value in content)
    return content


# -------------------------------------------------------------------------------------------------------------- writing


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None) -> bytes:
    """A file that `torch.load(..., weights_only=True)` reads as a state dict.

    Args:
      tensors: {name: f32 or i64 array}, in the order of the result.
      metadata: plain values (dicts, lists, strings, numbers), attached as the state dict's `_metadata`, where PyTorch
        keeps versions of modules; `load_state_dict` ignores keys that are no module's.

    Returns:
      The bytes in the zip format; equal for equal arguments.
    """
    stored = {np.dtype(np.float32): b'FloatStorage', np.dtype(np.int64): b'LongStorage'}
    program = [pickle.PROTO + b'\x02', _ORDERED_DICT, pickle.MARK]
    for number, (name, value) in enumerate(tensors.items()):
        strides = [math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim)]
        program += [_text(name), b'ctorch._utils\n_rebuild_tensor_v2\n', pickle.MARK]
        program += [pickle.MARK, _text('storage'), b'ctorch\n' + stored[value.dtype] + b'\n', _text(str(number))]
        program += [_text('cpu'), _integer(value.size), pickle.TUPLE, pickle.BINPERSID, _integer(0)]
        program += [pickle.MARK, *map(_integer, value.shape), pickle.TUPLE]
        program += [pickle.MARK, *map(_integer, strides), pickle.TUPLE]
        program += [pickle.NEWFALSE, _ORDERED_DICT, pickle.TUPLE, pickle.REDUCE]
    program.append(pickle.SETITEMS)
    if metadata:
        # Without its two bytes of protocol and its final STOP, a pickle is an expression of another.
        program += [pickle.dumps({'_metadata': dict(metadata)}, 2)[2:-1], pickle.BUILD]
    program.append(pickle.STOP)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        entries = {'data.pkl': b''.join(program), 'byteorder': b'little'}
        entries |= {f'data/{number}': value.tobytes() for number, value in enumerate(tensors.values())}
        entries['version'] = b'3\n'
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f'archive/{name}'), data)  # dated 1980: equal weights, equal bytes
    return file.getvalue()


_ORDERED_DICT = b'ccollections\nOrderedDict\n' + pickle.EMPTY_TUPLE + pickle.REDUCE


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _integer(number: int) -> bytes:
    return pickle.BININT + struct.pack('<i', number)
