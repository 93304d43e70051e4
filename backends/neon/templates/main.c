/* An example: reads inputs as raw float32 from standard input, one call after another, and writes outputs alike. */
#include <stdio.h>
#include <stdlib.h>

#include "@name@.h"

static void *aligned(size_t size)
{
    void *memory = NULL;
    return posix_memalign(&memory, @NAME@_ALIGNMENT, size ? size : @NAME@_ALIGNMENT) ? NULL : memory;
}

int main(void)
{
    @name@_call call = {.arena_size = @name@_arena_size()};
    call.arena = aligned(call.arena_size);
    for (int i = 0; i < @NAME@_INPUTS; i++) {
        call.input_counts[i] = @name@_input_counts[i];
        call.inputs[i] = aligned(call.input_counts[i] * sizeof(float));
    }
    for (int i = 0; i < @NAME@_OUTPUTS; i++) {
        call.output_counts[i] = @name@_output_counts[i];
        call.outputs[i] = aligned(call.output_counts[i] * sizeof(float));
    }
    for (;;) {
        for (int i = 0; i < @NAME@_INPUTS; i++) {
            const size_t count = fread((void *)call.inputs[i], sizeof(float), call.input_counts[i], stdin);
            if (count == 0 && i == 0)
                return 0;
            if (count != call.input_counts[i])
                return fprintf(stderr, "input %d: %zu values of %zu\n", i, count, call.input_counts[i]), 2;
        }
        const int wrong = @name@_run(&call);
        if (wrong)
            return fprintf(stderr, "@name@_run returned %d\n", wrong), 1;
        for (int i = 0; i < @NAME@_OUTPUTS; i++)
            fwrite(call.outputs[i], sizeof(float), call.output_counts[i], stdout);
        fflush(stdout);
    }
}
