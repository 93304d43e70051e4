/* Moves bytes: copies, borders, phases and layouts. Portable; the library's own memcpy is fast on ARM. */
#include "planes.h"

void tersor_copy(const tersor_planes *planes, const int8_t *a, int8_t *y, int32_t row_begin, int32_t row_end)
{
    for (int32_t row = row_begin; row < row_end;) {
        const tersor_rows r = tersor_rows_at(planes, row, row_end);
        memcpy(y + r.y, a + r.a, (size_t)r.bytes);
        row += r.rows;
    }
}

void tersor_copy_channels(const tersor_planes *planes, int32_t block, int32_t channels, int32_t a_channel,
                          int32_t y_channel, const int8_t *a, int8_t *y)
{
    for (int32_t c = 0; c < channels; c++) {
        const int32_t from = a_channel + c, to = y_channel + c;
        const int8_t *const plane = a + (ptrdiff_t)(from / block) * planes->a_block + from % block;
        int8_t *const out = y + (ptrdiff_t)(to / block) * planes->y_block + to % block;
        for (int32_t row = 0; row < planes->rows; row++)
            for (int32_t i = 0; i < planes->bytes; i += block)
                out[(ptrdiff_t)row * planes->y_row + i] = plane[(ptrdiff_t)row * planes->a_row + i];
    }
}

void tersor_fill_border(const tersor_planes *planes, tersor_border border, int32_t block, int8_t value, int8_t *y)
{
    const size_t left = (size_t)(border.left * block), right = (size_t)(border.right * block);
    const size_t whole = left + (size_t)planes->bytes + right;
    for (int32_t b = 0; b < planes->blocks; b++) {
        int8_t *row = y + (ptrdiff_t)b * planes->y_block;
        for (int32_t i = 0; i < border.top; i++, row += planes->y_row)
            memset(row, value, whole);
        for (int32_t i = 0; i < planes->rows; i++, row += planes->y_row) {
            memset(row, value, left);
            memset(row + whole - right, value, right);
        }
        for (int32_t i = 0; i < border.bottom; i++, row += planes->y_row)
            memset(row, value, whole);
    }
}

/* One row of one phase: every stride-th pixel from `a` on, then `fill`. */
static void phase_row(const int8_t *a, int8_t *y, int32_t present, int32_t width, int32_t stride, int32_t block, int8_t fill)
{
    if (block == 4)
        for (int32_t i = 0; i < present; i++)
            memcpy(y + 4 * i, a + (ptrdiff_t)4 * stride * i, 4);
    else
        for (int32_t i = 0; i < present; i++)
            memcpy(y + 8 * i, a + (ptrdiff_t)8 * stride * i, 8);
    memset(y + present * block, fill, (size_t)((width - present) * block));
}

void tersor_split_phases(const tersor_planes *planes, int32_t block, int32_t stride_y, int32_t stride_x, int8_t fill,
                         const int8_t *a, int8_t *y, int32_t block_begin, int32_t block_end)
{
    const int32_t pixels = planes->bytes / block;
    const int32_t rows = (planes->rows + stride_y - 1) / stride_y, width = (pixels + stride_x - 1) / stride_x;
    for (int32_t b = block_begin; b < block_end; b++) {
        const int8_t *const plane = a + (ptrdiff_t)b * planes->a_block;
        int8_t *out = y + (ptrdiff_t)b * planes->y_block;
        for (int32_t phase = 0; phase < stride_y * stride_x; phase++) {
            const int32_t py = phase / stride_x, px = phase % stride_x;
            const int32_t present = px < pixels ? (pixels - px + stride_x - 1) / stride_x : 0;
            for (int32_t i = 0; i < rows; i++, out += width * block) {
                const int32_t row = py + i * stride_y, there = row < planes->rows ? present : 0;
                phase_row(there ? plane + (ptrdiff_t)row * planes->a_row + px * block : plane, out, there, width, stride_x,
                          block, fill);
            }
        }
    }
}

void tersor_to_blocks(const tersor_planes *planes, int32_t block, int32_t channels, int8_t fill, const int8_t *a, int8_t *y)
{
    for (int32_t b = 0; b * block < channels; b++)
        for (int32_t row = 0; row < planes->rows; row++) {
            const int8_t *const in = a + (ptrdiff_t)b * block * planes->a_block + (ptrdiff_t)row * planes->a_row;
            int8_t *const out = y + (ptrdiff_t)b * planes->y_block + (ptrdiff_t)row * planes->y_row;
            const int32_t there = channels - b * block < block ? channels - b * block : block;
            for (int32_t i = 0; i < planes->bytes; i++) {
                for (int32_t c = 0; c < there; c++)
                    out[(ptrdiff_t)i * block + c] = in[(ptrdiff_t)c * planes->a_block + i];
                for (int32_t c = there; c < block; c++)
                    out[(ptrdiff_t)i * block + c] = fill;
            }
        }
}

void tersor_from_blocks(const tersor_planes *planes, int32_t block, int32_t channels, const int8_t *a, int8_t *y)
{
    for (int32_t c = 0; c < channels; c++)
        for (int32_t row = 0; row < planes->rows; row++) {
            const int8_t *const in = a + (ptrdiff_t)(c / block) * planes->a_block + (ptrdiff_t)row * planes->a_row + c % block;
            int8_t *const out = y + (ptrdiff_t)c * planes->y_block + (ptrdiff_t)row * planes->y_row;
            for (int32_t i = 0; i < planes->bytes; i++)
                out[i] = in[(ptrdiff_t)i * block];
        }
}
