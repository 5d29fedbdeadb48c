/* What stands between the matrix products of a transformer, a row at a time and in one pass each; float32. `rows.py` does
   the same with torch where this is not built. Widths are multiples of LANES, but for those of attention; at most 1024.
   Included once for each kind of processor, after what differs between them: NAME, KERNEL, INLINE, LANES, Floats,
   arithmetic, and

   power_of_two(n): 2^n of whole n from -126 to 127. nearest(x): whole numbers. reciprocal(x): 1 / x for x >= 1.
   where_negative(x, a, b): a where the sign of x is set, else b. where_less(x, bound, a, b): a where x < bound, else b.
   load_first(p, n, rest), store_first(p, n, x): the first n lanes.
   Words: uint32 lanes. word(n): n in each. numbered_lanes(): 0, 1, 2 and so on. WORD_SHIFT(x, bits): to the right.
   where_at_least(n, bound, x): x where n >= bound, unsigned, else 0. */
#include <string.h>

enum { MOST = 1024, BLOCK = 32 };

/* exp x for x up to 88; 0 below -87 */
INLINE Floats exponential(Floats x)
{
    const Floats low = all(-87.0f), bounded = larger(x, low);
    const Floats n = nearest(mul(bounded, all(1.44269504f)));
    Floats r = minus_product(n, all(0.693359375f), bounded);
    r = minus_product(n, all(-2.12194440e-4f), r);
    Floats p = all(1.0f / 5040);
    p = product_plus(p, r, all(1.0f / 720));
    p = product_plus(p, r, all(1.0f / 120));
    p = product_plus(p, r, all(1.0f / 24));
    p = product_plus(p, r, all(1.0f / 6));
    p = product_plus(p, r, all(0.5f));
    p = product_plus(p, r, all(1.0f));
    p = product_plus(p, r, all(1.0f));
    return where_less(x, low, all(0), mul(p, power_of_two(n)));
}

/* Share of a normal distribution below x, from exp(-x^2/2); Abramowitz and Stegun, 7.1.26: 7.5e-8 at most wrong */
INLINE Floats normal_below(Floats x, Floats bell)
{
    const Floats t = reciprocal(product_plus(size_of(x), all(0.3275911f * 0.70710678f), all(1.0f)));
    Floats p = all(0.5f * 1.061405429f);
    p = product_plus(p, t, all(0.5f * -1.453152027f));
    p = product_plus(p, t, all(0.5f * 1.421413741f));
    p = product_plus(p, t, all(0.5f * -0.284496736f));
    p = product_plus(p, t, all(0.5f * 0.254829592f));
    const Floats tail = mul(mul(p, t), bell);
    return where_negative(x, tail, sub(all(1.0f), tail));
}

INLINE Floats bell_of(Floats x) { return exponential(mul(mul(x, x), all(-0.5f))); }

INLINE Floats gelu(Floats x) { return mul(x, normal_below(x, bell_of(x))); }

INLINE Floats gelu_slope(Floats x)
{
    const Floats bell = bell_of(x);
    return product_plus(mul(x, all(0.39894228f)), bell, normal_below(x, bell));
}

/* Of dropout: which elements stay is a hash of their number and a key, so that nothing has to be remembered. */
typedef struct {
    uint64_t key;
    uint32_t bound;
} Drop;

INLINE Floats kept(Floats x, const Drop *drop, uint32_t number)
{
    if (drop->bound == 0)
        return x;
    Words h = word_sum(word(number), numbered_lanes());
    h = word_xor(word_product(h, word(0x9E3779B1u)), word((uint32_t)drop->key));
    h = word_xor(h, WORD_SHIFT(h, 16));
    h = word_product(h, word(0x85EBCA6Bu));
    h = word_sum(word_xor(h, WORD_SHIFT(h, 13)), word((uint32_t)(drop->key >> 32)));
    h = word_product(h, word(0xC2B2AE35u));
    h = word_xor(h, WORD_SHIFT(h, 16));
    return where_at_least(h, word(drop->bound), x);
}

