"""The article's nine claims, each measured on real data with its method's absence beside it.

`python -m benchmarks claims` measures all, `python -m benchmarks claims 3 8` the third and the eighth.
"""
