/* An example: reads the raw values of all inputs from standard input, one call after another, and writes outputs alike.
 *
 *     main < inputs.bin > outputs.bin
 */
#include <stdio.h>
#include <stdlib.h>

#include "@name@.h"

/* One block of memory for the arena and all tensors: where the next may begin. */
static size_t reserve(size_t *used, size_t size)
{
    const size_t begin = *used;
    *used += (size + @NAME@_ALIGNMENT - 1) / @NAME@_ALIGNMENT * @NAME@_ALIGNMENT;
    return begin;
}

/* Fills all inputs. 0 where there is nothing more to read, -1 where it ends within them. */
static int read_inputs(const @name@_call *call, void *const inputs[])
{
    for (int i = 0; i < @NAME@_INPUTS; i++) {
        const size_t count = fread(inputs[i], @name@_input_bytes[i], call->input_counts[i], stdin);
        if (count == 0 && i == 0 && feof(stdin))
            return 0;
        if (count != call->input_counts[i])
            return fprintf(stderr, "input %d: %zu values of %zu\n", i, count, call->input_counts[i]), -1;
    }
    return 1;
}

static int serve(@name@_call *call, void *const inputs[])
{
    int found;
    while ((found = read_inputs(call, inputs)) > 0) {
        const int wrong = @name@_run(call);
        if (wrong)
            return fprintf(stderr, "@name@_run: %s\n", @name@_message(wrong)), 1;
        for (int i = 0; i < @NAME@_OUTPUTS; i++)
            if (fwrite(call->outputs[i], @name@_output_bytes[i], call->output_counts[i], stdout) != call->output_counts[i])
                return fprintf(stderr, "output %d was not written\n", i), 2;
        if (fflush(stdout))
            return fprintf(stderr, "the outputs were not written\n"), 2;
    }
    return found ? 2 : 0;
}

int main(void)
{
    @name@_call call = {.arena_size = @name@_arena_size()};
    size_t used = 0, input_at[@NAME@_INPUTS], output_at[@NAME@_OUTPUTS];
    void *memory = NULL, *inputs[@NAME@_INPUTS];
    if (!@name@_isa())
        return fprintf(stderr, "%s\n", @name@_message(@NAME@_NO_VARIANT)), 1;
    reserve(&used, call.arena_size);
    for (int i = 0; i < @NAME@_INPUTS; i++)
        input_at[i] = reserve(&used, (call.input_counts[i] = @name@_input_counts[i]) * @name@_input_bytes[i]);
    for (int i = 0; i < @NAME@_OUTPUTS; i++)
        output_at[i] = reserve(&used, (call.output_counts[i] = @name@_output_counts[i]) * @name@_output_bytes[i]);
    if (posix_memalign(&memory, @NAME@_ALIGNMENT, used + @NAME@_ALIGNMENT))
        return fprintf(stderr, "no memory for %zu bytes\n", used), 1;
    call.arena = memory;
    for (int i = 0; i < @NAME@_INPUTS; i++)
        call.inputs[i] = inputs[i] = (char *)memory + input_at[i];
    for (int i = 0; i < @NAME@_OUTPUTS; i++)
        call.outputs[i] = (void *)((char *)memory + output_at[i]);
    const int status = serve(&call, inputs);
    free(memory);
    return status;
}
