/* What stands between the matrix products of a transformer, a row at a time and in one pass each; float32, for x86-64
   processors with AVX2 and FMA. `rows.py` does the same with torch where this is not built. Widths are multiples of 8,
   but for those of attention; at most 1024. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define KERNEL __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))

enum { LANES = 8, MOST = 1024, BLOCK = 32 };

typedef __m256 Floats;
typedef __m256i Words;

int64_t rows_usable(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

INLINE Floats all(float x) { return _mm256_set1_ps(x); }

INLINE Floats load(const float *p) { return _mm256_loadu_ps(p); }

INLINE void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }

INLINE Words first_lanes(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE float sum(Floats x)
{
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

INLINE float largest(Floats x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* exp x for x up to 88; 0 below -87 */
INLINE Floats exponential(Floats x)
{
    const Floats low = all(-87.0f), bounded = _mm256_max_ps(x, low);
    const Floats n = _mm256_round_ps(_mm256_mul_ps(bounded, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Floats r = _mm256_fnmadd_ps(n, all(0.693359375f), bounded);
    r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f), r);
    Floats p = all(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, all(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, all(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, all(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, all(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, all(0.5f));
    p = _mm256_fmadd_ps(p, r, all(1.0f));
    p = _mm256_fmadd_ps(p, r, all(1.0f));
    const Words power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), _mm256_cmp_ps(x, low, _CMP_GE_OQ));
}

/* Share of a normal distribution below x, from exp(-x^2/2); Abramowitz and Stegun, 7.1.26: 7.5e-8 at most wrong */
INLINE Floats normal_below(Floats x, Floats bell)
{
    const Floats size = _mm256_andnot_ps(all(-0.0f), x);
    const Floats t = _mm256_div_ps(all(1.0f), _mm256_fmadd_ps(size, all(0.3275911f * 0.70710678f), all(1.0f)));
    Floats p = all(0.5f * 1.061405429f);
    p = _mm256_fmadd_ps(p, t, all(0.5f * -1.453152027f));
    p = _mm256_fmadd_ps(p, t, all(0.5f * 1.421413741f));
    p = _mm256_fmadd_ps(p, t, all(0.5f * -0.284496736f));
    p = _mm256_fmadd_ps(p, t, all(0.5f * 0.254829592f));
    const Floats tail = _mm256_mul_ps(_mm256_mul_ps(p, t), bell);
    return _mm256_blendv_ps(_mm256_sub_ps(all(1.0f), tail), tail, x);
}

INLINE Floats bell_of(Floats x) { return exponential(_mm256_mul_ps(_mm256_mul_ps(x, x), all(-0.5f))); }

INLINE Floats gelu(Floats x) { return _mm256_mul_ps(x, normal_below(x, bell_of(x))); }

INLINE Floats gelu_slope(Floats x)
{
    const Floats bell = bell_of(x);
    return _mm256_fmadd_ps(_mm256_mul_ps(x, all(0.39894228f)), bell, normal_below(x, bell));
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
    Words h = _mm256_add_epi32(_mm256_set1_epi32((int)number), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    h = _mm256_xor_si256(_mm256_mullo_epi32(h, _mm256_set1_epi32((int)0x9E3779B1u)), _mm256_set1_epi32((int)(uint32_t)drop->key));
    h = _mm256_xor_si256(h, _mm256_srli_epi32(h, 16));
    h = _mm256_mullo_epi32(h, _mm256_set1_epi32((int)0x85EBCA6Bu));
    h = _mm256_add_epi32(_mm256_xor_si256(h, _mm256_srli_epi32(h, 13)), _mm256_set1_epi32((int)(uint32_t)(drop->key >> 32)));
    h = _mm256_mullo_epi32(h, _mm256_set1_epi32((int)0xC2B2AE35u));
    h = _mm256_xor_si256(h, _mm256_srli_epi32(h, 16));
    /* unsigned h >= bound */
    const Words stays = _mm256_cmpeq_epi32(_mm256_max_epu32(h, _mm256_set1_epi32((int)drop->bound)), h);
    return _mm256_and_ps(x, _mm256_castsi256_ps(stays));
}

/* x [n,width] to GELU, dropout, norm without weight. */
KERNEL void gelu_drop_norm(const float *x, int64_t n, int64_t width, float eps, Drop drop, float *out, float *rstd)
{
    uint32_t number = 0;
    for (int64_t row = 0; row < n; ++row, x += width, out += width, number += (uint32_t)width) {
        Floats total = all(0), squares = all(0);
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = kept(gelu(load(x + c)), &drop, number + (uint32_t)c);
            store(out + c, y);
            total = _mm256_add_ps(total, y);
        }
        const Floats mean = all(sum(total) / (float)width);
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = _mm256_sub_ps(load(out + c), mean);
            squares = _mm256_fmadd_ps(y, y, squares);
        }
        rstd[row] = 1 / __builtin_sqrtf(sum(squares) / (float)width + eps);
        for (int64_t c = 0; c < width; c += LANES)
            store(out + c, _mm256_mul_ps(_mm256_sub_ps(load(out + c), mean), all(rstd[row])));
    }
}

/* grad of `gelu_drop_norm`, already times rstd, to that of x, in place; its sums over rows are added to `sums`. */
KERNEL void back_gelu_drop_norm(float *grad, const float *normed, const float *x, int64_t n, int64_t width, Drop drop,
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
                one = _mm256_add_ps(one, g);
                two = _mm256_fmadd_ps(g, load(normed + c), two);
            }
            const Floats mean = all(sum(one) / (float)width), slope = all(sum(two) / (float)width);
            for (int64_t c = 0; c < width; c += LANES) {
                Floats g = _mm256_fnmadd_ps(slope, load(normed + c), _mm256_sub_ps(load(grad + c), mean));
                g = _mm256_mul_ps(kept(g, &drop, number + (uint32_t)c), gelu_slope(load(x + c)));
                store(grad + c, g);
                store(block + c, _mm256_add_ps(load(block + c), g));
            }
            grad += width, normed += width, x += width, number += (uint32_t)width;
        }
        for (int64_t c = 0; c < width; c += LANES)
            store(sums + c, _mm256_add_ps(load(sums + c), load(block + c)));
    }
}

