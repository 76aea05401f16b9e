"""Sweeps: training methods under budgets, as trials that Ray Tune runs and Optuna proposes."""
