/* @name@: its entry points. The layers are in @name@_*.c. */
#include "@name@.h"

#include "tersor_model.h"

const size_t @name@_input_counts[@NAME@_INPUTS] = {@input_counts@};
const size_t @name@_input_bytes[@NAME@_INPUTS] = {@input_bytes@};
const size_t @name@_output_counts[@NAME@_OUTPUTS] = {@output_counts@};
const size_t @name@_output_bytes[@NAME@_OUTPUTS] = {@output_bytes@};

/* NULL where the library is built with @NAME@_MAPPED_WEIGHTS and without weights.S. */
#ifndef @NAME@_MAPPED_WEIGHTS
extern const int8_t @name@_weights[];
static const int8_t *const linked = @name@_weights;
#else
static const int8_t *const linked = NULL;
#endif

static const tersor_weights_head head = {TERSOR_WEIGHTS, @NAME@_WEIGHTS_SIZE, @checksum@};

@externs@

static const tersor_variant *const variants[] = {@variants@};

static const tersor_variant *chosen(void)
{
    return tersor_choose(variants, sizeof variants / sizeof *variants);
}

const char *@name@_isa(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->name : NULL;
}

size_t @name@_arena_size(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->arena_size : 0;
}

int @name@_steps(void)
{
    const tersor_variant *variant = chosen();
    return variant ? variant->count : 0;
}

static int misaligned(const void *pointer)
{
    return (uintptr_t)pointer % @NAME@_ALIGNMENT != 0;
}

static const int8_t *weights_of(const @name@_call *call)
{
    return call->weights ? call->weights : linked;
}

static int check_tensors(const @name@_call *call)
{
    for (int i = 0; i < @NAME@_INPUTS; i++)
        if (!call->inputs[i])
            return @NAME@_NULL;
        else if (call->input_counts[i] != @name@_input_counts[i])
            return @NAME@_WRONG_SIZE;
    for (int i = 0; i < @NAME@_OUTPUTS; i++)
        if (!call->outputs[i])
            return @NAME@_NULL;
        else if (call->output_counts[i] != @name@_output_counts[i])
            return @NAME@_WRONG_SIZE;
    return @NAME@_OK;
}

static int check(const @name@_call *call, const tersor_variant *variant)
{
    if (!variant)
        return @NAME@_NO_VARIANT;
    if (!call || !call->arena || !weights_of(call))
        return @NAME@_NULL;
    const int wrong = check_tensors(call);
    if (wrong)
        return wrong;
    if (call->arena_size < variant->arena_size)
        return @NAME@_SMALL_ARENA;
    if (misaligned(call->arena) || misaligned(call->weights))
        return @NAME@_UNALIGNED;
    if (call->weights && (call->weights_size < @NAME@_WEIGHTS_SIZE || !tersor_has_head(call->weights, &head)))
        return @NAME@_WRONG_WEIGHTS;
@index_checks@    return tersor_check_arithmetic() ? @NAME@_ARITHMETIC : @NAME@_OK;
}

static void run(const @name@_call *call, const tersor_variant *variant, int step, tersor_share share)
{
    const void *inputs[@NAME@_INPUTS];
    void *outputs[@NAME@_OUTPUTS];
    for (int i = 0; i < @NAME@_INPUTS; i++)
        inputs[i] = call->inputs[i];
    for (int i = 0; i < @NAME@_OUTPUTS; i++)
        outputs[i] = call->outputs[i];
    variant->steps[step](weights_of(call), call->arena, inputs, outputs, share);
}

int @name@_run(const @name@_call *call)
{
    const tersor_variant *variant = chosen();
    const int wrong = check(call, variant);
    if (wrong)
        return wrong;
    for (int step = 0; step < variant->count; step++)
        run(call, variant, step, (tersor_share){0, 1});
    return @NAME@_OK;
}

int @name@_step(const @name@_call *call, int step, int part, int parts)
{
    const tersor_variant *variant = chosen();
    const int wrong = check(call, variant);
    if (wrong)
        return wrong;
    if (step < 0 || step >= variant->count || part < 0 || part >= parts)
        return @NAME@_WRONG_STEP;
    run(call, variant, step, (tersor_share){part, parts});
    return @NAME@_OK;
}

int @name@_check_weights(const void *weights, size_t size)
{
    if (!weights)
        return @NAME@_NULL;
    if (misaligned(weights))
        return @NAME@_UNALIGNED;
    return size >= @NAME@_WEIGHTS_SIZE && tersor_is_whole(weights, &head) ? @NAME@_OK : @NAME@_WRONG_WEIGHTS;
}

const char *@name@_message(int code)
{
    switch (code) {
    case @NAME@_OK: return "nothing is wrong";
    case @NAME@_NULL: return "a pointer is missing";
    case @NAME@_WRONG_SIZE: return "an input or output has another number of values";
    case @NAME@_SMALL_ARENA: return "the arena is smaller than @name@_arena_size()";
    case @NAME@_UNALIGNED: return "the arena or the weights are not aligned";
    case @NAME@_WRONG_STEP: return "there is no such step, or no such share of it";
    case @NAME@_NO_VARIANT: return "no instruction set of this model runs here";
    case @NAME@_ARITHMETIC: return "floats are contracted, or not rounded to nearest even";
    case @NAME@_WRONG_WEIGHTS: return "the weights are cut off, damaged, or of another model";
    case @NAME@_WRONG_INDEX: return "an input has a number that its table has no row for";
    default: return "no code of this library";
    }
}
