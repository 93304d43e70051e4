/* What the layer kernels share. */
#ifndef TERSOR_LAYERS_INTERNAL_H
#define TERSOR_LAYERS_INTERNAL_H

#include "requantize_portable.h"
#include "tersor_layers.h"

#endif
