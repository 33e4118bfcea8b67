"""The forecaster: tensors in, forecast out. Import from the modules; nothing is imported here."""
