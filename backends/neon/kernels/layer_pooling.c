/* Averages of windows that the plane's edge cuts. */
#include "layers.h"

/* The taps of a window that lie inside: first <= position + tap < size. */
static tersor_span inside(int32_t position, int32_t kernel, int32_t size)
{
    const int32_t begin = position < 0 ? -position : 0;
    const int32_t end = position + kernel > size ? size - position : kernel;
    return (tersor_span){begin, end > begin ? end : begin};
}

static void average(const tersor_window *w, const int8_t *plane, int32_t top, int32_t left, int32_t position, int8_t *y)
{
    const tersor_span down = inside(top, w->kernel_y, w->rows), across = inside(left, w->kernel_x, w->width);
    const int32_t start = -w->zero_point * (down.end - down.begin) * (across.end - across.begin);
    int32_t acc[8] = {start, start, start, start, start, start, start, start};
    for (int32_t i = down.begin; i < down.end; i++) {
        const int8_t *row = plane + (ptrdiff_t)(top + i) * w->x_row;
        for (int32_t j = across.begin; j < across.end; j++)
            for (int32_t c = 0; c < w->block; c++)
                acc[c] += row[(left + j) * w->block + c];
    }
    for (int32_t c = 0; c < w->block; c++)
        y[c] = tersor_requantized(acc[c], w->shared ? 0 : position, &w->requantize);
}

void tersor_layer_average(const tersor_window *w, const int8_t *x, int8_t *y, tersor_share share)
{
    const tersor_span rows = tersor_share_of(w->blocks * w->out_rows, share);
    for (int32_t index = rows.begin; index < rows.end; index++) {
        const int32_t block = index / w->out_rows, row = index % w->out_rows;
        const int8_t *plane = x + (ptrdiff_t)block * w->x_block;
        int8_t *into = y + (ptrdiff_t)block * w->y_block + (ptrdiff_t)row * w->y_row;
        for (int32_t i = 0; i < w->out_width; i++)
            average(w, plane, row * w->stride_y - w->pad_y, i * w->stride_x - w->pad_x, row * w->out_width + i,
                    into + i * w->block);
    }
}
