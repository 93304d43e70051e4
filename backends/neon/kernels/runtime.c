/* Which instructions this processor has, whether its floats behave, and whether weights and indices are what they should. */
#include <stdlib.h>
#include <string.h>

#include "inline.h"
#include "tersor_model.h"

#if TERSOR_NATIVE && defined(__linux__)
#include <sys/auxv.h>
#define HWCAP_DOTPROD (1ul << 20)
#define HWCAP2_MATMUL8 (1ul << 13)
static int has(const char *isa)
{
    if (strcmp(isa, "dotprod") == 0)
        return (getauxval(AT_HWCAP) & HWCAP_DOTPROD) != 0;
    if (strcmp(isa, "i8mm") == 0)
        return (getauxval(AT_HWCAP2) & HWCAP2_MATMUL8) != 0;
    return 1;
}
#elif TERSOR_NATIVE && defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *isa)
{
    int found = 0;
    size_t size = sizeof found;
    if (strcmp(isa, "neon") == 0)
        return 1;
    const char *key = strcmp(isa, "dotprod") == 0 ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
    return sysctlbyname(key, &found, &size, NULL, 0) == 0 && found;
}
#elif TERSOR_NATIVE
static int has(const char *isa)
{
    return strcmp(isa, "neon") == 0;
}
#else
static int has(const char *isa)
{
    (void)isa;
    return 1;
}
#endif

const tersor_variant *tersor_choose(const tersor_variant *const *variants, int32_t count)
{
    const char *wanted = getenv("TERSOR_ISA");
    for (int32_t i = count - 1; i >= 0; i--)
        if ((!wanted || !*wanted || strcmp(wanted, variants[i]->name) == 0) && has(variants[i]->name))
            return variants[i];
    return NULL;
}

int tersor_check_arithmetic(void)
{
    /* 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: rounded it loses its last term, which a fused operation keeps. */
    const volatile float near_one = 1.000244140625f, rounded = 1.00048828125f, magic = TERSOR_MAGIC, half = 0.5f;
    const float square = near_one * near_one;
    const float even = (half + magic) - magic, odd = (half + 1.0f + magic) - magic;
    return !(square - rounded == 0.0f && even == 0.0f && odd == 2.0f);
}

int tersor_has_head(const void *weights, const tersor_weights_head *head)
{
    return memcmp(weights, head, sizeof *head) == 0;
}

int tersor_is_whole(const void *weights, const tersor_weights_head *head)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    }; /* CRC-32 of IEEE 802.3, four bits at a time */
    const uint8_t *bytes = weights;
    uint32_t sum = 0xFFFFFFFF;
    if (!tersor_has_head(weights, head))
        return 0;
    for (uint64_t i = sizeof *head; i < head->size; i++) {
        sum = (sum >> 4) ^ table[(sum ^ bytes[i]) & 15];
        sum = (sum >> 4) ^ table[(sum ^ (uint32_t)(bytes[i] >> 4)) & 15];
    }
    return (sum ^ 0xFFFFFFFF) == head->checksum;
}

int tersor_indices_within(const tersor_indices *indices, const void *input, int64_t rows)
{
    for (int32_t i = 0; i < indices->count; i++) {
        const int64_t index = tersor_index(indices, input, i);
        if (index < 0 || index >= rows)
            return 0;
    }
    return 1;
}
