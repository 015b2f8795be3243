"""Where a tile of rows lies, what it sees, and how its rows are loaded and turned."""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.tiles import turn


@triton.jit
def locate(tiles, ends, offsets, histories, longest, tile, ROWS: tl.constexpr):
    """Start and length of the tile's history, and the tile's first row in it; tiles past the last have length 0."""
    history = tl.load(tiles + tile)
    alive = history < histories
    start = tl.load(offsets + history, mask=alive, other=0).to(tl.int64)
    length = tl.load(offsets + history + 1, mask=alive, other=0).to(tl.int64) - start
    before = tl.load(ends + history - 1, mask=alive & (history > 0), other=0)
    first = ((tile - before) * ROWS).to(tl.int32)
    length = tl.where(alive & (first < longest), tl.minimum(length, longest), 0).to(tl.int32)
    return start, length, tl.where(length > 0, first, 0)


@triton.jit
def span(first, length, back, ahead, ROWS: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr):
    """What the rows from `first` on see, when each sees `back` rows before and `ahead` rows after it.

        low      inner       outer      high        far       length
        |  some  |   all of   |   some   |   none    |  global   |
        |  see   |  them see  |   see    |   sees    |  rows     |

    Between `inner` and `outer` there are whole steps, and no mask is needed.
    """
    low, high = tl.maximum(first - back, 0), tl.minimum(first + ROWS + ahead, length)
    if S > 0:
        has_global = first + ROWS > length - S
        low, high = tl.where(has_global, 0, low), tl.where(has_global, length, high)
    inner = tl.maximum(low, first + ROWS - 1 - back)
    steps = tl.maximum(tl.minimum(first + ahead + 1, length) - inner, 0) // STEP
    inner = tl.where(steps > 0, inner, low)
    outer = inner + steps * STEP
    far = tl.maximum(high, length - S) if S > 0 else length
    return low, inner, outer, high, far


@triton.jit
def masked_steps(low, inner, outer, high, far, length, STEP: tl.constexpr):
    """Steps that need a mask, of the three ranges together."""
    return tl.cdiv(inner - low, STEP) + tl.cdiv(high - outer, STEP) + tl.cdiv(length - far, STEP)


@triton.jit
def masked_step(n, low, inner, outer, high, far, length, STEP: tl.constexpr, S: tl.constexpr):
    """First row of the n-th of them, and where its range ends."""
    n = tl.cast(n, tl.int32)
    n_low, n_high = tl.cdiv(inner - low, STEP), tl.cdiv(high - outer, STEP)
    first = tl.where(n < n_low, low + n * STEP, outer + (n - n_low) * STEP)
    end = tl.where(n < n_low, inner, high)
    if S > 0:
        is_far = n >= n_low + n_high
        first, end = tl.where(is_far, far + (n - n_low - n_high) * STEP, first), tl.where(is_far, length, end)
    return first, end


@triton.jit
def sees(queries, keys, length, back, ahead, S: tl.constexpr):
    """Whether a row sees another."""
    distance = queries - keys
    seen = (distance <= back) & (distance >= -ahead)
    if S > 0:
        seen = seen | (queries >= length - S) | (keys >= length - S)
    return seen


@triton.jit
def load_rows(
    place,
    count,
    STRIDE: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A tile's rows from `place` on; zeros from row `count` on where that is asked for, and right of the head."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    there = place + rows[:, None] * STRIDE + columns[None, :]
    if MASKED:
        x = tl.load(there, mask=(rows < count)[:, None] & (columns < E)[None, :], other=0.0)
    elif E < WIDTH:
        x = tl.load(there, mask=(columns < E)[None, :], other=0.0)
    else:
        x = tl.load(there)
    return x


@triton.jit
def turn_rows(
    x,
    cos,
    sin,
    first,
    count,
    sign,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Turns rows by the positions from `first` on; with a negative sign, back."""
    HALF: tl.constexpr = E // 2
    c = load_rows(cos + first * HALF, count, HALF, HALF, ROWS, WIDTH // 2, MASKED)
    s = load_rows(sin + first * HALF, count, HALF, HALF, ROWS, WIDTH // 2, MASKED)
    return turn(x.to(tl.float32), c, s * sign, ROWS, WIDTH)
