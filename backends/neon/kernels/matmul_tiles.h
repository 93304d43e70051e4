/* Rows of a by a panel of b, for the kernels that include this: they define `multiply` first, which adds 4 rows of the panel,
 * times 4 values of one row of a, to 16 accumulators. */
#include "matmul.h"
#include "requantize_neon.h"

/* `rows` rows (a constant) by one panel. */
TERSOR_INLINE void tile(const tersor_product *p, const int8_t *a, const int8_t *panel, const int32_t *less,
                        int8_t out[][TERSOR_PANEL], tersor_bounds bounds, int rows)
{
    accumulators acc[4];
    const int8_t *b = panel + 4 * TERSOR_PANEL;
    TERSOR_UNROLL
    for (int r = 0; r < rows; r++)
        clear(&acc[r]);
    for (int32_t k = 0; k < p->k; k += 4, b += 4 * TERSOR_PANEL)
        multiply(acc, a + k, p->k, b, rows);
    TERSOR_UNROLL
    for (int r = 0; r < rows; r++) {
        int16x8_t v[4];
        TERSOR_UNROLL
        for (int i = 0; i < 4; i++) {
            const int32x4_t start = vsubq_s32(vld1q_s32((const int32_t *)(const void *)panel + 4 * i), vdupq_n_s32(less[r]));
            v[i] = tersor_scaled(vaddq_s32(sum_of(&acc[r], i), start), vdupq_n_f32(p->requantize.scale[0]), -1, bounds, 0);
        }
        vst1q_s8(out[r], tersor_bytes(vuzp1q_s16(v[0], v[1]), vuzp1q_s16(v[2], v[3]), bounds));
    }
}

static void product_rows(const tersor_product *p, const int8_t *a, const int8_t *panels, int8_t *y, int rows)
{
    const tersor_bounds bounds = tersor_bounds_of(&p->requantize);
    int32_t less[4];
    for (int r = 0; r < rows; r++)
        less[r] = tersor_row_share(p, a + (ptrdiff_t)r * p->k);
    for (int32_t n = 0; n < p->n; n += TERSOR_PANEL, panels += tersor_panel_bytes(p)) {
        int8_t out[4][TERSOR_PANEL];
        const int32_t columns = p->n - n < TERSOR_PANEL ? p->n - n : TERSOR_PANEL;
        if (rows == ROWS)
            tile(p, a, panels, less, out, bounds, ROWS);
        else
            for (int r = 0; r < rows; r++)
                tile(p, a + (ptrdiff_t)r * p->k, panels, less + r, out + r, bounds, 1);
        for (int r = 0; r < rows; r++)
            memcpy(y + (ptrdiff_t)r * p->n + n, out[r], (size_t)columns);
    }
}

/* A tile stays within one product of the batch. */
static void product(const tersor_product *p, const int8_t *a, const int8_t *panels, int8_t *y, tersor_share share)
{
    const tersor_span span = tersor_share_of(p->batch * p->m, share);
    for (int32_t row = span.begin, rows; row < span.end; row += rows) {
        const int32_t left = p->m - row % p->m, mine = span.end - row;
        rows = left < mine ? left : mine;
        rows = rows < ROWS ? rows : ROWS;
        product_rows(p, a + (ptrdiff_t)row * p->k, panels + (ptrdiff_t)(row / p->m) * tersor_panels(p) * tersor_panel_bytes(p),
                     y + (ptrdiff_t)row * p->n, rows);
    }
}
