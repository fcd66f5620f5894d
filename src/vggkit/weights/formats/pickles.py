"""torch's pickles, interpreted without ever calling anything.

Python's own Unpickler calls what a pickle names, and lets a few bytes ask for gigabytes of memo;
torch's `weights_only` one allocates what a pickle asks for. Here a name is looked up in a list and
stands for nothing but itself, and a tensor becomes a record of where its values lie.
"""

import pickletools
import re
from collections.abc import Iterator
from typing import IO, Any, Final

from vggkit.weights.formats.stand_ins import (
    CodeInPickle,
    Inert,
    Odd,
    Stateful,
    Strided,
    find_storage,
    look_up,
    plain_key,
    reduce_call,
)

LIMIT_PICKLE_BYTES: Final = 64 * 2**20
"""A state dict's pickle takes some kilobytes; values lie outside it."""
_LIMIT_OPERATIONS: Final = 1_000_000
_LINE_BYTES: Final = 4096
_LITERALS: Final = re.compile(
    r"(BIN)?(INT|FLOAT|STRING|BYTES8?|UNICODE8?)|BININT[12]|LONG[14]?|BYTEARRAY8|SHORT_BIN(STRING|BYTES|UNICODE)"
)
_COLLECTIONS: Final = re.compile(
    r"EMPTY_(TUPLE|LIST|SET|DICT)|TUPLE[123]?|LIST|FROZENSET|DICT|APPENDS?|ADDITEMS|SETITEMS?"
)


class _Bounded:
    """A stream that gives no more than a pickle of weights may take."""

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        self._stream = stream
        self._limit = self._left = limit_bytes

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"its pickle takes more than {self._limit} bytes")

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(_LINE_BYTES)
        self._take(len(line))
        return line


def interpret(
    stream: IO[bytes],
    storages: dict[str, str] | None = None,
    *,
    machine: "Machine | None" = None,
    limit_bytes: int = LIMIT_PICKLE_BYTES,
) -> Any:
    """The value that one pickle at the stream's position stands for; the stream is left behind it.

    Args:
        stream: Where it stands.
        storages: Filled with the type of every storage it names, by key, used or not.
        machine: What makes the values; None: torch's stand-ins.
        limit_bytes: A pickle that takes more is refused.

    Raises CodeInPickle, and ValueError, LookupError, TypeError or EOFError for what is no whole pickle.
    """
    machine = machine or Machine({} if storages is None else storages)
    operations = _count(pickletools.genops(_Bounded(stream, limit_bytes)))  # type: ignore[arg-type]
    for operation, argument in operations:
        try:
            machine.step(operation, argument)
        except CodeInPickle as problem:
            raise CodeInPickle([*problem.names, *_list_names(operations)]) from None
    (value,) = machine.stack
    return value


def _count(operations: Any) -> Iterator[tuple[str, Any]]:
    for number, (operation, argument, _) in enumerate(operations):
        if number >= _LIMIT_OPERATIONS:
            raise ValueError(f"its pickle takes more than {_LIMIT_OPERATIONS} operations")
        yield operation.name, argument


def _list_names(operations: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """The names in what is left of a refused pickle, to tell a module from other code."""
    words: list[str] = []
    try:
        for operation, argument in operations:
            if operation in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif operation == "STACK_GLOBAL":
                yield ".".join(words[-2:])
            elif "UNICODE" in operation:
                words = [*words[-1:], argument]
    except (ValueError, EOFError):
        return


class Machine:
    """The pickle's stack and memo; what it makes of names is torch's."""

    def __init__(self, storages: dict[str, str]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, operation: str, argument: Any) -> None:
        match operation:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._items()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case _ if _LITERALS.fullmatch(operation):
                self.stack.append(argument)
            case _ if _COLLECTIONS.fullmatch(operation):
                self._collect(operation)
            case _:
                self.make(operation, argument)

    def _push(self, value: Any) -> None:
        # The stack may be another list once the value is made.
        self.stack.append(value)

    def _items(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _collect(self, operation: str) -> None:
        """Tuples, lists, sets (kept as lists) and dicts."""
        match operation:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation[-1])
                if len(self.stack) < count:
                    raise IndexError("too few values for a tuple")
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "TUPLE":
                self._push(tuple(self._items()))
            case "LIST" | "FROZENSET":
                self._push(self._items())
            case "DICT":
                self._push(_pair(self._items()))
            case "APPEND":
                item = self.stack.pop()
                self._extend([item])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._items())
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._update({plain_key(key): value})
            case "SETITEMS":
                self._update(_pair(self._items()))

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError("items for something that is no list")

    def _update(self, items: dict[Any, Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(items)
        elif not isinstance(target, Inert):
            raise TypeError("entries for something that is no mapping")

    def make(self, operation: str, argument: Any) -> None:
        """Names, and what is made of them; raises CodeInPickle."""
        match operation:
            case "GLOBAL":
                self.stack.append(look_up(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                self.stack.append(look_up(str(module), str(name)))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(reduce_call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
                self.stack.append(reduce_call(function, arguments))
            case "BUILD":
                state, target = self.stack.pop(), self.stack[-1]
                if not isinstance(target, dict | Inert | Strided | Odd):
                    raise TypeError("a state for something that has none")
                if isinstance(target, Stateful):
                    target.state = state
            case "BINPERSID":
                storage = find_storage(self.stack.pop())
                self.storages[storage.key] = storage.dtype
                self.stack.append(storage)
            case "INST":
                raise CodeInPickle([str(argument).replace(" ", ".", 1)])
            case _:
                raise CodeInPickle([f"pickle operation {operation}"])


def _pair(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without its value")
    return {plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
