/* Products of two activations: products of bytes in 16 bits, added in pairs in 32. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "requantize_neon.h"

enum { ROWS = 2 };

/* Two lanes a column. */
typedef struct {
    int32x4_t half[8];
} accumulators;

TERSOR_INLINE void clear(accumulators *acc)
{
    for (int i = 0; i < 8; i++)
        acc->half[i] = vdupq_n_s32(0);
}

TERSOR_INLINE int32x4_t sum_of(const accumulators *acc, int i)
{
    return vpaddq_s32(acc->half[2 * i], acc->half[2 * i + 1]);
}

TERSOR_INLINE void multiply(accumulators *acc, const int8_t *a, int32_t step, const int8_t *b, int rows)
{
    TERSOR_UNROLL
    for (int r = 0; r < rows; r++) {
        const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(a + (ptrdiff_t)r * step)));
        TERSOR_UNROLL
        for (int i = 0; i < 4; i++) {
            const int8x16_t w = vld1q_s8(b + 16 * i);
            int32x4_t *const half = acc[r].half + 2 * i;
            half[0] = vpadalq_s16(half[0], vmull_s8(vget_low_s8(w), vget_low_s8(four)));
            half[1] = vpadalq_s16(half[1], vmull_high_s8(w, four));
        }
    }
}

#include "matmul_tiles.h"

void tersor_matmul_neon(const tersor_product *p, const int8_t *a, const int8_t *panels, int8_t *y, tersor_share share)
{
    product(p, a, panels, y, share);
}

#endif
