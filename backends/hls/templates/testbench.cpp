// Golden vectors, computed by the compiler's integer stage, through the design.
@INCLUDES@
#include <cstdio>

static std::FILE *vectors = nullptr;
static long long different = 0, values = 0;

static long long take() {
    long long value = 0;
    if (std::fscanf(vectors, "%lld", &value) != 1)
        different++;
    return value;
}

static void give(long long value) {
    values++;
    if (take() != value)
        different++;
}

static void frame() {
@FRAME@
}

int main(int count, char **arguments) {
    vectors = std::fopen(count > 1 ? arguments[1] : "golden.txt", "r");
    if (vectors == nullptr) {
        std::printf("golden.txt cannot be opened\n");
        return 1;
    }
    const long long frames = take();
    for (long long i = 0; i < frames; i++)
        frame();
    std::fclose(vectors);
    std::printf("%lld frames, %lld of %lld values differ\n", frames, different, values);
    return different == 0 && values > 0 ? 0 : 1;
}
