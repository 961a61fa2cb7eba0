"""What everything else is built on: errors, options, devices, measures and the like."""