/* Scores [n,length] to their softmax, in place, and with dropout to `out`. */
KERNEL void softmax_drop(float *scores, int64_t n, int64_t length, Drop drop, float *out)
{
    uint32_t number = 0;
    const int64_t whole = length / LANES * LANES, rest = length - whole;
    const Words lanes = first_lanes(rest);
    const Floats lowest = all(-__builtin_inff());
    for (int64_t row = 0; row < n; ++row, scores += length, out += length, number += (uint32_t)length) {
        Floats top = lowest, total = all(0), last = lowest;
        for (int64_t c = 0; c < whole; c += LANES)
            top = _mm256_max_ps(top, load(scores + c));
        if (rest) {
            last = _mm256_blendv_ps(lowest, _mm256_maskload_ps(scores + whole, lanes), _mm256_castsi256_ps(lanes));
            top = _mm256_max_ps(top, last);
        }
        top = all(largest(top));
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats e = exponential(_mm256_sub_ps(load(scores + c), top));
            store(scores + c, e);
            total = _mm256_add_ps(total, e);
        }
        last = exponential(_mm256_sub_ps(last, top));
        if (rest)
            total = _mm256_add_ps(total, last);
        const Floats factor = all(1 / sum(total));
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats weight = _mm256_mul_ps(load(scores + c), factor);
            store(scores + c, weight);
            store(out + c, kept(weight, &drop, number + (uint32_t)c));
        }
        if (rest) {
            last = _mm256_mul_ps(last, factor);
            _mm256_maskstore_ps(scores + whole, lanes, last);
            _mm256_maskstore_ps(out + whole, lanes, kept(last, &drop, number + (uint32_t)whole));
        }
    }
}

/* grad of `out` of `softmax_drop` to that of the scores, in place. */
KERNEL void back_softmax_drop(float *grad, const float *weights, int64_t n, int64_t length, Drop drop)
{
    uint32_t number = 0;
    const int64_t whole = length / LANES * LANES, rest = length - whole;
    const Words lanes = first_lanes(rest);
    for (int64_t row = 0; row < n; ++row, grad += length, weights += length, number += (uint32_t)length) {
        Floats total = all(0), last = all(0), own = all(0);
        for (int64_t c = 0; c < whole; c += LANES) {
            const Floats g = kept(load(grad + c), &drop, number + (uint32_t)c);
            store(grad + c, g);
            total = _mm256_fmadd_ps(g, load(weights + c), total);
        }
        if (rest) {
            last = kept(_mm256_maskload_ps(grad + whole, lanes), &drop, number + (uint32_t)whole);
            own = _mm256_maskload_ps(weights + whole, lanes);
            total = _mm256_fmadd_ps(last, own, total);
        }
        const Floats mean = all(sum(total));
        for (int64_t c = 0; c < whole; c += LANES)
            store(grad + c, _mm256_mul_ps(_mm256_sub_ps(load(grad + c), mean), load(weights + c)));
        if (rest)
            _mm256_maskstore_ps(grad + whole, lanes, _mm256_mul_ps(_mm256_sub_ps(last, mean), own));
    }
}

