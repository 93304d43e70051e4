"""The intermediate representation: a Program that runs at every stage, and what reads, checks and stores it."""
