"""Operations of lax in forms that are fast on CPUs, where XLA's own are up to 25 times slower.

`batch_norm` alone is for GPUs and TPUs.

A network calls `conv`, `depthwise_conv`, `channel_sum` and `add_bias` as it would call lax's; on GPUs and
TPUs they are lax's. `compilation` and `memory` hold the compiler options and memory settings to go with them.
"""
