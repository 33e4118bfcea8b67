"""Everything about a run: configuration, data, training, evaluation, forecasts."""
