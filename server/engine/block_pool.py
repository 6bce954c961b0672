"""Which KV block belongs to whom, and which of them can be found again by what they hold."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain

from server.engine.sequence import Root, Sequence

Key = tuple[int | Root, tuple[int, ...]]  # content id of the parent, or of a first block the root; its own tokens


@dataclass(frozen=True, slots=True)
class Content:
    """What a full block holds: its tokens after all that came before them. An id is never issued twice."""

    id: int
    block: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning of a sequence that the cache has: as many blocks as content ids."""

    blocks: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)


class BlockPool:
    """Counts the references to `total` blocks and remembers, while there is room, what released ones hold.

    A block is *used* while sequences hold it; else *cached* if it can be found again, or *free*:
    `free + cached + used == total`. A full block is found under its parent's content id and its own tokens, which
    is exact: there is no hash to collide, and as an evicted block's content id is gone for good, whatever hung
    from it can no longer be found.
    """

    def __init__(self, total: int, block_size: int = 16, prefix_cache: bool = True) -> None:
        self.total = total
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._references = [0] * total
        self._free = list(range(total - 1, -1, -1))  # a stack, last freed first: memory never touched stays untouched
        self._cached: dict[int, None] = {}  # least recently used first
        self._index: dict[Key, Content] = {}
        self._keys: list[Key | None] = [None] * total  # block -> its place in the index
        self._last_content = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self._references.count(0)

    @property
    def available(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free) + len(self._cached)

    def span(self, length: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-length // self.block_size)

    def key_after(self, sequence: Sequence, contents: list[int], stop: int) -> Key | None:
        """Under what the block that follows those with these content ids is found, if it is full below `stop`."""
        start = len(contents) * self.block_size
        end = start + self.block_size
        if end > stop or not self.prefix_cache:
            return None
        return contents[-1] if contents else sequence.root, tuple(sequence.tokens[start:end])

    def next_key(self, sequence: Sequence, prefix: Prefix) -> Key | None:
        """What the sequence could use next."""
        return self.key_after(sequence, prefix.contents, sequence.reusable)

    def find(self, sequence: Sequence) -> Prefix:
        """The longest beginning that is cached. Takes nothing: the blocks may be gone after the next `extend`."""
        prefix = Prefix()
        while key := self.next_key(sequence, prefix):
            content = self._index.get(key)
            if content is None:
                break
            prefix.blocks.append(content.block)
            prefix.contents.append(content.id)
        return prefix

    def cost(self, sequence: Sequence, prefix: Prefix) -> int:
        """How many of the available blocks a start of the sequence with this prefix takes."""
        shared = sum(self._references[block] > 0 for block in prefix.blocks)
        return self.span(len(sequence.tokens)) - shared

    def share(self, sequence: Sequence, prefix: Prefix) -> None:
        """Starts the sequence with blocks that `find` has just found for it."""
        assert not sequence.blocks, "already started"
        for block in prefix.blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1
        sequence.blocks.extend(prefix.blocks)
        sequence.contents.extend(prefix.contents)
        sequence.computed = len(prefix.blocks) * self.block_size

    def missing(self, sequence: Sequence, more: int) -> int:
        """Blocks that the sequence lacks for all its tokens and so many more; below zero where it has some to spare."""
        return self.span(len(sequence.tokens) + more) - len(sequence.blocks)

    def extend(self, sequence: Sequence, more: int = 0) -> bool:
        """Gives the sequence blocks for all its tokens and so many more, or nothing if there are not enough."""
        missing = self.missing(sequence, more)
        if missing > self.available:
            return False
        sequence.blocks.extend(self._take() for _ in range(missing))
        return True

    def commit(self, sequence: Sequence) -> None:
        """Makes the full blocks that are computed findable.

        Where another block already holds the same, that one stays the findable one and the chain goes on from it.
        """
        while key := self.key_after(sequence, sequence.contents, sequence.computed):
            if key not in self._index:
                block = sequence.blocks[len(sequence.contents)]
                self._last_content += 1
                self._index[key] = Content(self._last_content, block)
                self._keys[block] = key
            sequence.contents.append(self._index[key].id)

    def forget(self, sequence: Sequence) -> None:
        """Lets nobody find the sequence's blocks again, for what they hold is not to be trusted."""
        for block in sequence.blocks:
            self._unlist(block)

    def release(self, sequence: Sequence) -> None:
        """Takes back all blocks; those that can be found keep what they hold until their room is needed."""
        for block in reversed(sequence.blocks):  # the tail is evicted before what it hangs from
            assert self._references[block] > 0, "released twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)
        sequence.blocks = []
        sequence.contents = []
        sequence.computed = 0

    def check(self, sequences: Collection[Sequence]) -> str | None:
        """What is wrong with the books, given all sequences that hold blocks, or None. O(total + blocks held)."""
        return self._check_references(sequences) or self._check_index() or self._check_contents(sequences)

    def _take(self) -> int:
        """A block whose old content is void: a free one, else the least recently used of the cached."""
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            self._unlist(block)
        self._references[block] = 1
        return block

    def _retire(self, block: int) -> None:
        if self._keys[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _unlist(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._index[key]
            self._keys[block] = None

    def _check_references(self, sequences: Collection[Sequence]) -> str | None:
        held = [0] * self.total
        for block in chain.from_iterable(sequence.blocks for sequence in sequences):
            held[block] += 1
        if held != self._references:
            return f"references are {self._references}, but the sequences hold {held}"
        if self.free + self.cached + self.used != self.total:
            return f"free {self.free} + cached {self.cached} + used {self.used} is not {self.total}"
        idle = {*self._free, *self._cached}
        if len(idle) != self.available or any(held[block] for block in idle):
            return f"free {self._free} and cached {[*self._cached]} overlap, or are held: {held}"
        return None

    def _check_index(self) -> str | None:
        if len(self._index) != self.total - self._keys.count(None):
            return f"{len(self._index)} contents are listed, but {self.total - self._keys.count(None)} blocks have some"
        for key, content in self._index.items():
            if self._keys[content.block] is not key:
                return f"content {content.id} is listed under a key that block {content.block} does not have"
        for block in self._cached:
            if self._keys[block] is None:
                return f"block {block} is kept as cached, but cannot be found"
        for block in self._free:
            if self._keys[block] is not None:
                return f"block {block} is free, but can be found"
        return None

    def _check_contents(self, sequences: Collection[Sequence]) -> str | None:
        for sequence in sequences:
            committed = len(sequence.contents)
            if committed > sequence.computed // self.block_size:
                return (
                    f"sequence {sequence.id} has {committed} blocks committed, but {sequence.computed} tokens computed"
                )
            for block, content in zip(sequence.blocks, sequence.contents, strict=False):
                key = self._keys[block]
                if key is not None and self._index[key].id != content:
                    return f"sequence {sequence.id} takes block {block} for content {content}, which it is not"
            for block in sequence.blocks[committed:]:
                if self._references[block] > 1 or self._keys[block] is not None:
                    return f"sequence {sequence.id} still fills block {block}, which others can read"
        return None
