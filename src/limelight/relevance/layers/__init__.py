"""One layer kind per file: how its modules are recognised and its rule for both directions, ended by ``KIND``.

=================== ================================================================== =============================
kind                what it is                                                         its rule
=================== ================================================================== =============================
norm                RMSNorm (w, 1 + w, none) or LayerNorm                              1/std is a constant
activation          an elementwise function without parameters                         identity rule
gated_mlp           ``down(act(gate) * up)``                                           each factor gets half
experts, router     a mixture of those; who computes                                   as gated_mlp; a constant
attention           over keys and values                                               divisors of q, k and v
gated_attention     the gate of its output                                             a constant
key_indexer         which keys a query sees (sparse attention)                         a constant
gated_delta,        recurrences and convolutions in place of attention                 in their files
mamba2,
short_convolution
altup, streams      several residual streams: their mixture, their rescaling           coefficients are constants
query_scale         scales by what its further arguments say                           plain, checked to be linear
linear              plain; its bias belongs to the model alone                         plain
position_table      learned positions: a bias                                          plain
affine_container    does nothing of its own                                            plain
=================== ================================================================== =============================

``gaussian_topk`` is a gate of gated MLPs, ``output_head`` the head behind the decoder.
"""
