"""From fake-quantize to integer operators."""
