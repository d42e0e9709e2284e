"""Clippers in other people's training loops: Hugging Face's Trainer, Lightning and Accelerate, one file each.

`accumulation` places the parts of an accumulated batch, `state` is what of a clipper belongs in a checkpoint. Each of
the others needs the library of its name (the extra `integrations`); nothing of the rest of the bench.
"""
