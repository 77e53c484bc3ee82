"""Influence in the closed-form local score machine (Kamb & Ganguli, arXiv 2412.20292).

``machine`` has the formulas: what an image's removal does to the machine's answer, from sums over its patches. ``stream`` gets
those sums from NDA's engine, shard by shard. ``method`` combines timesteps and noise draws into :class:`ScoreMachine`.
"""

from attribench.methods.score_machine.method import ScoreMachine

__all__ = ["ScoreMachine"]
