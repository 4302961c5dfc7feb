"""What is fuzzed: each module has ``one(octets)``, which raises where an invariant does not hold."""
