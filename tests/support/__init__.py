"""What tests of the server half share: a world of store, engine and clock, doubles of workers and subscribers, a served app."""
