/* Counts a model: runs it once as a whole, and once more step by step, each in a region of its own.
 *
 * Reads one sample as main.c does, and writes the outputs of both runs. Between the steps nothing is counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#if defined(__aarch64__)
#define BEGIN() __asm__ volatile("hint #96" : : : "memory")
#define END() __asm__ volatile("hint #97" : : : "memory")
#else
#define BEGIN()
#define END()
#endif

static void *aligned(size_t size)
{
    void *memory = NULL;
    if (posix_memalign(&memory, MODEL_ALIGNMENT, size ? size : MODEL_ALIGNMENT))
        exit(1);
    return memory;
}

static void answer(const model_call *call)
{
    for (int i = 0; i < MODEL_OUTPUTS; i++)
        fwrite(call->outputs[i], model_output_bytes[i], call->output_counts[i], stdout);
}

int main(void)
{
    model_call call = {.arena_size = model_arena_size()};
    call.arena = aligned(call.arena_size);
    memset(call.arena, 0x5A, call.arena_size);
    for (int i = 0; i < MODEL_INPUTS; i++) {
        void *values = aligned((call.input_counts[i] = model_input_counts[i]) * model_input_bytes[i]);
        if (fread(values, model_input_bytes[i], call.input_counts[i], stdin) != call.input_counts[i])
            return 2;
        call.inputs[i] = values;
    }
    for (int i = 0; i < MODEL_OUTPUTS; i++)
        call.outputs[i] = aligned((call.output_counts[i] = model_output_counts[i]) * model_output_bytes[i]);
    BEGIN();
    const int wrong = model_run(&call);
    END();
    if (wrong)
        return fprintf(stderr, "model_run returned %d\n", wrong), 3;
    answer(&call);
    for (int step = 0; step < model_steps(); step++) {
        BEGIN();
        const int failed = model_step(&call, step, 0, 1);
        END();
        if (failed)
            return fprintf(stderr, "step %d returned %d\n", step, failed), 3;
    }
    answer(&call);
    return 0;
}
