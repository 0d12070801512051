"""The Triton kernels: new keys and values to their slots, and attention over the blocks where they lie.

A key of the pool lies at [slot, head, dim], and slot 16 b + i is token i of block b. All softmaxes are taken online in
powers of two; what several programs find out about one row is merged by log-sum-exp. `WINDOWED` and `CAPPED` say
whether `window` and `softcap` count. `WIDE` multiplies in float32: the interpreter, which runs these kernels on the
CPU, knows no products of bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr  # by this very name: Triton reads it as text

# The language is one of decorators and names without types.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportUntypedFunctionDecorator=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# ruff: noqa: PLR0913 - a kernel takes what it needs, one by one


@triton.jit
def put(
    key, value, keys, values, slots, key_head, key_row, value_head, value_row, HEADS: constexpr, KEY_DIM: constexpr,
    VALUE_DIM: constexpr, HEADS_PAD: constexpr, KEY_PAD: constexpr, VALUE_PAD: constexpr,
):  # fmt: skip
    """One program a row: its key and value to its slot; a row with a negative slot has none."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    heads = tl.arange(0, HEADS_PAD)[:, None]
    written = heads * 0 + slot >= 0  # as a block: Triton 3.9's interpreter makes numbers of a single truth value
    at = tl.arange(0, KEY_PAD)[None, :]
    mask = (heads < HEADS) & (at < KEY_DIM) & written
    found = tl.load(key + heads * key_head + row * key_row + at, mask=mask, other=0.0)
    tl.store(keys + (slot * HEADS + heads) * KEY_DIM + at, found, mask=mask)
    at = tl.arange(0, VALUE_PAD)[None, :]
    mask = (heads < HEADS) & (at < VALUE_DIM) & written
    found = tl.load(value + heads * value_head + row * value_row + at, mask=mask, other=0.0)
    tl.store(values + (slot * HEADS + heads) * VALUE_DIM + at, found, mask=mask)


@triton.jit
def fold(
    q, keys, values, table, head, at, inside, visible, best, total, acc, scale, softcap, KV_HEADS: constexpr,
    KEY_DIM: constexpr, VALUE_DIM: constexpr, KEY_PAD: constexpr, VALUE_PAD: constexpr, BLOCK: constexpr,
    CAPPED: constexpr, WIDE: constexpr,
):  # fmt: skip
    """Take a tile of tokens into a running softmax.

    `at` and `inside` ([TILE]) say which tokens of the table and whether they exist, `visible` ([M, TILE]) who sees
    them; `best`, `total` ([M]) and `acc` ([M, VALUE_PAD]) are the softmax so far.
    """
    block = tl.load(table + at // BLOCK, mask=inside, other=0)
    place = (block * BLOCK + at % BLOCK) * KV_HEADS + head
    dims = tl.arange(0, KEY_PAD)
    k = tl.load(
        keys + place[:, None] * KEY_DIM + dims[None, :], mask=inside[:, None] & (dims[None, :] < KEY_DIM), other=0.0
    )
    if WIDE:
        k = k.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if CAPPED:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))
    highest = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(best - base)
    dims = tl.arange(0, VALUE_PAD)
    v = tl.load(
        values + place[:, None] * VALUE_DIM + dims[None, :],
        mask=inside[:, None] & (dims[None, :] < VALUE_DIM),
        other=0.0,
    )
    if WIDE:
        v = v.to(tl.float32)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return highest, total * fade + tl.sum(weights, 1), acc


@triton.jit
def leave(best, total, acc, partial, weights, place, mask, VALUE_DIM: constexpr, VALUE_PAD: constexpr):
    """Write a softmax over a part of the tokens: its mean values and, as base-2 logarithm, what it weighs."""
    whole = tl.where(total == 0.0, 1.0, total)
    dims = tl.arange(0, VALUE_PAD)
    tl.store(
        partial + place[:, None] * VALUE_DIM + dims[None, :],
        acc / whole[:, None],
        mask=mask[:, None] & (dims[None, :] < VALUE_DIM),
    )
    tl.store(weights + place, tl.where(total == 0.0, float("-inf"), best + tl.log2(whole)), mask=mask)


