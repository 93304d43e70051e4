/* Times the model: bench [RUNS], 100 without. Prints the least and the median of milliseconds. */
#include <stdio.h>
#include <stdlib.h>
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
    return posix_memalign(&memory, @NAME@_ALIGNMENT, size ? size : @NAME@_ALIGNMENT) ? NULL : memory;
}

int main(int argc, char **argv)
{
    const int runs = argc > 1 ? atoi(argv[1]) : 100;
    double *times = calloc((size_t)(runs > 0 ? runs : 1), sizeof *times);
    @name@_call call = {.arena_size = @name@_arena_size()};
    call.arena = aligned(call.arena_size);
    for (int i = 0; i < @NAME@_INPUTS; i++) {
        call.input_counts[i] = @name@_input_counts[i];
        float *values = aligned(call.input_counts[i] * sizeof(float));
        for (size_t k = 0; values && k < call.input_counts[i]; k++)
            values[k] = (float)((k * 2654435761u >> 8) % 2001) / 1000.0f - 1.0f;
        call.inputs[i] = values;
    }
    for (int i = 0; i < @NAME@_OUTPUTS; i++) {
        call.output_counts[i] = @name@_output_counts[i];
        call.outputs[i] = aligned(call.output_counts[i] * sizeof(float));
    }
    for (int run = 0; run < runs; run++) {
        const double started = now();
        const int wrong = @name@_run(&call);
        if (wrong)
            return fprintf(stderr, "@name@_run returned %d\n", wrong), 1;
        times[run] = now() - started;
    }
    if (runs > 0) {
        qsort(times, (size_t)runs, sizeof *times, by_size);
        printf("%s: %.3f ms least, %.3f ms median of %d runs\n", @name@_isa(), times[0], times[runs / 2], runs);
    }
    return 0;
}
