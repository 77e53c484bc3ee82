"""The fast evaluation of NDA: compiled kernels for CPUs, their twin in torch for GPUs, and train sets streamed in shards.

Read ``partial`` (what is kept of a shard) and ``layout`` (how train images lie in memory) first, then ``compiled``, which calls
``_kernels``: ``_products`` (distances), ``_selection`` (the k largest) and ``_simd`` (vectors); ``stream`` merges shards;
``tracing``, which calls ``_tracing``, finds the places of what was weighed.
"""
