"""How much each linear loses; rates/ is what schedules share."""
