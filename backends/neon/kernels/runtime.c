/* Which instructions this processor has, and whether its floats behave. */
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
