"""The fast evaluation of NDA: compiled kernels for CPUs, their twin in torch for GPUs, and train sets streamed in shards.

Read ``partial`` (what is kept of a shard) and ``layout`` (how train images lie in memory) first, then ``compiled``, which calls
``_kernels``: ``_products`` (distances), ``_selection`` (the k largest) and ``_simd`` (vectors); ``stream`` merges shards;
``pixel_sums``, which calls ``_pixel_sums``, adds up weighted pixels in place of the k largest weights, for ``score-machine``;
``tracing``, which calls ``_tracing``, finds the places of what was weighed.
"""
