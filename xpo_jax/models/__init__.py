"""Language models as pure functions: decoder, heads, checkpoints, LoRA, generation.

May be imported from `feedback` onwards; imports `ops`, `sharding` and `data`, never
what an experiment is or how it is trained.
"""
