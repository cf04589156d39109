"""Layer kinds, one per file: how modules are recognised and the rule for both directions; each file ends in ``KIND``.

=================== ================================================================== =============================
kind                definition                                                         rule
=================== ================================================================== =============================
norm                RMSNorm (w, 1 + w, none) or LayerNorm                              1/std is a constant
channel_norm,       LayerNorm over the channels of pictures; GroupNorm                 as norm
group_norm
activation          an elementwise function without parameters                         identity rule
gated_mlp           ``down(act(gate) * up)``                                           each factor gets half
experts, router     mixture of experts; the choice of experts                          as gated_mlp; a constant
attention           over keys and values                                               divisors of q, k and v
gated_attention     the gate of an attention's output                                  a constant
key_indexer         the choice of keys per query (sparse attention)                    a constant
gated_delta,        recurrences and convolutions instead of attention                  see their files
mamba2,
short_convolution
altup, streams      several residual streams: mixing and rescaling                     coefficients are constants
residual            additions to the residual stream of a layer                        plain; ResLRP: by agreement
query_scale         scales its input by its other arguments                            plain, checked to be linear
linear              linear layer; the bias has no tangent                              plain
position_table      learned positions: a bias                                          plain
affine_container    container or identity without computation of its own               plain
=================== ================================================================== =============================

``gaussian_topk`` is a gate of gated MLPs, ``constant_gates`` their rule without the bilinear one, ``output_head`` the head
after the decoder.
"""
