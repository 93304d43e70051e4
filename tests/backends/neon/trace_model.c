/* Runs a model in memory that ends where nothing may be touched: whole, then step by step in three threads.
 *
 * Reads one sample as main.c does. Writes the outputs of both runs, and after each step a hash of the arena. Before that,
 * every wrong call has to be refused. Exits with 1 to 9 where something is not as model.h says.
 */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "model.h"

enum { THREADS = 3, PAGE = 65536 };

extern const int8_t model_weights[];

static void check(int holds, int code)
{
    if (!holds)
        exit(code);
}

/* `size` bytes, aligned where size is a multiple of 64, that end at a page that may not be touched. */
static void *guarded(size_t size)
{
    const size_t whole = (size + PAGE - 1) / PAGE * PAGE;
    char *memory = mmap(NULL, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED && !mprotect(memory + whole, PAGE, PROT_NONE), 9);
    return memory + whole - size;
}

static void refuses_wrong_calls(const model_call *right)
{
    model_call wrong = *right;
    check(model_run(NULL) == MODEL_NULL, 1);
    wrong.arena = NULL;
    check(model_run(&wrong) == MODEL_NULL, 1);
    wrong = *right, wrong.inputs[MODEL_INPUTS - 1] = NULL;
    check(model_run(&wrong) == MODEL_NULL, 1);
    wrong = *right, wrong.outputs[MODEL_OUTPUTS - 1] = NULL;
    check(model_run(&wrong) == MODEL_NULL, 1);
    wrong = *right, wrong.input_counts[MODEL_INPUTS - 1]++;
    check(model_run(&wrong) == MODEL_WRONG_SIZE, 2);
    wrong = *right, wrong.output_counts[0] = 0;
    check(model_run(&wrong) == MODEL_WRONG_SIZE, 2);
    wrong = *right, wrong.arena_size--;
    check(model_run(&wrong) == MODEL_SMALL_ARENA, 3);
    wrong = *right, wrong.arena = (char *)wrong.arena + 4;
    check(model_run(&wrong) == MODEL_UNALIGNED, 4);
    wrong = *right, wrong.weights = model_weights + 1, wrong.weights_size = MODEL_WEIGHTS_SIZE;
    check(model_run(&wrong) == MODEL_UNALIGNED, 4);
    wrong = *right, wrong.weights = model_weights, wrong.weights_size = MODEL_WEIGHTS_SIZE - 1;
    check(model_run(&wrong) == MODEL_WRONG_WEIGHTS, 4);
    check(model_check_weights(wrong.weights, wrong.weights_size) == MODEL_WRONG_WEIGHTS, 4);
    wrong.weights = right->arena, wrong.weights_size = MODEL_WEIGHTS_SIZE; /* 64 bytes of it are there */
    check(right->arena_size < 64 || model_run(&wrong) == MODEL_WRONG_WEIGHTS, 4);
    check(model_step(right, -1, 0, 1) == MODEL_WRONG_STEP, 5);
    check(model_step(right, model_steps(), 0, 1) == MODEL_WRONG_STEP, 5);
    check(model_step(right, 0, 1, 1) == MODEL_WRONG_STEP, 5);
    check(model_step(right, 0, 0, 0) == MODEL_WRONG_STEP, 5);
}

/* One bit of one byte in every few hundred, wherever it is, is noticed. */
static void knows_its_weights(int8_t *weights)
{
    check(model_check_weights(weights, MODEL_WEIGHTS_SIZE) == MODEL_OK, 4);
    check(model_check_weights(weights + 4, MODEL_WEIGHTS_SIZE - 4) == MODEL_UNALIGNED, 4);
    check(model_check_weights(NULL, MODEL_WEIGHTS_SIZE) == MODEL_NULL, 4);
    for (size_t i = 0; i < MODEL_WEIGHTS_SIZE; i += 1 + MODEL_WEIGHTS_SIZE / 16) {
        weights[i] = (int8_t)(weights[i] ^ 1 << i % 8);
        check(model_check_weights(weights, MODEL_WEIGHTS_SIZE) == MODEL_WRONG_WEIGHTS, 4);
        weights[i] = (int8_t)(weights[i] ^ 1 << i % 8);
    }
}

typedef struct {
    const model_call *call;
    int step, part;
} work;

static void *share(void *given)
{
    const work *mine = given;
    check(model_step(mine->call, mine->step, mine->part, THREADS) == MODEL_OK, 6);
    return NULL;
}

static void in_threads(const model_call *call, int step)
{
    pthread_t threads[THREADS];
    work shares[THREADS];
    for (int i = 0; i < THREADS; i++) {
        shares[i] = (work){call, step, i};
        check(!pthread_create(&threads[i], NULL, share, &shares[i]), 9);
    }
    for (int i = 0; i < THREADS; i++)
        check(!pthread_join(threads[i], NULL), 9);
}

static void answer(const model_call *call)
{
    for (int i = 0; i < MODEL_OUTPUTS; i++) {
        fwrite(call->outputs[i], model_output_bytes[i], call->output_counts[i], stdout);
        memset(call->outputs[i], 0xFF, call->output_counts[i] * model_output_bytes[i]);
    }
}

static uint64_t hash(const unsigned char *bytes, size_t size)
{
    uint64_t value = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        value = (value ^ bytes[i]) * 1099511628211u;
    return value;
}

int main(void)
{
    model_call call = {.arena_size = model_arena_size()};
    int8_t *weights = guarded(MODEL_WEIGHTS_SIZE);
    memcpy(weights, model_weights, MODEL_WEIGHTS_SIZE);
    call.arena = guarded(call.arena_size);
    for (int i = 0; i < MODEL_INPUTS; i++) {
        void *values = guarded((call.input_counts[i] = model_input_counts[i]) * model_input_bytes[i]);
        check(fread(values, model_input_bytes[i], call.input_counts[i], stdin) == call.input_counts[i], 8);
        call.inputs[i] = values;
    }
    for (int i = 0; i < MODEL_OUTPUTS; i++)
        call.outputs[i] = guarded((call.output_counts[i] = model_output_counts[i]) * model_output_bytes[i]);
    refuses_wrong_calls(&call);
    knows_its_weights(weights);
    memset(call.arena, 0x5A, call.arena_size);
    check(model_run(&call) == MODEL_OK, 7);
    answer(&call);
    memset(call.arena, 0x5A, call.arena_size);
    call.weights = weights, call.weights_size = MODEL_WEIGHTS_SIZE;
    uint64_t *hashes = calloc((size_t)model_steps(), sizeof *hashes);
    for (int step = 0; step < model_steps(); step++) {
        in_threads(&call, step);
        hashes[step] = hash(call.arena, call.arena_size);
    }
    answer(&call);
    fwrite(hashes, sizeof *hashes, (size_t)model_steps(), stdout);
    free(hashes);
    return 0;
}
