"""The methods that learn, one file each, top to bottom in its paper's order.

Every file offers `Config`, `build(config)`, `loss(module, clip, generator, ranks)` and
`optimiser(module, config, steps)`; training needs no more.
"""