@triton.jit
def decode(
    query, keys, values, offsets, tables, lengths, shared, partial, weights, query_head, query_row, scale, softcap,
    window, SPLITS: constexpr, PARTS: constexpr, KV_HEADS: constexpr, GROUP: constexpr, KEY_DIM: constexpr,
    VALUE_DIM: constexpr, M: constexpr, KEY_PAD: constexpr, VALUE_PAD: constexpr, TILE: constexpr, BLOCK: constexpr,
    WINDOWED: constexpr, CAPPED: constexpr, WIDE: constexpr,
):  # fmt: skip
    """A program a row, KV head and split: the query heads of the KV head attend to one part of what is the row's own.

    How long a part is follows from the row's length when the kernel runs, so that one grid serves all lengths.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    begin = tl.load(shared + row)
    if WINDOWED:
        begin = tl.maximum(begin, length - window)
    tiles = (length - begin + TILE - 1) // TILE
    each = (tiles + SPLITS - 1) // SPLITS * TILE
    low = begin + split * each
    high = tl.minimum(length, low + each)
    member = tl.arange(0, M)
    dims = tl.arange(0, KEY_PAD)
    q = tl.load(
        query + (head * GROUP + member[:, None]) * query_head + row * query_row + dims[None, :],
        mask=(member[:, None] < GROUP) & (dims[None, :] < KEY_DIM),
        other=0.0,
    )
    if WIDE:
        q = q.to(tl.float32)
    table = tables + tl.load(offsets + row)
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, VALUE_PAD], tl.float32)
    for start in range(low, high, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < high
        visible = inside[None, :] & (member[:, None] < M)
        best, total, acc = fold(
            q, keys, values, table, head, at, inside, visible, best, total, acc, scale, softcap,
            KV_HEADS, KEY_DIM, VALUE_DIM, KEY_PAD, VALUE_PAD, BLOCK, CAPPED, WIDE,
        )  # fmt: skip
    place = (row * KV_HEADS * GROUP + head * GROUP + member) * PARTS + split
    leave(best, total, acc, partial, weights, place, member < GROUP, VALUE_DIM, VALUE_PAD)


@triton.jit
def prefix(
    query, keys, values, offsets, tables, lengths, units, partial, weights, query_head, query_row, scale, softcap,
    window, SPLITS: constexpr, FIRST: constexpr, PARTS: constexpr, KV_HEADS: constexpr, GROUP: constexpr,
    KEY_DIM: constexpr, VALUE_DIM: constexpr, M: constexpr, KEY_PAD: constexpr, VALUE_PAD: constexpr, TILE: constexpr,
    BLOCK: constexpr, WINDOWED: constexpr, CAPPED: constexpr, WIDE: constexpr,
):  # fmt: skip
    """A program a unit, KV head and split: rows that begin with the same blocks attend to a part of these together.

    A unit is [first row, row behind the last, tokens]; at most M // GROUP rows. A unit of no rows is padding.
    """
    unit = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(units + unit * 3)
    behind = tl.load(units + unit * 3 + 1)
    tokens = tl.load(units + unit * 3 + 2)
    if first < behind:
        tiles = (tokens + TILE - 1) // TILE
        each = (tiles + SPLITS - 1) // SPLITS * TILE
        low = split * each
        high = tl.minimum(tokens, low + each)
        lane = tl.arange(0, M)
        row = first + lane // GROUP
        member = (lane < M // GROUP * GROUP) & (row < behind)
        heads = head * GROUP + lane % GROUP
        dims = tl.arange(0, KEY_PAD)
        q = tl.load(
            query + heads[:, None] * query_head + row[:, None] * query_row + dims[None, :],
            mask=member[:, None] & (dims[None, :] < KEY_DIM),
            other=0.0,
        )
        if WIDE:
            q = q.to(tl.float32)
        since = tl.zeros([M], tl.int64)
        if WINDOWED:
            since += tl.load(lengths + row, mask=member, other=0) - window
        table = tables + tl.load(offsets + first)
        best = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, VALUE_PAD], tl.float32)
        for start in range(low, high, TILE):
            at = start + tl.arange(0, TILE)
            inside = at < high
            visible = inside[None, :] & (at[None, :] >= since[:, None])
            best, total, acc = fold(
                q, keys, values, table, head, at, inside, visible, best, total, acc, scale, softcap,
                KV_HEADS, KEY_DIM, VALUE_DIM, KEY_PAD, VALUE_PAD, BLOCK, CAPPED, WIDE,
            )  # fmt: skip
        place = (row * KV_HEADS * GROUP + heads) * PARTS + FIRST + split
        leave(best, total, acc, partial, weights, place, member, VALUE_DIM, VALUE_PAD)


@triton.jit
def merge(
    partial, weights, shared, out, SPLITS: constexpr, PARTS: constexpr, HEADS: constexpr, VALUE_DIM: constexpr,
    PARTS_PAD: constexpr, VALUE_PAD: constexpr,
):  # fmt: skip
    """A program a row and head: the parts of its softmax in one; a row that saw nothing gets zeros.

    The parts from `SPLITS` on are of a shared prefix and count only where the row has one.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.arange(0, PARTS_PAD)
    there = (part < SPLITS) | ((part < PARTS) & (part * 0 + tl.load(shared + row) > 0))
    place = (row * HEADS + head) * PARTS + part
    weight = tl.load(weights + place, mask=there, other=float("-inf"))
    highest = tl.max(weight, 0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp2(weight - base)
    dims = tl.arange(0, VALUE_PAD)
    found = tl.load(
        partial + place[:, None] * VALUE_DIM + dims[None, :],
        mask=(weight[:, None] > 0.0) & (dims[None, :] < VALUE_DIM),
        other=0.0,
    )
    total = tl.sum(weight, 0)
    mean = tl.sum(found * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (row * HEADS + head) * VALUE_DIM + dims, mean.to(out.dtype.element_ty), mask=dims < VALUE_DIM)


@triton.jit
def chunk(
    query, keys, values, tables, pieces, out, query_head, query_row, scale, softcap, window, HEADS: constexpr,
    KV_HEADS: constexpr, KEY_DIM: constexpr, VALUE_DIM: constexpr, M: constexpr, KEY_PAD: constexpr,
    VALUE_PAD: constexpr, TILE: constexpr, BLOCK: constexpr, WINDOWED: constexpr, CAPPED: constexpr, WIDE: constexpr,
):  # fmt: skip
    """A program a piece and query head: up to M consecutive tokens of a context attend to all that is before them.

    A piece is [first packed row, rows, position of the first, where the context's table begins].
    """
    piece = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(pieces + piece * 4)
    rows = tl.load(pieces + piece * 4 + 1)
    position = tl.load(pieces + piece * 4 + 2)
    table = tables + tl.load(pieces + piece * 4 + 3)
    lane = tl.arange(0, M)
    dims = tl.arange(0, KEY_PAD)
    q = tl.load(
        query + head * query_head + (first + lane[:, None]) * query_row + dims[None, :],
        mask=(lane[:, None] < rows) & (dims[None, :] < KEY_DIM),
        other=0.0,
    )
    if WIDE:
        q = q.to(tl.float32)
    kv = head // (HEADS // KV_HEADS)
    own = position + lane
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, VALUE_PAD], tl.float32)
    high = position + rows
    low = high * 0
    plain = (position + 1) // TILE * TILE
    if WINDOWED:  # tiles begin where the first token's window does, and every tile has a border in it
        low = tl.maximum(position - window + 1, 0) // TILE * TILE
        plain = low
    for start in range(low, plain, TILE):  # everybody sees all of these
        at = start + tl.arange(0, TILE)
        inside = at < high
        visible = inside[None, :] & (lane[:, None] < M)
        best, total, acc = fold(
            q, keys, values, table, kv, at, inside, visible, best, total, acc, scale, softcap,
            KV_HEADS, KEY_DIM, VALUE_DIM, KEY_PAD, VALUE_PAD, BLOCK, CAPPED, WIDE,
        )  # fmt: skip
    for start in range(plain, high, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < high
        visible = inside[None, :] & (at[None, :] <= own[:, None])
        if WINDOWED:
            visible = visible & (at[None, :] > own[:, None] - window)
        best, total, acc = fold(
            q, keys, values, table, kv, at, inside, visible, best, total, acc, scale, softcap,
            KV_HEADS, KEY_DIM, VALUE_DIM, KEY_PAD, VALUE_PAD, BLOCK, CAPPED, WIDE,
        )  # fmt: skip
    whole = tl.where(total == 0.0, 1.0, total)
    dims = tl.arange(0, VALUE_PAD)
    tl.store(
        out + ((first + lane[:, None]) * HEADS + head) * VALUE_DIM + dims[None, :],
        (acc / whole[:, None]).to(out.dtype.element_ty),
        mask=(lane[:, None] < rows) & (dims[None, :] < VALUE_DIM),
    )
