/* `rows_kernels.h` for x86-64 processors with AVX2 and FMA. */
#include <immintrin.h>
#include <stdint.h>

#define NAME(function) function##_avx2
#define KERNEL __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))

enum { LANES = 8 };

typedef __m256 Floats;
typedef __m256i Words;

int64_t NAME(usable)(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

INLINE Floats all(float x) { return _mm256_set1_ps(x); }

INLINE Floats load(const float *p) { return _mm256_loadu_ps(p); }

INLINE void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }

INLINE Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }

INLINE Floats sub(Floats x, Floats y) { return _mm256_sub_ps(x, y); }

INLINE Floats mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }

INLINE Floats product_plus(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }

INLINE Floats minus_product(Floats x, Floats y, Floats z) { return _mm256_fnmadd_ps(x, y, z); }

INLINE Floats larger(Floats x, Floats y) { return _mm256_max_ps(x, y); }

INLINE Floats size_of(Floats x) { return _mm256_andnot_ps(all(-0.0f), x); }

INLINE Floats reciprocal(Floats x) { return _mm256_div_ps(all(1.0f), x); }

INLINE Floats nearest(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

INLINE Floats power_of_two(Floats n)
{
    const Words exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

INLINE Floats where_negative(Floats x, Floats a, Floats b) { return _mm256_blendv_ps(b, a, x); }

INLINE Floats where_less(Floats x, Floats bound, Floats a, Floats b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, bound, _CMP_LT_OQ));
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

INLINE Words first_lanes(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE Floats load_first(const float *p, int64_t n, Floats rest)
{
    const Words lanes = first_lanes(n);
    return _mm256_blendv_ps(rest, _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
}

INLINE void store_first(float *p, int64_t n, Floats x) { _mm256_maskstore_ps(p, first_lanes(n), x); }

INLINE Words word(uint32_t n) { return _mm256_set1_epi32((int)n); }

INLINE Words numbered_lanes(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

INLINE Words word_sum(Words x, Words y) { return _mm256_add_epi32(x, y); }

INLINE Words word_product(Words x, Words y) { return _mm256_mullo_epi32(x, y); }

INLINE Words word_xor(Words x, Words y) { return _mm256_xor_si256(x, y); }

#define WORD_SHIFT(x, bits) _mm256_srli_epi32(x, bits)

INLINE Floats where_at_least(Words n, Words bound, Floats x)
{
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(n, bound), n)));
}

#include "rows_kernels.h"