/* x [n,width] to GELU, dropout, norm without weight. */
KERNEL void NAME(gelu_drop_norm)(const float *x, int64_t n, int64_t width, float eps, Drop drop, float *out, float *rstd)
{
    uint32_t number = 0;
    for (int64_t row = 0; row < n; ++row, x += width, out += width, number += (uint32_t)width) {
        Floats total = all(0), squares = all(0);
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = kept(gelu(load(x + c)), &drop, number + (uint32_t)c);
            store(out + c, y);
            total = add(total, y);
        }
        const Floats mean = all(sum(total) / (float)width);
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = sub(load(out + c), mean);
            squares = product_plus(y, y, squares);
        }
        rstd[row] = 1 / __builtin_sqrtf(sum(squares) / (float)width + eps);
        for (int64_t c = 0; c < width; c += LANES)
            store(out + c, mul(sub(load(out + c), mean), all(rstd[row])));
    }
}

/* grad of `gelu_drop_norm`, already times rstd, to that of x, in place; its sums over rows are added to `sums`. */
KERNEL void NAME(back_gelu_drop_norm)(float *grad, const float *normed, const float *x, int64_t n, int64_t width, Drop drop,
                                float *sums)
{
    uint32_t number = 0;
    float block[MOST];
    for (int64_t start = 0; start < n; start += BLOCK) {
        memset(block, 0, sizeof(float) * (size_t)width);
        for (int64_t row = start; row < n && row < start + BLOCK; ++row) {
            Floats one = all(0), two = all(0);
            for (int64_t c = 0; c < width; c += LANES) {
                const Floats g = load(grad + c);
                one = add(one, g);
                two = product_plus(g, load(normed + c), two);
            }
            const Floats mean = all(sum(one) / (float)width), slope = all(sum(two) / (float)width);
            for (int64_t c = 0; c < width; c += LANES) {
                Floats g = minus_product(slope, load(normed + c), sub(load(grad + c), mean));
                g = mul(kept(g, &drop, number + (uint32_t)c), gelu_slope(load(x + c)));
                store(grad + c, g);
                store(block + c, add(load(block + c), g));
            }
            grad += width, normed += width, x += width, number += (uint32_t)width;
        }
        for (int64_t c = 0; c < width; c += LANES)
            store(sums + c, add(load(sums + c), load(block + c)));
    }
}

/* Scores [n,length] to their softmax, in place, and with dropout to `out`. */
KERNEL void NAME(softmax_drop)(float *scores, int64_t n, int64_t length, Drop drop, float *out)
{
    uint32_t number = 0;
    const int64_t whole = length / LANES * LANES, rest = length - whole;
    const Floats lowest = all(-__builtin_inff());
    for (int64_t row = 0; row < n; ++row, scores += length, out += length, number += (uint32_t)length) {
        Floats top = lowest, total = all(0), last = lowest;
        for (int64_t c = 0; c < whole; c += LANES)
            top = larger(top, load(scores + c));
        if (rest) {
            last = load_first(scores + whole, rest, lowest);
            top = larger(top, last);
        }
        top = all(largest(top));
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats e = exponential(sub(load(scores + c), top));
            store(scores + c, e);
            total = add(total, e);
        }
        last = exponential(sub(last, top));
        if (rest)
            total = add(total, last);
        const Floats factor = all(1 / sum(total));
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats weight = mul(load(scores + c), factor);
            store(scores + c, weight);
            store(out + c, kept(weight, &drop, number + (uint32_t)c));
        }
        if (rest) {
            last = mul(last, factor);
            store_first(scores + whole, rest, last);
            store_first(out + whole, rest, kept(last, &drop, number + (uint32_t)whole));
        }
    }
}

/* grad of `out` of `softmax_drop` to that of the scores, in place. */
KERNEL void NAME(back_softmax_drop)(float *grad, const float *weights, int64_t n, int64_t length, Drop drop)
{
    uint32_t number = 0;
    const int64_t whole = length / LANES * LANES, rest = length - whole;
    for (int64_t row = 0; row < n; ++row, grad += length, weights += length, number += (uint32_t)length) {
        Floats total = all(0), last = all(0), own = all(0);
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats g = kept(load(grad + c), &drop, number + (uint32_t)c);
            store(grad + c, g);
            total = product_plus(g, load(weights + c), total);
        }
        if (rest) {
            last = kept(load_first(grad + whole, rest, all(0)), &drop, number + (uint32_t)whole);
            own = load_first(weights + whole, rest, all(0));
            total = product_plus(last, own, total);
        }
        const Floats mean = all(sum(total));
        for (int64_t c = 0; c < whole; c += LANES)
            store(grad + c, mul(sub(load(grad + c), mean), load(weights + c)));
        if (rest)
            store_first(grad + whole, rest, mul(sub(last, mean), own));
    }
}

