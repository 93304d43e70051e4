/* Products of two activations in portable C, and the packing of their right sides. */
#include "matmul.h"
#include "requantize_portable.h"

/* Columns that lie one after another are packed 4 rows at a time. */
static void pack_panel(const tersor_product *p, const int8_t *b, int32_t columns, int8_t *panel)
{
    int32_t sums[TERSOR_PANEL] = {0}, start[TERSOR_PANEL];
    int8_t *out = panel + sizeof start;
    memset(out, 0, (size_t)tersor_panel_bytes(p) - sizeof start);
    for (int32_t k = 0; k < p->k; k += 4, out += 4 * TERSOR_PANEL) {
        const int32_t there = p->k - k < 4 ? p->k - k : 4;
        for (int32_t n = 0; n < columns; n++) {
            const int8_t *in = b + (ptrdiff_t)k * p->b_row + (ptrdiff_t)n * p->b_column;
            for (int32_t i = 0; i < there; i++, in += p->b_row) {
                out[4 * n + i] = *in;
                sums[n] += *in;
            }
        }
    }
    for (int32_t n = 0; n < TERSOR_PANEL; n++)
        start[n] = p->zero_a * (p->zero_b * p->k - sums[n]);
    memcpy(panel, start, sizeof start);
}

void tersor_pack_product(const tersor_product *p, const int8_t *b, int8_t *panels, tersor_share share)
{
    const int32_t each = tersor_panels(p);
    const tersor_span span = tersor_share_of(p->batch * each, share);
    for (int32_t i = span.begin; i < span.end; i++) {
        const int32_t first = i % each * TERSOR_PANEL, left = p->n - first;
        pack_panel(p, b + (ptrdiff_t)(i / each) * p->k * p->n + (ptrdiff_t)first * p->b_column,
                   left < TERSOR_PANEL ? left : TERSOR_PANEL, panels + (ptrdiff_t)i * tersor_panel_bytes(p));
    }
}

void tersor_matmul_portable(const tersor_product *p, const int8_t *a, const int8_t *panels, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(p->batch * p->m, share);
    for (int32_t row = rows.begin; row < rows.end; row++) {
        const int8_t *const left = a + (ptrdiff_t)row * p->k;
        const int8_t *const right = panels + (ptrdiff_t)(row / p->m) * tersor_panels(p) * tersor_panel_bytes(p);
        const int32_t less = tersor_row_share(p, left);
        for (int32_t n = 0; n < p->n; n++) {
            const int8_t *const panel = right + n / TERSOR_PANEL * tersor_panel_bytes(p);
            const int8_t *const b = panel + 4 * TERSOR_PANEL + n % TERSOR_PANEL * 4;
            int32_t acc = tersor_load32(panel + n % TERSOR_PANEL * 4) - less;
            for (int32_t k = 0; k < p->k; k++)
                acc += left[k] * b[k / 4 * 4 * TERSOR_PANEL + k % 4];
            y[(ptrdiff_t)row * p->n + n] = tersor_requantized(acc, 0, &p->requantize);
        }
    }
}
