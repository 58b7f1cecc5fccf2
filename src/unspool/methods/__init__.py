"""The methods that learn, one file each, top to bottom in its paper's order.

Every file offers `Config`, `build(config, encoder, ranks)`, `loss(module, clip, generator, ranks)`,
`optimiser(module, config, steps)` and `encoder_of(module)`; `after_step(module, step)` where its paper has
one. Training needs no more. Where a block on an encoder learns and the encoder does not (BA), `encoder_of`
gives both, as a `Correlator`.
"""