/* GELU of x [n,width] times factor plus offset, both [width], or of x where factor is NULL. */
KERNEL void NAME(line_gelu)(const float *x, const float *factor, const float *offset, int64_t n, int64_t width, float *out)
{
    for (int64_t row = 0; row < n; ++row, x += width, out += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = load(x + c);
            store(out + c, gelu(factor ? product_plus(y, load(factor + c), load(offset + c)) : y));
        }
}

/* grad of `line_gelu`, in place to that of the line; the sums over rows of it, and of it times x, are added to
   d_offset and d_factor; to_x: it times factor, may be NULL. Without a factor there are only the first sums. */
KERNEL void NAME(back_line_gelu)(float *grad, const float *x, const float *factor, const float *offset, int64_t n, int64_t width,
                           float *d_offset, float *d_factor, float *to_x)
{
    float one[MOST], two[MOST];
    for (int64_t start = 0; start < n; start += BLOCK) {
        memset(one, 0, sizeof(float) * (size_t)width);
        memset(two, 0, sizeof(float) * (size_t)width);
        for (int64_t row = start; row < n && row < start + BLOCK; ++row, grad += width, x += width) {
            for (int64_t c = 0; c < width; c += LANES) {
                const Floats y = load(x + c), f = factor ? load(factor + c) : all(1);
                const Floats line = factor ? product_plus(y, f, load(offset + c)) : y;
                const Floats g = mul(load(grad + c), gelu_slope(line));
                store(grad + c, g);
                store(one + c, add(load(one + c), g));
                if (factor) {
                    store(two + c, product_plus(g, y, load(two + c)));
                    if (to_x)
                        store(to_x + c, mul(g, f));
                }
            }
            if (to_x)
                to_x += width;
        }
        for (int64_t c = 0; c < width; c += LANES) {
            store(d_offset + c, add(load(d_offset + c), load(one + c)));
            if (factor)
                store(d_factor + c, add(load(d_factor + c), load(two + c)));
        }
    }
}

/* Sums over the rows of x [n,width] minus `origin`, and of the squares, added to `sums` and `squares`. */
KERNEL void NAME(add_moments)(const float *x, const float *origin, int64_t n, int64_t width, double *sums, double *squares)
{
    float one[MOST], two[MOST];
    for (int64_t start = 0; start < n; start += BLOCK) {
        memset(one, 0, sizeof(float) * (size_t)width);
        memset(two, 0, sizeof(float) * (size_t)width);
        for (int64_t row = start; row < n && row < start + BLOCK; ++row, x += width)
            for (int64_t c = 0; c < width; c += LANES) {
                const Floats y = sub(load(x + c), load(origin + c));
                store(one + c, add(load(one + c), y));
                store(two + c, product_plus(y, y, load(two + c)));
            }
        for (int64_t c = 0; c < width; ++c) {
            sums[c] += one[c];
            squares[c] += two[c];
        }
    }
}

/* grad + slope * x + constant, of [n,width] and [width]. */
KERNEL void NAME(add_line)(const float *grad, const float *x, const float *slope, const float *constant, int64_t n, int64_t width,
                     float *out)
{
    for (int64_t row = 0; row < n; ++row, grad += width, x += width, out += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats line = product_plus(load(x + c), load(slope + c), load(constant + c));
            store(out + c, add(load(grad + c), line));
        }
}

/* Rows [n_rows, heads * depth], one `stride` numbers after the other, as [heads, n_rows, depth]. */
KERNEL void NAME(to_heads)(const float *rows, int64_t n_rows, int64_t heads, int64_t depth, int64_t stride, float *out)
{
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < n_rows; ++row, out += depth)
            for (int64_t c = 0; c < depth; c += LANES)
                store(out + c, load(rows + row * stride + head * depth + c));
}

/* And back. */
KERNEL void NAME(from_heads)(const float *x, int64_t n_rows, int64_t heads, int64_t depth, int64_t stride, float *rows)
{
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < n_rows; ++row, x += depth)
            for (int64_t c = 0; c < depth; c += LANES)
                store(rows + row * stride + head * depth + c, load(x + c));
}
