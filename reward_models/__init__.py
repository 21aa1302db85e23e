"""Reward functions and reward models, usable by any trainer that calls rewards with keywords."""
