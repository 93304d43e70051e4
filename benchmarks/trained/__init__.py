"""Small models trained on real data, which the benchmarks compress."""

from __future__ import annotations

from .byte_language_model import byte_language_model
from .digits_cnn import digits_cnn, noisy_digits
from .digits_mobile import digits_mobile
from .digits_vit import digits_vit
from .trained import Trained

__all__ = ["Trained", "byte_language_model", "digits_cnn", "digits_mobile", "digits_vit", "noisy_digits"]
