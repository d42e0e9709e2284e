"""Training one model with one method: `setup`, the loop (`trainer`), and what a step needs: batches, clock, noise, …"""
