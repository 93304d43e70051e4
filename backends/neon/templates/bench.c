/* Times the model: bench [RUNS], 100 without. Prints the least and the median of milliseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "@name@.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void *aligned(size_t size)
{
    void *memory = NULL;
    if (posix_memalign(&memory, @NAME@_ALIGNMENT, size ? size : @NAME@_ALIGNMENT)) {
        fprintf(stderr, "no memory for %zu bytes\n", size);
        exit(1);
    }
    return memory;
}

/* Noise between -1 and 1; where `is_float` is 0, zeros, which every table has a row for. */
static void fill(void *values, size_t count, size_t bytes, int is_float)
{
    memset(values, 0, count * bytes);
    for (size_t i = 0; i < count && is_float; i++)
        ((float *)values)[i] = (float)((i * 2654435761u >> 8) % 2001) / 1000.0f - 1.0f;
}

int main(int argc, char **argv)
{
    static const int is_float[@NAME@_INPUTS] = {@input_is_float@};
    const int runs = argc > 1 ? atoi(argv[1]) : 100;
    if (runs <= 0)
        return fprintf(stderr, "usage: bench [RUNS]\n"), 2;
    double *times = aligned((size_t)runs * sizeof *times);
    @name@_call call = {.arena_size = @name@_arena_size()};
    call.arena = aligned(call.arena_size);
    for (int i = 0; i < @NAME@_INPUTS; i++) {
        call.input_counts[i] = @name@_input_counts[i];
        void *values = aligned(call.input_counts[i] * @name@_input_bytes[i]);
        fill(values, call.input_counts[i], @name@_input_bytes[i], is_float[i]);
        call.inputs[i] = values;
    }
    for (int i = 0; i < @NAME@_OUTPUTS; i++) {
        call.output_counts[i] = @name@_output_counts[i];
        call.outputs[i] = aligned(call.output_counts[i] * @name@_output_bytes[i]);
    }
    for (int run = 0; run < runs; run++) {
        const double started = now();
        const int wrong = @name@_run(&call);
        if (wrong)
            return fprintf(stderr, "@name@_run: %s\n", @name@_message(wrong)), 1;
        times[run] = now() - started;
    }
    qsort(times, (size_t)runs, sizeof *times, by_size);
    printf("%s: %.3f ms least, %.3f ms median of %d runs\n", @name@_isa(), times[0], times[runs / 2], runs);
    return 0;
}
