"""What is made of finished labels without labelling anew: selections and exports."""
