/* `rows_kernels.h` for x86-64 processors with AVX-512. */
#include <immintrin.h>
#include <stdint.h>

#define NAME(function) function##_avx512
#define KERNEL __attribute__((target("avx512f,prefer-vector-width=512")))
#define INLINE static inline __attribute__((always_inline, target("avx512f,prefer-vector-width=512")))

enum { LANES = 16 };

typedef __m512 Floats;
typedef __m512i Words;

int64_t NAME(usable)(void) { return __builtin_cpu_supports("avx512f") != 0; }

INLINE Floats all(float x) { return _mm512_set1_ps(x); }

INLINE Floats load(const float *p) { return _mm512_loadu_ps(p); }

INLINE void store(float *p, Floats x) { _mm512_storeu_ps(p, x); }

INLINE Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }

INLINE Floats sub(Floats x, Floats y) { return _mm512_sub_ps(x, y); }

INLINE Floats mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }

INLINE Floats product_plus(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }

INLINE Floats minus_product(Floats x, Floats y, Floats z) { return _mm512_fnmadd_ps(x, y, z); }

INLINE Floats larger(Floats x, Floats y) { return _mm512_max_ps(x, y); }

INLINE Floats size_of(Floats x) { return _mm512_abs_ps(x); }

/* Division of 16 numbers takes longer than the step of Newton that brings the estimate to all digits but the last. */
INLINE Floats reciprocal(Floats x)
{
    const Floats y = _mm512_rcp14_ps(x);
    return product_plus(y, minus_product(x, y, all(1.0f)), y);
}

INLINE Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

INLINE Floats power_of_two(Floats n) { return _mm512_scalef_ps(all(1.0f), n); }

INLINE Floats where_negative(Floats x, Floats a, Floats b)
{
    return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(_mm512_castps_si512(x), _mm512_setzero_si512()), b, a);
}

INLINE Floats where_less(Floats x, Floats bound, Floats a, Floats b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, bound, _CMP_LT_OQ), b, a);
}

INLINE float sum(Floats x) { return _mm512_reduce_add_ps(x); }

INLINE float largest(Floats x) { return _mm512_reduce_max_ps(x); }

INLINE __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }

INLINE Floats load_first(const float *p, int64_t n, Floats rest) { return _mm512_mask_loadu_ps(rest, first_lanes(n), p); }

INLINE void store_first(float *p, int64_t n, Floats x) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

INLINE Words word(uint32_t n) { return _mm512_set1_epi32((int)n); }

INLINE Words numbered_lanes(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

INLINE Words word_sum(Words x, Words y) { return _mm512_add_epi32(x, y); }

INLINE Words word_product(Words x, Words y) { return _mm512_mullo_epi32(x, y); }

INLINE Words word_xor(Words x, Words y) { return _mm512_xor_si512(x, y); }

#define WORD_SHIFT(x, bits) _mm512_srli_epi32(x, bits)

INLINE Floats where_at_least(Words n, Words bound, Floats x)
{
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(n, bound), x);
}

#include "rows_kernels.h"
