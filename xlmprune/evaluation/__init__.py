"""Scores by language, with the counts behind them; intervals and paired tests."""
