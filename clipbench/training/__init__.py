"""Training one model with one method: `setup`, the loop (`trainer`), and what a step needs: batches, clock, noise, …"""

from clipbench.extras import need

need("pydantic")
