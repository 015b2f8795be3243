"""The plots of an ablation's report."""
