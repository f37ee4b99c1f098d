"""Who updates what: optimisers over owned segments, schedules, rounds of a step."""
