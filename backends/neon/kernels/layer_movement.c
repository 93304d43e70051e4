/* Copies by a list of runs, and the phases of a plane that somebody reads. */
#include "layers.h"

void tersor_layer_copy(const int32_t *runs, int32_t count, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span mine = tersor_share_of(count, share);
    for (int32_t i = mine.begin; i < mine.end; i++)
        memcpy(y + runs[3 * i], x + runs[3 * i + 1], (size_t)runs[3 * i + 2]);
}

/* Every stride-th pixel of `count`, from the first on. */
static void pick(const int8_t *x, int8_t *y, int32_t count, int32_t stride, int32_t block)
{
    if (block == 4)
        for (int32_t i = 0; i < count; i++)
            memcpy(y + 4 * i, x + (ptrdiff_t)4 * stride * i, 4);
    else
        for (int32_t i = 0; i < count; i++)
            memcpy(y + 8 * i, x + (ptrdiff_t)8 * stride * i, 8);
}

void tersor_layer_phases(const tersor_phases *p, const int8_t *x, int8_t *y, tersor_share share)
{
    const int32_t phases = p->stride_y * p->stride_x;
    const int32_t row_bytes = (p->width + p->stride_x - 1) / p->stride_x * p->block;
    const int32_t plane_bytes = (p->rows + p->stride_y - 1) / p->stride_y * row_bytes;
    const tersor_span blocks = tersor_share_of(p->blocks, share);
    for (int32_t b = blocks.begin; b < blocks.end; b++)
        for (int32_t phase = 0; phase < phases; phase++) {
            const int32_t dx = phase % p->stride_x, count = (p->width - dx + p->stride_x - 1) / p->stride_x;
            int8_t *out = y + ((ptrdiff_t)b * phases + phase) * plane_bytes;
            if (!(p->wanted >> phase & 1))
                continue;
            for (int32_t row = phase / p->stride_x; row < p->rows; row += p->stride_y, out += row_bytes)
                pick(x + (ptrdiff_t)b * p->x_block + (ptrdiff_t)row * p->x_row + dx * p->block, out, count, p->stride_x,
                     p->block);
        }
}
