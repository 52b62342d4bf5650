"""Pickles as inert data: nothing that a pickle names is imported, called or set.

A subclass of pickle.Unpickler that limits `find_class` is not enough. The machine inside of it is C: 2 MB of nested
tuples as a key of a dict overflow its stack, a nine-byte instruction makes it allocate any number of bytes, and one
index into its memo the memory for all the indices before. This one knows the instructions that data needs, and counts.
"""

import inspect
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tljax.weights.formats.cursor import Cursor
from tljax.weights.formats.inert import Name, Record, fill
from tljax.weights.formats.weight_file import DAMAGED

# 128 bits: the largest that torch.save writes is its mark of 77.
_MAX_INTEGER_BITS = 128

_PUSH_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


class Machine:
    """Reads one pickle.

    Args:
        allowed: name ("module attribute") to what stands for a call of it, a function of the arguments; None where the
            name may be mentioned and not called.
        persistent: what stands for the objects that the pickle says are stored elsewhere.
    """

    def __init__(self, allowed: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any]):
        self._allowed = allowed
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._count: Callable[..., None] = lambda **_: None

    def read(self, stream: Cursor) -> Any:
        """Return the value of the pickle that begins at the cursor, which moves to its end.

        Raises:
            ValueError: the pickle is damaged, names anything that is not allowed, or needs an instruction that data
                does not.
        """
        self._count = stream.count
        for operation, argument in _operations(stream):
            self._count(characters=len(argument) if isinstance(argument, str | bytes) else 0)
            name = operation.name
            if name == "STOP":
                break
            if name in _PUSH_ARGUMENT:
                self._push_argument(argument)
            elif name in _PUSH_NEW:
                self._stack.append(_PUSH_NEW[name]())
            elif name in _TUPLES:
                self._stack.append(tuple(self._pop_many(_TUPLES[name])))
            elif name not in _IGNORED:
                self._run(name, argument)
        return self._pop()

    def _run(self, name: str, argument: Any) -> None:
        method = _METHODS.get(name)
        if method is None:
            raise ValueError(f"its pickle has the instruction {name}, which is refused; nothing of it was run")
        method(self, argument)

    def _push_argument(self, argument: Any) -> None:
        if isinstance(argument, int) and argument.bit_length() > _MAX_INTEGER_BITS:
            raise ValueError(f"its pickle has an integer of {argument.bit_length()} bits; {DAMAGED}")
        self._stack.append(argument)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError(f"its pickle takes more values than it has; {DAMAGED}")
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError(f"its pickle ends a list that it did not begin; {DAMAGED}")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        value = self._pop()
        self._stack.append(value)
        if not isinstance(value, kind):
            raise ValueError(f"its pickle fills a {type(value).__name__} as if it were a {kind.__name__}; {DAMAGED}")
        return value

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _drop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _duplicate(self, _: Any) -> None:
        self._top(object)
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top(object)

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top(object)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"its pickle repeats a value that it did not keep; {DAMAGED}")
        self._stack.append(self._memo[index])

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _dict(self, _: Any) -> None:
        held: dict[Any, Any] = {}
        fill(held, _pairs(self._pop_to_mark()))
        self._stack.append(held)

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _append_many(self, _: Any) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def _set_item(self, _: Any) -> None:
        values = self._pop_many(2)
        fill(self._top(dict), _pairs(values))

    def _set_items(self, _: Any) -> None:
        values = self._pop_to_mark()
        fill(self._top(dict), _pairs(values))

    def _global(self, text: str) -> None:
        if text not in self._allowed:
            name = text.replace(" ", ".")[:200]
            raise ValueError(
                f"its pickle asks for {name!r}, which is refused; nothing of it was run. If you trust the file, save "
                "only its state dict again with torch, or as safetensors"
            )
        self._stack.append(Name(text))

    def _stack_global(self, _: Any) -> None:
        names = self._pop_many(2)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"its pickle names something by values that are no text; {DAMAGED}")
        self._global(" ".join(names))

    def _call(self, _: Any) -> None:
        called, arguments = self._pop_many(2)
        make = self._allowed.get(called.text) if isinstance(called, Name) else None
        if make is None or not isinstance(arguments, tuple):
            what = repr(called.text) if isinstance(called, Name) else f"a {type(called).__name__}"
            raise ValueError(f"its pickle calls {what}, which is refused; nothing of it was run")
        # A call may copy what it is given, and a value that is kept can be given again in two bytes.
        for argument in arguments:
            self._count(items=len(argument) if isinstance(argument, str | bytes | list | tuple | dict) else 1)
        try:
            inspect.signature(make).bind(*arguments)
        except TypeError as error:
            raise ValueError(f"its pickle calls {called.text!r} with other arguments than torch; {DAMAGED}") from error
        self._stack.append(make(*arguments))

    def _set_state(self, _: Any) -> None:
        state = self._pop()
        target = self._top(object)
        if isinstance(target, Record) and isinstance(state, dict):
            self._count(items=len(state))
            target.update(state)
        elif isinstance(target, Record):
            target.state = state

    def _stored_elsewhere(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


# What instances, extensions of the interpreter and its buffers need is not here, and so refused.
_METHODS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark, "POP": Machine._drop, "POP_MARK": Machine._drop_to_mark, "DUP": Machine._duplicate,
    "PUT": Machine._put, "BINPUT": Machine._put, "LONG_BINPUT": Machine._put, "MEMOIZE": Machine._memoize,
    "GET": Machine._get, "BINGET": Machine._get, "LONG_BINGET": Machine._get,
    "TUPLE": Machine._tuple, "LIST": Machine._list, "FROZENSET": Machine._list, "DICT": Machine._dict,
    "APPEND": Machine._append, "APPENDS": Machine._append_many, "ADDITEMS": Machine._append_many,
    "SETITEM": Machine._set_item, "SETITEMS": Machine._set_items,
    "GLOBAL": Machine._global, "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._call, "NEWOBJ": Machine._call, "BUILD": Machine._set_state,
    "BINPERSID": Machine._stored_elsewhere,
}  # fmt: skip


def _operations(stream: Cursor) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            yield operation, argument
    except (ValueError, Warning) as error:  # A warning, where these are errors, is of an escape in an old text.
        raise ValueError(f"its pickle is damaged ({str(error)[:200]}); download it again") from error


def _pairs(values: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(values) % 2:
        raise ValueError(f"its pickle has a key without a value; {DAMAGED}")
    return zip(values[::2], values[1::2], strict=True)
