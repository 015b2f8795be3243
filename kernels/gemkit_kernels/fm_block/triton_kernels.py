"""`fm_block` in Triton: an example is one tile; nothing but the inputs and outputs touches memory.

The backward pass computes the products anew from x. Both passes run on a fixed number of programs, each of which takes
many examples in turn: Y, gain and bias are read once, and sums over examples (gradients of Y, gain and bias) stay in
registers until a program is done. It then writes its part; parts are added up afterwards, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _projection(y, ranks, rows, k: tl.constexpr, n: tl.constexpr, KIND: tl.constexpr):
    """Y^T of one example, or of all."""
    tile = tl.load(y + ranks[:, None] * n + rows[None, :], mask=(ranks < k)[:, None] & (rows < n)[None, :], other=0.0)
    return tl.trans(tile.to(KIND))


@triton.jit
def _tokens(x, rows, columns, n: tl.constexpr, d: tl.constexpr):
    """Some columns of X of one example."""
    mask = (rows < n)[:, None] & (columns < d)[None, :]
    return tl.load(x + rows[:, None] * d + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _normed(products, valid, count, EPS: tl.constexpr):
    """LayerNorm of a whole tile without its gain and bias, and one over its standard deviation."""
    # Outside of `valid` products are 0.
    centred = tl.where(valid, products - tl.sum(products) / count, 0.0)
    r = tl.rsqrt(tl.sum(centred * centred) / count + EPS)
    return centred * r, r


@triton.jit(do_not_specialize=["batch", "programs"])
def fm_forward(
    x,
    y,
    gain,
    bias,
    out,
    batch,
    programs,
    n: tl.constexpr,
    d: tl.constexpr,
    k: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ATTENTIVE: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind: tl.constexpr = x.dtype.element_ty
    rows, ranks, columns = tl.arange(0, N), tl.arange(0, K), tl.arange(0, WIDTH)
    place = rows[:, None] * k + ranks[None, :]
    valid = (rows < n)[:, None] & (ranks < k)[None, :]
    scale = tl.load(gain + place, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + place, mask=valid, other=0.0).to(tl.float32)
    if not ATTENTIVE:
        projection = _projection(y, ranks, rows, k, n, kind)
    for i in tl.range(tl.program_id(0), batch, programs, num_stages=STAGES):
        example = tl.cast(i, tl.int64)
        if ATTENTIVE:
            projection = _projection(y + example * (k * n), ranks, rows, k, n, kind)
        tokens = _tokens(x + example * (n * d), rows, columns, n, d)
        compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
        products = tl.dot(tokens, compressed, input_precision=PRECISION)
        for part in range(1, PARTS):
            more = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
            also = tl.dot(tl.trans(more), projection, input_precision=PRECISION).to(kind)
            products = tl.dot(more, also, products, input_precision=PRECISION)
        normed, _ = _normed(products, valid, n * k, EPS)
        tl.store(out + example * (n * k) + place, (normed * scale + shift).to(kind), mask=valid)


@triton.jit(do_not_specialize=["batch", "programs"])
def fm_backward(
    x,
    y,
    gain,
    dout,
    dx,
    dy,
    sums,
    batch,
    programs,
    n: tl.constexpr,
    d: tl.constexpr,
    k: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ATTENTIVE: tl.constexpr,
    SUM_BIAS: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind: tl.constexpr = x.dtype.element_ty
    rows, ranks, columns = tl.arange(0, N), tl.arange(0, K), tl.arange(0, WIDTH)
    place = rows[:, None] * k + ranks[None, :]
    valid = (rows < n)[:, None] & (ranks < k)[None, :]
    if not ATTENTIVE:
        projection = _projection(y, ranks, rows, k, n, kind)
    dgain, dbias, dprojection = (
        tl.zeros([N, K], tl.float32),
        tl.zeros([N, K], tl.float32),
        tl.zeros([N, K], tl.float32),
    )
    for i in tl.range(tl.program_id(0), batch, programs, num_stages=STAGES):
        example = tl.cast(i, tl.int64)
        if ATTENTIVE:
            projection = _projection(y + example * (k * n), ranks, rows, k, n, kind)
            dprojection = tl.zeros([N, K], tl.float32)
        dnormed = tl.load(dout + example * (n * k) + place, mask=valid, other=0.0).to(tl.float32)
        tokens = _tokens(x + example * (n * d), rows, columns, n, d)
        compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
        products = tl.dot(tokens, compressed, input_precision=PRECISION)
        for part in range(1, PARTS):
            more = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
            also = tl.dot(tl.trans(more), projection, input_precision=PRECISION).to(kind)
            products = tl.dot(more, also, products, input_precision=PRECISION)
        normed, r = _normed(products, valid, n * k, EPS)
        dgain += dnormed * normed
        if SUM_BIAS:
            dbias += dnormed
        dnormed *= tl.load(gain + place, mask=valid, other=0.0).to(tl.float32)
        dproducts = dnormed - tl.sum(dnormed) / (n * k) - normed * (tl.sum(dnormed * normed) / (n * k))
        dproducts = tl.where(valid, r * dproducts, 0.0).to(kind)
        for part in range(PARTS):
            if PARTS > 1 or N * K > 2048:
                # Registers hold no more: x comes again, out of the cache.
                tokens = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
                compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
            dcompressed = tl.dot(tl.trans(tokens), dproducts, input_precision=PRECISION).to(kind)
            dtokens = tl.dot(dproducts, tl.trans(compressed), input_precision=PRECISION)
            dtokens = tl.dot(projection, tl.trans(dcompressed), dtokens, input_precision=PRECISION)
            dprojection = tl.dot(tokens, dcompressed, dprojection, input_precision=PRECISION)
            column = part * WIDTH + columns
            there = dx + example * (n * d) + rows[:, None] * d + column[None, :]
            tl.store(there, dtokens.to(kind), mask=(rows < n)[:, None] & (column < d)[None, :])
        if ATTENTIVE:
            there = dy + example * (k * n) + ranks[:, None] * n + rows[None, :]
            tl.store(there, tl.trans(dprojection), mask=(ranks < k)[:, None] & (rows < n)[None, :])
    part_of = sums + tl.program_id(0).to(tl.int64) * (3 * n * k)
    tl.store(part_of + place, dgain, mask=valid)
    if SUM_BIAS:
        tl.store(part_of + n * k + place, dbias, mask=valid)
    if not ATTENTIVE:
        there = part_of + 2 * n * k + ranks[:, None] * n + rows[None, :]
        tl.store(there, tl.trans(dprojection), mask=(ranks < k)[:, None] & (rows < n)[None, :])