/* GELU of x [n,width] times factor plus offset, both [width], or of x where factor is NULL. */
KERNEL void line_gelu(const float *x, const float *factor, const float *offset, int64_t n, int64_t width, float *out)
{
    for (int64_t row = 0; row < n; ++row, x += width, out += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats y = load(x + c);
            store(out + c, gelu(factor ? _mm256_fmadd_ps(y, load(factor + c), load(offset + c)) : y));
        }
}

/* grad of `line_gelu`, in place to that of the line; the sums over rows of it, and of it times x, are added to
   d_offset and d_factor; to_x: it times factor, may be NULL. Without a factor there are only the first sums. */
KERNEL void back_line_gelu(float *grad, const float *x, const float *factor, const float *offset, int64_t n, int64_t width,
                           float *d_offset, float *d_factor, float *to_x)
{
    float one[MOST], two[MOST];
    for (int64_t start = 0; start < n; start += BLOCK) {
        memset(one, 0, sizeof(float) * (size_t)width);
        memset(two, 0, sizeof(float) * (size_t)width);
        for (int64_t row = start; row < n && row < start + BLOCK; ++row, grad += width, x += width) {
            for (int64_t c = 0; c < width; c += LANES) {
                const Floats y = load(x + c), f = factor ? load(factor + c) : all(1);
                const Floats line = factor ? _mm256_fmadd_ps(y, f, load(offset + c)) : y;
                const Floats g = _mm256_mul_ps(load(grad + c), gelu_slope(line));
                store(grad + c, g);
                store(one + c, _mm256_add_ps(load(one + c), g));
                if (factor) {
                    store(two + c, _mm256_fmadd_ps(g, y, load(two + c)));
                    if (to_x)
                        store(to_x + c, _mm256_mul_ps(g, f));
                }
            }
            if (to_x)
                to_x += width;
        }
        for (int64_t c = 0; c < width; c += LANES) {
            store(d_offset + c, _mm256_add_ps(load(d_offset + c), load(one + c)));
            if (factor)
                store(d_factor + c, _mm256_add_ps(load(d_factor + c), load(two + c)));
        }
    }
}

/* Sums over the rows of x [n,width] minus `origin`, and of the squares, added to `sums` and `squares`. */
KERNEL void add_moments(const float *x, const float *origin, int64_t n, int64_t width, double *sums, double *squares)
{
    float one[MOST], two[MOST];
    for (int64_t start = 0; start < n; start += BLOCK) {
        memset(one, 0, sizeof(float) * (size_t)width);
        memset(two, 0, sizeof(float) * (size_t)width);
        for (int64_t row = start; row < n && row < start + BLOCK; ++row, x += width)
            for (int64_t c = 0; c < width; c += LANES) {
                const Floats y = _mm256_sub_ps(load(x + c), load(origin + c));
                store(one + c, _mm256_add_ps(load(one + c), y));
                store(two + c, _mm256_fmadd_ps(y, y, load(two + c)));
            }
        for (int64_t c = 0; c < width; ++c) {
            sums[c] += one[c];
            squares[c] += two[c];
        }
    }
}

/* grad + slope * x + constant, of [n,width] and [width]. */
KERNEL void add_line(const float *grad, const float *x, const float *slope, const float *constant, int64_t n, int64_t width,
                     float *out)
{
    for (int64_t row = 0; row < n; ++row, grad += width, x += width, out += width)
        for (int64_t c = 0; c < width; c += LANES) {
            const Floats line = _mm256_fmadd_ps(load(x + c), load(slope + c), load(constant + c));
            store(out + c, _mm256_add_ps(load(grad + c), line));
        }
}

/* Rows [n_rows, heads * depth], one `stride` numbers after the other, as [heads, n_rows, depth]. */
KERNEL void to_heads(const float *rows, int64_t n_rows, int64_t heads, int64_t depth, int64_t stride, float *out)
{
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < n_rows; ++row, out += depth)
            for (int64_t c = 0; c < depth; c += LANES)
                store(out + c, load(rows + row * stride + head * depth + c));
}

/* And back. */
KERNEL void from_heads(const float *x, int64_t n_rows, int64_t heads, int64_t depth, int64_t stride, float *rows)
{
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < n_rows; ++row, x += depth)
            for (int64_t c = 0; c < depth; c += LANES)
                store(rows + row * stride + head * depth + c, load(x + c));
}
