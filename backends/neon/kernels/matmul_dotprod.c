/* Products of two activations with SDOT: 16 columns of 4 rows. */
#include "tersor_kernels.h"

#if defined(__aarch64__)

#include "dotprod.h"

enum { ROWS = 4 };

typedef struct {
    int32x4_t column[4];
} accumulators;

TERSOR_INLINE void clear(accumulators *acc)
{
    for (int i = 0; i < 4; i++)
        acc->column[i] = vdupq_n_s32(0);
}

TERSOR_INLINE int32x4_t sum_of(const accumulators *acc, int i)
{
    return acc->column[i];
}

TERSOR_INLINE void multiply(accumulators *acc, const int8_t *a, int32_t step, const int8_t *b, int rows)
{
    const int8x16x4_t w = vld1q_s8_x4(b);
    TERSOR_UNROLL
    for (int r = 0; r < rows; r++) {
        const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(tersor_load32(a + (ptrdiff_t)r * step)));
        TERSOR_UNROLL
        for (int i = 0; i < 4; i++)
            acc[r].column[i] = vdotq_s32(acc[r].column[i], w.val[i], four);
    }
}

#include "matmul_tiles.h"

void tersor_matmul_dotprod(const tersor_product *p, const int8_t *a, const int8_t *panels, int8_t *y, tersor_share share)
{
    product(p, a, panels, y, share);
}

#endif
