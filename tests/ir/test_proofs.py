from __future__ import annotations
import tersor.ir.accumulators
import tersor.ir.proofs
import tersor.passes.expand_attention
import tersor.passes.lower_to_integer
import tersor.passes.settle_grids
