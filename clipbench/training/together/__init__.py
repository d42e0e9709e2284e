"""Many runs as one batched program: members that share everything but numbers are trained side by side.

`clipbench.runs.kinship` says which runs may go together, `members` stacks their weights; a step goes through `batches`,
`stack` (or `mapped`) for the gradients, `noise`, `clippers`, `optimizers`; `trainer` is the loop over steps.
"""
